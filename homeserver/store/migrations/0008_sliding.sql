-- connections of sliding sync. What a client was told is known in two states: base, which the client has, and seq, which
-- it may have got since. configs are the requested states of rooms that sliding_rooms points to by their place.
CREATE TABLE sliding_conns (
  id BIGINT PRIMARY KEY,
  usr TEXTC NOT NULL,
  device_id TEXTC NOT NULL,
  conn_id TEXTC NOT NULL,
  base BIGINT NOT NULL,
  seq BIGINT NOT NULL,
  used BIGINT NOT NULL,
  configs BLOB NOT NULL
);
CREATE UNIQUE INDEX sliding_conns_name ON sliding_conns (usr, device_id, conn_id);
CREATE INDEX sliding_conns_used ON sliding_conns (used);

-- what a client was told of a room: the row with the greatest seq up to a state's is part of the state
CREATE TABLE sliding_rooms (
  conn BIGINT NOT NULL,
  room BIGINT NOT NULL,
  seq BIGINT NOT NULL,
  sent BLOB NOT NULL,
  PRIMARY KEY (conn, room, seq)
) WITHOUT_ROWID;
CREATE INDEX sliding_rooms_seq ON sliding_rooms (conn, seq);
