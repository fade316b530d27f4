-- how a device was signed in the last time: when, in what way (password, sso:company, oauth …), what was proved (a JSON
-- list, RFC 8176), from where, by which OAuth client
ALTER TABLE devices ADD COLUMN signed_in BIGINT NOT NULL DEFAULT 0;
ALTER TABLE devices ADD COLUMN signin_way TEXTC NOT NULL DEFAULT '';
ALTER TABLE devices ADD COLUMN signin_amr TEXTC NOT NULL DEFAULT '';
ALTER TABLE devices ADD COLUMN signin_ip TEXTC NOT NULL DEFAULT '';
ALTER TABLE devices ADD COLUMN signin_agent TEXTC NOT NULL DEFAULT '';
ALTER TABLE devices ADD COLUMN oauth_client TEXTC NOT NULL DEFAULT '';

-- when the password was set (ms; 0: before this was noted), and whether it has to be changed before it signs in
ALTER TABLE users ADD COLUMN password_set BIGINT NOT NULL DEFAULT 0;
ALTER TABLE users ADD COLUMN password_must_change BIGINT NOT NULL DEFAULT 0;

-- hashes of passwords that were used before
CREATE TABLE password_history (
  usr TEXTC NOT NULL,
  replaced BIGINT NOT NULL,
  password BLOB NOT NULL,
  PRIMARY KEY (usr, replaced)
) WITHOUT_ROWID;

-- wrong passwords of an account or from an address, by a hash of its name; until is when the next one is looked at
CREATE TABLE signin_failures (
  id TEXTC PRIMARY KEY,
  count BIGINT NOT NULL,
  last BIGINT NOT NULL,
  until BIGINT NOT NULL
) WITHOUT_ROWID;
CREATE INDEX signin_failures_last ON signin_failures (last);
