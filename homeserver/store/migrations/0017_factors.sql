-- what a user has beside the password. kind is totp, webauthn, sms or email. secret is what the kind needs: the shared
-- secret, the credential, the number, the address. counter is the last time step (totp) or the signature counter (webauthn).
-- An active factor was proved to work; the others are being enrolled until they expire.
CREATE TABLE factors (
  id TEXTC PRIMARY KEY,
  usr TEXTC NOT NULL,
  kind TEXTC NOT NULL,
  name TEXTC NOT NULL,
  secret BLOB NOT NULL,
  credential BLOB,
  counter BIGINT NOT NULL,
  active BIGINT NOT NULL,
  created BIGINT NOT NULL,
  used BIGINT NOT NULL,
  expires BIGINT NOT NULL
) WITHOUT_ROWID;
CREATE INDEX factors_usr ON factors (usr);
CREATE UNIQUE INDEX factors_credential ON factors (credential);

-- one row for each user who has to do with factors: its lock makes tries one after the other. handle is the user's name
-- for passkeys; owed_since is when the grace period of a policy began; failures are wrong tries since the last right one.
CREATE TABLE factor_users (
  usr TEXTC PRIMARY KEY,
  handle BLOB NOT NULL,
  owed_since BIGINT NOT NULL DEFAULT 0,
  failures BIGINT NOT NULL DEFAULT 0,
  blocked_until BIGINT NOT NULL DEFAULT 0
) WITHOUT_ROWID;
CREATE UNIQUE INDEX factor_users_handle ON factor_users (handle);

-- recovery codes that were not used yet, by hash
CREATE TABLE factor_recovery (
  usr TEXTC NOT NULL,
  hash BLOB NOT NULL,
  PRIMARY KEY (usr, hash)
) WITHOUT_ROWID;

-- what was sent or asked and waits for its answer: hash is that of a code; data the state of a WebAuthn ceremony
CREATE TABLE factor_challenges (
  id TEXTC PRIMARY KEY,
  usr TEXTC NOT NULL,
  kind TEXTC NOT NULL,
  factor TEXTC NOT NULL,
  hash BLOB NOT NULL,
  data BLOB NOT NULL,
  tries BIGINT NOT NULL,
  expires BIGINT NOT NULL
) WITHOUT_ROWID;
CREATE INDEX factor_challenges_expires ON factor_challenges (expires);
CREATE INDEX factor_challenges_usr ON factor_challenges (usr);

-- how often something was done in a window of time
CREATE TABLE factor_counts (
  key BLOB PRIMARY KEY,
  n BIGINT NOT NULL,
  expires BIGINT NOT NULL
) WITHOUT_ROWID;
CREATE INDEX factor_counts_expires ON factor_counts (expires);
