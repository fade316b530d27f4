-- who follows a thread: asked when something is said in it
CREATE INDEX thread_subscriptions_thread ON thread_subscriptions (room, root) WHERE subscribed = 1;
