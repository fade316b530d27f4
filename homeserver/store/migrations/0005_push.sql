-- what users changed against the predefined push rules
CREATE TABLE push_rules (
  usr TEXTC PRIMARY KEY,
  pos BIGINT NOT NULL,
  delta BLOB NOT NULL
) WITHOUT_ROWID;

-- id is the log position at which the pusher was made. badge is the last count of unread messages that the gateway was
-- told of (-1: none). busy_until is the lease of the process that delivers.
CREATE TABLE pushers (
  id BIGINT PRIMARY KEY,
  usr TEXTC NOT NULL,
  app_id TEXTC NOT NULL,
  pushkey TEXTC NOT NULL,
  kind TEXTC NOT NULL,
  app_name TEXTC NOT NULL,
  device_name TEXTC NOT NULL,
  profile_tag TEXTC NOT NULL,
  lang TEXTC NOT NULL,
  data BLOB NOT NULL,
  device TEXTC NOT NULL,
  updated BIGINT NOT NULL,
  badge BIGINT NOT NULL DEFAULT -1,
  failures BIGINT NOT NULL DEFAULT 0,
  next_try BIGINT NOT NULL DEFAULT 0,
  busy_until BIGINT NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX pushers_key ON pushers (usr, app_id, pushkey);
CREATE INDEX pushers_pushkey ON pushers (pushkey);

-- what is still to be delivered; nid is 0 where only the count changed
CREATE TABLE push_queue (
  pusher BIGINT NOT NULL,
  pos BIGINT NOT NULL,
  queued BIGINT NOT NULL,
  room BIGINT NOT NULL,
  nid BIGINT NOT NULL,
  high BIGINT NOT NULL,
  tweaks BLOB NOT NULL,
  PRIMARY KEY (pusher, pos)
) WITHOUT_ROWID;
