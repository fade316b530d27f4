-- read receipts: type 1 is m.read, 2 m.read.private; thread is '' (unthreaded), 'main' or the event id of a thread's root.
-- ord is the place of the event in its room's timeline; pos the log position of the last change.
CREATE TABLE receipts (
  usr TEXTC NOT NULL,
  room BIGINT NOT NULL,
  type BIGINT NOT NULL,
  thread TEXTC NOT NULL,
  event_id TEXTC NOT NULL,
  ord BIGINT NOT NULL,
  ts BIGINT NOT NULL,
  pos BIGINT NOT NULL,
  PRIMARY KEY (usr, room, type, thread)
) WITHOUT_ROWID;
CREATE INDEX receipts_room ON receipts (room, pos);

-- how far the unread events of a user in a room were counted, so that a restart does not count a long room again:
-- everything up to ord is in counted
CREATE TABLE unread (
  usr TEXTC NOT NULL,
  room BIGINT NOT NULL,
  ord BIGINT NOT NULL,
  counted BLOB NOT NULL,
  PRIMARY KEY (usr, room)
) WITHOUT_ROWID;

-- what users say of themselves beside their presence, which itself is in memory only
CREATE TABLE presence_status (
  usr TEXTC PRIMARY KEY,
  status BLOB NOT NULL
) WITHOUT_ROWID;
