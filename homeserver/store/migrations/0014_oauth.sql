-- OAuth 2.0 clients; those of the same metadata are one. used is when one last took part in a sign-in.
CREATE TABLE oauth_clients (
  client_id TEXTC PRIMARY KEY,
  metadata BLOB NOT NULL,
  created BIGINT NOT NULL,
  used BIGINT NOT NULL
) WITHOUT_ROWID;
CREATE INDEX oauth_clients_used ON oauth_clients (used);

-- authorization codes, by hash. One that was used stays until it has expired, to find out that it is used again.
CREATE TABLE oauth_codes (
  id TEXTC PRIMARY KEY,
  usr TEXTC NOT NULL,
  data BLOB NOT NULL,
  used BIGINT NOT NULL DEFAULT 0,
  expires BIGINT NOT NULL
) WITHOUT_ROWID;
CREATE INDEX oauth_codes_expires ON oauth_codes (expires);

-- device authorizations. status: 0 waits for its user, 1 allowed, 2 refused, 3 turned into tokens
CREATE TABLE oauth_device_codes (
  id TEXTC PRIMARY KEY,
  user_code TEXTC NOT NULL,
  data BLOB NOT NULL,
  status BIGINT NOT NULL DEFAULT 0,
  polled BIGINT NOT NULL DEFAULT 0,
  gap BIGINT NOT NULL,
  expires BIGINT NOT NULL
) WITHOUT_ROWID;
CREATE UNIQUE INDEX oauth_device_codes_user_code ON oauth_device_codes (user_code);
CREATE INDEX oauth_device_codes_expires ON oauth_device_codes (expires);

-- devices whose sessions were opened by OAuth 2.0
CREATE TABLE oauth_grants (
  usr TEXTC NOT NULL,
  device_id TEXTC NOT NULL,
  client_id TEXTC NOT NULL,
  scope TEXTC NOT NULL,
  created BIGINT NOT NULL,
  PRIMARY KEY (usr, device_id)
) WITHOUT_ROWID;
CREATE INDEX oauth_grants_client ON oauth_grants (client_id);

-- refresh tokens that were used, by hash: one that comes again after its successor was used was stolen
CREATE TABLE oauth_spent (
  id TEXTC PRIMARY KEY,
  usr TEXTC NOT NULL,
  device_id TEXTC NOT NULL,
  expires BIGINT NOT NULL
) WITHOUT_ROWID;
CREATE INDEX oauth_spent_expires ON oauth_spent (expires);
CREATE INDEX oauth_spent_device ON oauth_spent (usr, device_id);

-- keys that sign ID tokens; the youngest one signs, the others are still published
CREATE TABLE oauth_keys (
  id TEXTC PRIMARY KEY,
  private BLOB NOT NULL,
  created BIGINT NOT NULL
) WITHOUT_ROWID;
