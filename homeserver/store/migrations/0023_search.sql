-- text that was found in uploaded files, by mxc: address. status: 1 text is there, 2 there is none, 3 it could not be read
CREATE TABLE search_files (
  media TEXTC PRIMARY KEY,
  status BIGINT NOT NULL,
  done BIGINT NOT NULL,
  reason TEXT,
  body BLOB
) WITHOUT_ROWID;

-- files whose text is still to be found, with the message that they belong to
CREATE TABLE search_wanted (
  nid BIGINT PRIMARY KEY,
  media TEXTC NOT NULL,
  due BIGINT NOT NULL,
  tries BIGINT NOT NULL
) WITHOUT_ROWID;
CREATE INDEX search_wanted_due ON search_wanted (due);

-- one row: the rebuilding of the index that was asked for last, or that is under way
CREATE TABLE search_rebuild (
  id BIGINT PRIMARY KEY,
  requested BIGINT NOT NULL,
  began BIGINT NOT NULL,
  ended BIGINT NOT NULL,
  done BIGINT NOT NULL,
  total BIGINT NOT NULL,
  reason TEXT NOT NULL
) WITHOUT_ROWID;
