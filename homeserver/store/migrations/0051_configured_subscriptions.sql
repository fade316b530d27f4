-- whether a subscription stands in the configuration, and so ends when it stands there no more
ALTER TABLE hook_subscriptions ADD COLUMN config BIGINT NOT NULL DEFAULT 0;
