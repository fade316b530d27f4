-- identity keys of devices, as they were uploaded
CREATE TABLE device_keys (
  usr TEXTC NOT NULL,
  device_id TEXTC NOT NULL,
  body BLOB NOT NULL,
  PRIMARY KEY (usr, device_id)
) WITHOUT_ROWID;

-- serial is the upload order
CREATE TABLE one_time_keys (
  usr TEXTC NOT NULL,
  device_id TEXTC NOT NULL,
  algorithm TEXTC NOT NULL,
  serial BIGINT NOT NULL,
  key_id TEXTC NOT NULL,
  body BLOB NOT NULL,
  PRIMARY KEY (usr, device_id, algorithm, serial)
) WITHOUT_ROWID;

-- used counts how often the key was given out
CREATE TABLE fallback_keys (
  usr TEXTC NOT NULL,
  device_id TEXTC NOT NULL,
  algorithm TEXTC NOT NULL,
  key_id TEXTC NOT NULL,
  used BIGINT NOT NULL,
  body BLOB NOT NULL,
  PRIMARY KEY (usr, device_id, algorithm)
) WITHOUT_ROWID;

-- usage is master, self_signing or user_signing; key is the public key in unpadded base64
CREATE TABLE cross_signing_keys (
  usr TEXTC NOT NULL,
  usage TEXTC NOT NULL,
  key TEXTC NOT NULL,
  body BLOB NOT NULL,
  PRIMARY KEY (usr, usage)
) WITHOUT_ROWID;

-- signatures that were added to keys after their upload; target is a device id or a cross-signing public key of usr
CREATE TABLE key_signatures (
  usr TEXTC NOT NULL,
  target TEXTC NOT NULL,
  signer TEXTC NOT NULL,
  key_id TEXTC NOT NULL,
  signature TEXTC NOT NULL,
  PRIMARY KEY (usr, target, signer, key_id)
) WITHOUT_ROWID;

-- when what others see of a user's devices and cross-signing keys changed last
CREATE TABLE device_lists (
  usr TEXTC PRIMARY KEY,
  pos BIGINT NOT NULL
) WITHOUT_ROWID;
CREATE INDEX device_lists_pos ON device_lists (pos);

-- when a user signed another user's key last, which is a change that only the signer sees
CREATE TABLE signature_lists (
  signer TEXTC NOT NULL,
  usr TEXTC NOT NULL,
  pos BIGINT NOT NULL,
  PRIMARY KEY (signer, usr)
) WITHOUT_ROWID;

CREATE TABLE backup_versions (
  usr TEXTC NOT NULL,
  version BIGINT NOT NULL,
  algorithm TEXTC NOT NULL,
  etag BIGINT NOT NULL,
  key_count BIGINT NOT NULL,
  deleted BIGINT NOT NULL,
  auth_data BLOB NOT NULL,
  PRIMARY KEY (usr, version)
) WITHOUT_ROWID;

CREATE TABLE backup_keys (
  usr TEXTC NOT NULL,
  version BIGINT NOT NULL,
  room_id TEXTC NOT NULL,
  session_id TEXTC NOT NULL,
  first_message_index BIGINT NOT NULL,
  forwarded_count BIGINT NOT NULL,
  is_verified BIGINT NOT NULL,
  session_data BLOB NOT NULL,
  PRIMARY KEY (usr, version, room_id, session_id)
) WITHOUT_ROWID;

-- send-to-device messages that wait; body is the whole event
CREATE TABLE to_device (
  usr TEXTC NOT NULL,
  device_id TEXTC NOT NULL,
  pos BIGINT NOT NULL,
  body BLOB NOT NULL,
  PRIMARY KEY (usr, device_id, pos)
) WITHOUT_ROWID;

CREATE TABLE to_device_txns (
  usr TEXTC NOT NULL,
  device_id TEXTC NOT NULL,
  type TEXTC NOT NULL,
  txn TEXTC NOT NULL,
  created BIGINT NOT NULL,
  PRIMARY KEY (usr, device_id, type, txn)
) WITHOUT_ROWID;
CREATE INDEX to_device_txns_created ON to_device_txns (created);

-- room is 0 for what belongs to no room
CREATE TABLE account_data (
  usr TEXTC NOT NULL,
  room BIGINT NOT NULL,
  type TEXTC NOT NULL,
  pos BIGINT NOT NULL,
  body BLOB NOT NULL,
  PRIMARY KEY (usr, room, type)
) WITHOUT_ROWID;
CREATE INDEX account_data_pos ON account_data (usr, pos);

-- fields is a JSON object of all fields but the two; folded is what the user directory searches
CREATE TABLE profiles (
  usr TEXTC PRIMARY KEY,
  displayname TEXTC,
  avatar_url TEXTC,
  folded TEXTC NOT NULL,
  pos BIGINT NOT NULL,
  fields BLOB
) WITHOUT_ROWID;

-- id is made of the body's hash
CREATE TABLE filters (
  usr TEXTC NOT NULL,
  id TEXTC NOT NULL,
  body BLOB NOT NULL,
  PRIMARY KEY (usr, id)
) WITHOUT_ROWID;
