-- expires: until when an announced upload may come; NULL once the content is there. public: may be read without a token, as
-- media from before the freeze of the unauthenticated endpoints. usr is '' for images of URL previews.
CREATE TABLE media (
  origin TEXTC NOT NULL,
  media_id TEXTC NOT NULL,
  usr TEXTC NOT NULL,
  created BIGINT NOT NULL,
  expires BIGINT,
  type TEXTC NOT NULL,
  filename TEXTC NOT NULL,
  size BIGINT NOT NULL,
  sha256 BLOB,
  public BIGINT NOT NULL DEFAULT 0,
  quarantined BIGINT NOT NULL DEFAULT 0,
  PRIMARY KEY (origin, media_id)
) WITHOUT_ROWID;
CREATE INDEX media_sha256 ON media (sha256) WHERE sha256 IS NOT NULL;
CREATE INDEX media_pending ON media (usr, expires) WHERE expires IS NOT NULL;
CREATE INDEX media_previews ON media (created) WHERE usr = '';

-- url: SHA-256 of the URL; body is empty where the page could not be read
CREATE TABLE url_previews (
  url BLOB PRIMARY KEY,
  fetched BIGINT NOT NULL,
  expires BIGINT NOT NULL,
  body BLOB NOT NULL
) WITHOUT_ROWID;
