-- settings that belong to the deployment: server_name, signing keys, the setup link's hash
CREATE TABLE server_settings (
  key TEXTC PRIMARY KEY,
  value BLOB NOT NULL
) WITHOUT_ROWID;

-- the log: one row is its head, whose lock orders all commits that announce something
CREATE TABLE log_head (
  id BIGINT PRIMARY KEY,
  pos BIGINT NOT NULL,
  event_nid BIGINT NOT NULL
);
INSERT INTO log_head (id, pos, event_nid) VALUES (1, 0, 0);

CREATE TABLE log_epochs (
  epoch BIGINT PRIMARY KEY,
  first_pos BIGINT NOT NULL,
  created BIGINT NOT NULL
);
INSERT INTO log_epochs (epoch, first_pos, created) VALUES (1, 0, 0);

CREATE TABLE log (
  pos BIGINT PRIMARY KEY,
  kind BIGINT NOT NULL,
  room BIGINT,
  usr TEXTC,
  key TEXTC,
  ref BIGINT
) WITHOUT_ROWID;

CREATE TABLE followers (
  name TEXTC PRIMARY KEY,
  pos BIGINT NOT NULL,
  owner TEXTC NOT NULL,
  fence BIGINT NOT NULL,
  lease_until BIGINT NOT NULL
) WITHOUT_ROWID;

-- extremities: the forward extremities as packed (nid, depth) pairs; state_version counts state changes
CREATE TABLE rooms (
  nid BIGINT PRIMARY KEY,
  room_id TEXTC NOT NULL UNIQUE,
  version TEXTC NOT NULL,
  creator TEXTC NOT NULL,
  created BIGINT NOT NULL,
  state_version BIGINT NOT NULL,
  last_pos BIGINT NOT NULL,
  depth BIGINT NOT NULL,
  extremities BLOB NOT NULL,
  published BIGINT NOT NULL,
  blocked BIGINT NOT NULL DEFAULT 0
);

-- status: 0 accepted, 1 soft-failed, 2 rejected, 3 outlier. ord is the order in the room's timeline (below the first
-- event's for what is filled in later); pos is NULL for what was never announced.
CREATE TABLE events (
  nid BIGINT PRIMARY KEY,
  room BIGINT NOT NULL,
  ord BIGINT NOT NULL,
  pos BIGINT,
  event_id TEXTC NOT NULL UNIQUE,
  status BIGINT NOT NULL,
  ts BIGINT NOT NULL,
  is_state BIGINT NOT NULL,
  redacted_by BIGINT,
  device TEXTC,
  txn TEXTC,
  txn_key BIGINT,
  features BLOB,
  body BLOB NOT NULL
);
CREATE INDEX events_room_ord ON events (room, ord);
CREATE UNIQUE INDEX events_txn ON events (txn_key) WHERE txn_key IS NOT NULL;

-- what an event said before it was redacted
CREATE TABLE redacted_events (
  nid BIGINT PRIMARY KEY,
  redacted_at BIGINT NOT NULL,
  body BLOB NOT NULL
);

-- the current state; nid of the event
CREATE TABLE room_state (
  room BIGINT NOT NULL,
  type TEXTC NOT NULL,
  state_key TEXTC NOT NULL,
  nid BIGINT NOT NULL,
  PRIMARY KEY (room, type, state_key)
) WITHOUT_ROWID;

-- state over time: nid is NULL where a resolution removed the entry
CREATE TABLE state_changes (
  room BIGINT NOT NULL,
  type TEXTC NOT NULL,
  state_key TEXTC NOT NULL,
  ord BIGINT NOT NULL,
  nid BIGINT,
  PRIMARY KEY (room, type, state_key, ord)
) WITHOUT_ROWID;
CREATE INDEX state_changes_ord ON state_changes (room, ord);

-- membership: 1 invite, 2 join, 3 leave, 4 ban, 5 knock
CREATE TABLE memberships (
  usr TEXTC NOT NULL,
  room BIGINT NOT NULL,
  membership BIGINT NOT NULL,
  nid BIGINT NOT NULL,
  pos BIGINT NOT NULL,
  forgotten BIGINT NOT NULL DEFAULT 0,
  PRIMARY KEY (usr, room)
) WITHOUT_ROWID;
CREATE INDEX memberships_room ON memberships (room, membership);

-- what relates to an event, by the parent's event id
CREATE TABLE relations (
  parent TEXTC NOT NULL,
  nid BIGINT NOT NULL,
  room BIGINT NOT NULL,
  rel_type TEXTC NOT NULL,
  type TEXTC NOT NULL,
  sender TEXTC NOT NULL,
  PRIMARY KEY (parent, nid)
) WITHOUT_ROWID;

CREATE TABLE threads (
  room BIGINT NOT NULL,
  root TEXTC NOT NULL,
  latest BIGINT NOT NULL,
  count BIGINT NOT NULL,
  PRIMARY KEY (room, root)
) WITHOUT_ROWID;

CREATE TABLE room_aliases (
  alias TEXTC PRIMARY KEY,
  room BIGINT NOT NULL,
  creator TEXTC NOT NULL,
  created BIGINT NOT NULL
) WITHOUT_ROWID;
CREATE INDEX room_aliases_room ON room_aliases (room);
