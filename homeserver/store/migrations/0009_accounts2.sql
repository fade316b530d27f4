-- tokens by which users prove to other services who they are; they open nothing here
CREATE TABLE openid_tokens (
  hash BLOB PRIMARY KEY,
  usr TEXTC NOT NULL,
  device_id TEXTC NOT NULL,
  expires BIGINT NOT NULL
) WITHOUT_ROWID;

-- addresses outside of Matrix that users have proved to be theirs
CREATE TABLE threepids (
  medium TEXTC NOT NULL,
  address TEXTC NOT NULL,
  usr TEXTC NOT NULL,
  validated BIGINT NOT NULL,
  added BIGINT NOT NULL,
  PRIMARY KEY (medium, address)
) WITHOUT_ROWID;
CREATE INDEX threepids_usr ON threepids (usr);

-- proofs of e-mail addresses under way. secret is the hash of the client's secret, token that of what was mailed, NULL
-- where the mail holds none because the address cannot be used for the purpose (which only its owner may learn).
-- mails counts what was sent to the address in this row's name.
CREATE TABLE email_validations (
  sid TEXTC PRIMARY KEY,
  purpose BIGINT NOT NULL,
  address TEXTC NOT NULL,
  secret BLOB NOT NULL,
  token BLOB,
  attempt BIGINT NOT NULL,
  mails BIGINT NOT NULL,
  next_link TEXTC NOT NULL,
  validated BIGINT NOT NULL DEFAULT 0,
  expires BIGINT NOT NULL
) WITHOUT_ROWID;
CREATE UNIQUE INDEX email_validations_request ON email_validations (address, purpose, secret);
CREATE INDEX email_validations_expires ON email_validations (expires);

-- mail that waits to be sent; due is when it is tried next. data is what its text is made of.
CREATE TABLE mails (
  id TEXTC PRIMARY KEY,
  recipient TEXTC NOT NULL,
  kind TEXTC NOT NULL,
  lang TEXTC NOT NULL,
  data BLOB NOT NULL,
  created BIGINT NOT NULL,
  due BIGINT NOT NULL,
  attempts BIGINT NOT NULL DEFAULT 0
) WITHOUT_ROWID;
CREATE INDEX mails_due ON mails (due);

-- the proof of an e-mail address that a completed stage named
ALTER TABLE uia_sessions ADD COLUMN email_sid TEXTC NOT NULL DEFAULT '';
