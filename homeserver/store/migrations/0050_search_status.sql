-- one row: how far the search index was when the process that keeps it last said so. log_pos: of the log, up to which all is
-- indexed; scan: of scan_to events that were there before, as many are read; updated in ms since 1970
CREATE TABLE search_status (
  id BIGINT PRIMARY KEY,
  engine TEXTC NOT NULL,
  docs BIGINT NOT NULL,
  bytes BIGINT NOT NULL,
  log_pos BIGINT NOT NULL,
  scan BIGINT NOT NULL,
  scan_to BIGINT NOT NULL,
  updated BIGINT NOT NULL
) WITHOUT_ROWID;
