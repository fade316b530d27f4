-- who did what, from where, with what result: rows are added and, when their time is over, removed in whole batches, and
-- never changed but for batch, which is given once. The id begins with the time, so that its order is that of ts.
CREATE TABLE audit_log (
  id TEXTC PRIMARY KEY,
  ts BIGINT NOT NULL,
  actor TEXTC NOT NULL,
  kind TEXTC NOT NULL,
  device TEXTC NOT NULL,
  session TEXTC NOT NULL,
  ip TEXTC NOT NULL,
  agent TEXTC NOT NULL,
  action TEXTC NOT NULL,
  target TEXTC NOT NULL,
  result TEXTC NOT NULL,
  reason TEXTC NOT NULL,
  body BLOB,
  batch BIGINT
) WITHOUT_ROWID;
CREATE INDEX audit_log_batch ON audit_log (batch, id);
CREATE INDEX audit_log_actor ON audit_log (actor, id);
CREATE INDEX audit_log_target ON audit_log (target, id);

-- the chain: each batch names its entries with their hashes (leaves), the hash of the batch before, and is signed
CREATE TABLE audit_batches (
  number BIGINT PRIMARY KEY,
  first_ts BIGINT NOT NULL,
  last_ts BIGINT NOT NULL,
  count BIGINT NOT NULL,
  created BIGINT NOT NULL,
  leaves BLOB NOT NULL,
  prev BLOB NOT NULL,
  hash BLOB NOT NULL,
  key_id TEXTC NOT NULL,
  signature BLOB NOT NULL
);

-- one row: the newest batch, the batch behind which the kept part begins (signed, when it was cut there), the last batch
-- that was exported, and which process does this work. Whoever adds or cuts holds the row's lock.
CREATE TABLE audit_head (
  id BIGINT PRIMARY KEY,
  number BIGINT NOT NULL,
  hash BLOB NOT NULL,
  anchor BIGINT NOT NULL,
  anchor_hash BLOB NOT NULL,
  anchor_last_ts BIGINT NOT NULL,
  anchor_at BIGINT NOT NULL,
  anchor_key_id TEXTC NOT NULL,
  anchor_signature BLOB NOT NULL,
  exported BIGINT NOT NULL,
  owner TEXTC NOT NULL DEFAULT '',
  lease_until BIGINT NOT NULL DEFAULT 0
);

-- what somebody may do on this server besides using it; server administrators are in users.admin
CREATE TABLE user_roles (
  usr TEXTC NOT NULL,
  role TEXTC NOT NULL,
  since BIGINT NOT NULL,
  PRIMARY KEY (usr, role)
) WITHOUT_ROWID;
