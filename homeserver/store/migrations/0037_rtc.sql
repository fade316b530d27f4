-- events that are sent later unless their sender puts that off or calls it off. state_key is NULL for messages; since is the
-- log position when the event was scheduled. finished is 0 while it waits; outcome is send or cancel, reason error, action
-- or delay.
CREATE TABLE delayed_events (
  id TEXTC PRIMARY KEY,
  usr TEXTC NOT NULL,
  device_id TEXTC NOT NULL,
  room TEXTC NOT NULL,
  type TEXTC NOT NULL,
  state_key TEXTC,
  content BLOB NOT NULL,
  delay BIGINT NOT NULL,
  started BIGINT NOT NULL,
  due BIGINT NOT NULL,
  since BIGINT NOT NULL,
  txn TEXTC,
  finished BIGINT NOT NULL DEFAULT 0,
  outcome TEXTC NOT NULL DEFAULT '',
  reason TEXTC NOT NULL DEFAULT '',
  event_id TEXTC NOT NULL DEFAULT '',
  error BLOB
) WITHOUT_ROWID;
CREATE INDEX delayed_events_due ON delayed_events (due) WHERE finished = 0;
CREATE INDEX delayed_events_usr ON delayed_events (usr, started);
CREATE UNIQUE INDEX delayed_events_txn ON delayed_events (usr, device_id, txn) WHERE txn IS NOT NULL;

-- devices that keep receiving while their user has no other: one for each user
CREATE TABLE dehydrated_devices (
  usr TEXTC PRIMARY KEY,
  device_id TEXTC NOT NULL,
  data BLOB NOT NULL
) WITHOUT_ROWID;

-- rooms in which the server itself tells a user something
CREATE TABLE notice_rooms (
  usr TEXTC PRIMARY KEY,
  room_id TEXTC NOT NULL,
  created BIGINT NOT NULL
) WITHOUT_ROWID;

-- how display names are written in Latin letters: pinyin in full, and its initials. NULL: not looked at yet.
ALTER TABLE profiles ADD COLUMN latin TEXTC;
