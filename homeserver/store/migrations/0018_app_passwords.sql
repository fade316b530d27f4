-- browsers that need no second factor for a while; hash is that of the cookie's token, amr what was proved
CREATE TABLE remembered_devices (
  id TEXTC PRIMARY KEY,
  hash BLOB NOT NULL,
  usr TEXTC NOT NULL,
  amr TEXTC NOT NULL,
  agent TEXTC NOT NULL,
  ip TEXTC NOT NULL,
  created BIGINT NOT NULL,
  used BIGINT NOT NULL,
  expires BIGINT NOT NULL
) WITHOUT_ROWID;
CREATE UNIQUE INDEX remembered_devices_hash ON remembered_devices (hash);
CREATE INDEX remembered_devices_usr ON remembered_devices (usr);
CREATE INDEX remembered_devices_expires ON remembered_devices (expires);

-- passwords for single apps that know no second factor
CREATE TABLE app_passwords (
  id TEXTC PRIMARY KEY,
  usr TEXTC NOT NULL,
  name TEXTC NOT NULL,
  hash BLOB NOT NULL,
  created BIGINT NOT NULL,
  used BIGINT NOT NULL
) WITHOUT_ROWID;
CREATE UNIQUE INDEX app_passwords_usr ON app_passwords (usr, hash);
