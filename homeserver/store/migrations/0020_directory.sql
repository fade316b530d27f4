-- work that one process at a time may do
CREATE TABLE leases (
  name TEXTC PRIMARY KEY,
  owner TEXTC NOT NULL,
  fence BIGINT NOT NULL,
  until BIGINT NOT NULL
) WITHOUT_ROWID;

-- what a directory's entries were when they were seen last. kind: 1 user, 2 group, 3 unit. digest is that of what the
-- mapping made of the entry; data is JSON.
CREATE TABLE directory_entries (
  directory TEXTC NOT NULL,
  external_id TEXTC NOT NULL,
  kind BIGINT NOT NULL,
  dn TEXTC NOT NULL,
  digest BLOB NOT NULL,
  data BLOB,
  PRIMARY KEY (directory, external_id)
) WITHOUT_ROWID;

-- how far a directory was followed (JSON), and what is asked of whoever follows it: a run, a confirmation (JSON)
CREATE TABLE directory_state (
  directory TEXTC PRIMARY KEY,
  state BLOB,
  request BLOB
) WITHOUT_ROWID;

-- what was done
CREATE TABLE directory_runs (
  id TEXTC PRIMARY KEY,
  directory TEXTC NOT NULL,
  started BIGINT NOT NULL,
  ended BIGINT NOT NULL DEFAULT 0,
  report BLOB
) WITHOUT_ROWID;
CREATE INDEX directory_runs_started ON directory_runs (directory, started);
