-- the archive: every event as it was sent, in the order of its number; rows are added and never changed. What a redaction or
-- the deletion of a room takes away from users stays here. membership and usr are of m.room.member, target is the event
-- that a replacement replaces or a redaction redacts.
CREATE TABLE archive_entries (
  nid BIGINT PRIMARY KEY,
  room BIGINT NOT NULL,
  ord BIGINT NOT NULL,
  event_id TEXTC NOT NULL,
  status BIGINT NOT NULL,
  ts BIGINT NOT NULL,
  archived BIGINT NOT NULL,
  membership BIGINT,
  usr TEXTC,
  target TEXTC,
  body BLOB NOT NULL
);
CREATE INDEX archive_entries_room ON archive_entries (room, ord);
CREATE INDEX archive_entries_event ON archive_entries (event_id);
CREATE INDEX archive_entries_member ON archive_entries (room, usr, ord) WHERE membership IS NOT NULL;
CREATE INDEX archive_entries_target ON archive_entries (target) WHERE target IS NOT NULL;

-- rooms of the archive, also those that were deleted
CREATE TABLE archive_rooms (
  nid BIGINT PRIMARY KEY,
  room_id TEXTC NOT NULL UNIQUE,
  version TEXTC NOT NULL,
  creator TEXTC NOT NULL,
  created BIGINT NOT NULL
);

-- events that were deleted before the archive had read them; the transaction that deletes them puts them here
CREATE TABLE archive_pending (
  nid BIGINT PRIMARY KEY,
  room BIGINT NOT NULL,
  ord BIGINT NOT NULL,
  event_id TEXTC NOT NULL,
  status BIGINT NOT NULL,
  ts BIGINT NOT NULL,
  body BLOB NOT NULL
);

-- the chain: each batch names its entries with their hashes (leaves), the hash of the batch before, and is signed
CREATE TABLE archive_batches (
  number BIGINT PRIMARY KEY,
  first_nid BIGINT NOT NULL,
  last_nid BIGINT NOT NULL,
  count BIGINT NOT NULL,
  created BIGINT NOT NULL,
  leaves BLOB NOT NULL,
  prev BLOB NOT NULL,
  hash BLOB NOT NULL,
  key_id TEXTC NOT NULL,
  signature BLOB NOT NULL
);

-- one row, from the first start with an archive on: the newest batch, the last event that is archived, which batch is noted
-- in the audit log. active: events are kept for the archive when they are deleted.
CREATE TABLE archive_head (
  id BIGINT PRIMARY KEY,
  active BIGINT NOT NULL,
  number BIGINT NOT NULL,
  nid BIGINT NOT NULL,
  hash BLOB NOT NULL,
  noted BIGINT NOT NULL,
  noted_at BIGINT NOT NULL
);
