-- rooms whose deletion was asked for. nid stays after the room is gone, so that no other room gets it. status: 0 waits or runs,
-- 1 done, 2 failed. stage: 0 members leave, 1 the room's rows are removed. result is what the administrator is told, as JSON.
CREATE TABLE room_deletions (
  id TEXTC PRIMARY KEY,
  nid BIGINT NOT NULL,
  room_id TEXTC NOT NULL,
  requester TEXTC NOT NULL,
  requested BIGINT NOT NULL,
  finished BIGINT NOT NULL DEFAULT 0,
  status BIGINT NOT NULL DEFAULT 0,
  stage BIGINT NOT NULL DEFAULT 0,
  purge BIGINT NOT NULL,
  busy_until BIGINT NOT NULL DEFAULT 0,
  params BLOB NOT NULL,
  result BLOB NOT NULL
) WITHOUT_ROWID;
CREATE INDEX room_deletions_room ON room_deletions (room_id);
CREATE INDEX room_deletions_nid ON room_deletions (nid);
CREATE INDEX room_deletions_open ON room_deletions (requested) WHERE status = 0;

-- rooms that nobody of this server may enter; they need not exist
CREATE TABLE blocked_rooms (
  room_id TEXTC PRIMARY KEY,
  usr TEXTC NOT NULL,
  created BIGINT NOT NULL
) WITHOUT_ROWID;

-- who hid a file from everybody, '' for nobody; protected files are passed over when all files of a room or user are hidden
ALTER TABLE media ADD COLUMN quarantined_by TEXTC NOT NULL DEFAULT '';
ALTER TABLE media ADD COLUMN protected BIGINT NOT NULL DEFAULT 0;
CREATE INDEX media_user ON media (usr, created) WHERE usr <> '';
CREATE INDEX users_created ON users (created);
