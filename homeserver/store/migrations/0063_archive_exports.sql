-- exports of the archive that officers asked for in the last days: what was asked, as JSON, and how far the file is that is made
-- while it is sent; the file itself is nowhere. run is the number of the download. state: 0 waits for its download, 1 is being
-- sent, 2 sent, 3 cancelled, 4 interrupted. seen: when the process that sends last said how far it is. Times in ms since 1970.
CREATE TABLE archive_exports (
  id TEXTC PRIMARY KEY,
  usr TEXTC NOT NULL,
  reason TEXT NOT NULL,
  format TEXTC NOT NULL,
  asked BLOB NOT NULL,
  about BIGINT NOT NULL,
  created BIGINT NOT NULL,
  state BIGINT NOT NULL DEFAULT 0,
  run BIGINT NOT NULL DEFAULT 0,
  began BIGINT NOT NULL DEFAULT 0,
  seen BIGINT NOT NULL DEFAULT 0,
  ended BIGINT NOT NULL DEFAULT 0,
  entries BIGINT NOT NULL DEFAULT 0,
  bytes BIGINT NOT NULL DEFAULT 0,
  sha256 TEXTC NOT NULL DEFAULT ''
) WITHOUT_ROWID;
CREATE INDEX archive_exports_usr ON archive_exports (usr, created);
CREATE INDEX archive_exports_created ON archive_exports (created);
