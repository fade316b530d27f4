-- files that were deleted while there is an archive: users do not get them any more, officers do, and their contents stay
CREATE TABLE archive_media (
  origin TEXTC NOT NULL,
  media_id TEXTC NOT NULL,
  usr TEXTC NOT NULL,
  created BIGINT NOT NULL,
  type TEXTC NOT NULL,
  filename TEXTC NOT NULL,
  size BIGINT NOT NULL,
  sha256 BLOB NOT NULL,
  PRIMARY KEY (origin, media_id)
) WITHOUT_ROWID;
CREATE INDEX archive_media_sha256 ON archive_media (sha256);
