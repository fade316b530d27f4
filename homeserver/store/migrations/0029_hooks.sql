-- named addresses that systems post messages to. secret_hash is set where a bearer token is shown (SHA-256), secret where requests are
-- signed, which needs the secret itself. target is a room id, an alias or a user id; room_id is the room of a user target.
-- options is JSON (template, addresses, rate …). test_hash lets one command post until test_until (ms)
CREATE TABLE hooks (
  id TEXTC PRIMARY KEY,
  format TEXTC NOT NULL,
  auth TEXTC NOT NULL,
  secret_hash BLOB,
  secret BLOB,
  target TEXTC NOT NULL,
  room_id TEXTC NOT NULL DEFAULT '',
  creator TEXTC NOT NULL,
  display_name TEXT NOT NULL,
  avatar_url TEXTC NOT NULL,
  options BLOB NOT NULL,
  created BIGINT NOT NULL,
  used BIGINT NOT NULL DEFAULT 0,
  revoked BIGINT NOT NULL DEFAULT 0,
  test_hash BLOB,
  test_until BIGINT NOT NULL DEFAULT 0
) WITHOUT_ROWID;

-- the messages that later posts change or answer: kind 1 by key, 2 by thread. first is the idempotency key of the post that made it
CREATE TABLE hook_keys (
  hook TEXTC NOT NULL,
  kind BIGINT NOT NULL,
  key TEXTC NOT NULL,
  room_id TEXTC NOT NULL,
  event_id TEXTC NOT NULL,
  first TEXTC NOT NULL,
  created BIGINT NOT NULL,
  PRIMARY KEY (hook, kind, key)
) WITHOUT_ROWID;
