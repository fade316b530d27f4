-- accounts of this server; password is an argon2id or bcrypt hash, NULL where the account has none
CREATE TABLE users (
  user_id TEXTC PRIMARY KEY,
  localpart TEXTC NOT NULL,
  created BIGINT NOT NULL,
  user_type TEXTC NOT NULL DEFAULT '',
  appservice TEXTC NOT NULL DEFAULT '',
  admin BIGINT NOT NULL DEFAULT 0,
  guest BIGINT NOT NULL DEFAULT 0,
  locked BIGINT NOT NULL DEFAULT 0,
  suspended BIGINT NOT NULL DEFAULT 0,
  deactivated BIGINT NOT NULL DEFAULT 0,
  erased BIGINT NOT NULL DEFAULT 0,
  password BLOB
) WITHOUT_ROWID;

-- last_*: written from time to time, not with every request
CREATE TABLE devices (
  usr TEXTC NOT NULL,
  device_id TEXTC NOT NULL,
  display_name TEXTC,
  created BIGINT NOT NULL,
  last_seen BIGINT,
  last_ip TEXTC,
  last_agent TEXTC,
  PRIMARY KEY (usr, device_id)
) WITHOUT_ROWID;

-- an access token each, with the refresh token that was issued beside it. Tokens are stored as SHA-256 only: id and
-- refresh_id are the first 63 bits of the hashes. replaces is the session that a refresh put this one in the place of,
-- until this one is used for the first time. ended: its user has to sign in again, with the same device.
CREATE TABLE sessions (
  id BIGINT PRIMARY KEY,
  hash BLOB NOT NULL,
  usr TEXTC NOT NULL,
  device_id TEXTC NOT NULL,
  created BIGINT NOT NULL,
  expires BIGINT,
  refresh_id BIGINT,
  refresh_hash BLOB,
  replaces BIGINT,
  ended BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX sessions_device ON sessions (usr, device_id);
CREATE UNIQUE INDEX sessions_refresh ON sessions (refresh_id) WHERE refresh_id IS NOT NULL;

-- single-use tokens for m.login.token
CREATE TABLE login_tokens (
  hash BLOB PRIMARY KEY,
  usr TEXTC NOT NULL,
  expires BIGINT NOT NULL
) WITHOUT_ROWID;

-- uses_allowed and expires are NULL for tokens without limit; pending counts registrations under way
CREATE TABLE registration_tokens (
  token TEXTC PRIMARY KEY,
  created BIGINT NOT NULL,
  expires BIGINT,
  uses_allowed BIGINT,
  pending BIGINT NOT NULL DEFAULT 0,
  completed BIGINT NOT NULL DEFAULT 0
) WITHOUT_ROWID;

-- user-interactive authentication under way; operation is what it is for, completed a JSON list of stages
CREATE TABLE uia_sessions (
  id TEXTC PRIMARY KEY,
  operation TEXTC NOT NULL,
  usr TEXTC NOT NULL,
  completed TEXTC NOT NULL,
  registration_token TEXTC NOT NULL DEFAULT '',
  expires BIGINT NOT NULL
) WITHOUT_ROWID;
CREATE INDEX uia_sessions_expires ON uia_sessions (expires);

-- random values handed out to be sent back once
CREATE TABLE nonces (
  nonce TEXTC PRIMARY KEY,
  expires BIGINT NOT NULL
) WITHOUT_ROWID;
