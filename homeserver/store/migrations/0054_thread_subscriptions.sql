-- which threads users follow (MSC4306). ended is the log position of the last unsubscription: what was said before it
-- subscribes nobody again by itself. pos is the position of the last change.
CREATE TABLE thread_subscriptions (
  usr TEXTC NOT NULL,
  room BIGINT NOT NULL,
  root TEXTC NOT NULL,
  subscribed BIGINT NOT NULL,
  automatic BIGINT NOT NULL,
  ended BIGINT NOT NULL,
  pos BIGINT NOT NULL,
  PRIMARY KEY (usr, room, root)
) WITHOUT_ROWID;
CREATE INDEX thread_subscriptions_pos ON thread_subscriptions (usr, pos);
