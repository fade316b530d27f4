-- since when an account is barred because the source that it comes from says that its person is gone, ms; 0: it is not.
-- Other than locked, which an administrator sets, it ends sessions.
ALTER TABLE users ADD COLUMN disabled BIGINT NOT NULL DEFAULT 0;
CREATE INDEX users_disabled ON users (disabled) WHERE disabled <> 0;

-- who an account is elsewhere: in a directory, for a provisioning client, at an identity provider. person is what the
-- source said last (JSON), active whether it says that the person is there.
CREATE TABLE external_ids (
  source TEXTC NOT NULL,
  external_id TEXTC NOT NULL,
  usr TEXTC NOT NULL,
  created BIGINT NOT NULL,
  active BIGINT NOT NULL DEFAULT 1,
  reason TEXTC NOT NULL DEFAULT '',
  person BLOB,
  PRIMARY KEY (source, external_id)
) WITHOUT_ROWID;
CREATE INDEX external_ids_usr ON external_ids (usr);
