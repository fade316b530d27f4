-- endpoints that chosen events are delivered to. filter is JSON. failing_since (ms, 0: it works), next_at (ms): not before
CREATE TABLE hook_subscriptions (
  id TEXTC PRIMARY KEY,
  url TEXT NOT NULL,
  secret BLOB NOT NULL,
  filter BLOB NOT NULL,
  creator TEXTC NOT NULL,
  created BIGINT NOT NULL,
  paused BIGINT NOT NULL DEFAULT 0,
  failing_since BIGINT NOT NULL DEFAULT 0,
  failures BIGINT NOT NULL DEFAULT 0,
  next_at BIGINT NOT NULL DEFAULT 0,
  last_error TEXT NOT NULL DEFAULT '',
  delivered BIGINT NOT NULL DEFAULT 0
) WITHOUT_ROWID;

-- events that wait for an endpoint, by their position in the log: each subscription has a queue of its own. dead (ms, 0: it waits): when
-- delivery was given up
CREATE TABLE hook_deliveries (
  subscription TEXTC NOT NULL,
  pos BIGINT NOT NULL,
  nid BIGINT NOT NULL,
  attempts BIGINT NOT NULL DEFAULT 0,
  dead BIGINT NOT NULL DEFAULT 0,
  error TEXT NOT NULL DEFAULT '',
  PRIMARY KEY (subscription, pos)
) WITHOUT_ROWID;
CREATE INDEX hook_deliveries_dead ON hook_deliveries (subscription, dead) WHERE dead <> 0;
