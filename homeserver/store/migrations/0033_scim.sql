-- people as an HR system tells of them by SCIM. doc is the resource as it was written (JSON). version counts its changes, applied is the
-- one that the account follows already. start_at and end_at (ms, 0: none) bound the time in which the account can be used.
-- greet: 1 a welcome is due once the account can be used, 2 it was sent
CREATE TABLE scim_users (
  id TEXTC PRIMARY KEY,
  usr TEXTC NOT NULL,
  user_name TEXTC NOT NULL,
  external_id TEXTC NOT NULL,
  doc BLOB NOT NULL,
  created BIGINT NOT NULL,
  modified BIGINT NOT NULL,
  version BIGINT NOT NULL,
  applied BIGINT NOT NULL,
  active BIGINT NOT NULL,
  start_at BIGINT NOT NULL,
  end_at BIGINT NOT NULL,
  next_at BIGINT NOT NULL,
  department TEXTC NOT NULL,
  greet BIGINT NOT NULL,
  deleted BIGINT NOT NULL DEFAULT 0
) WITHOUT_ROWID;
CREATE UNIQUE INDEX scim_users_name ON scim_users (user_name);
CREATE INDEX scim_users_external ON scim_users (external_id) WHERE external_id <> '';
CREATE INDEX scim_users_usr ON scim_users (usr);
CREATE INDEX scim_users_next ON scim_users (next_at) WHERE next_at <> 0;
CREATE INDEX scim_users_created ON scim_users (created, id);

-- groups of the same; their members lie in company_group_members
CREATE TABLE scim_groups (
  id TEXTC PRIMARY KEY,
  name TEXTC NOT NULL,
  external_id TEXTC NOT NULL,
  doc BLOB NOT NULL,
  created BIGINT NOT NULL,
  modified BIGINT NOT NULL,
  version BIGINT NOT NULL
) WITHOUT_ROWID;
CREATE INDEX scim_groups_name ON scim_groups (name);
CREATE INDEX scim_groups_external ON scim_groups (external_id) WHERE external_id <> '';

-- secrets of HR systems, by hash
CREATE TABLE hr_tokens (
  id TEXTC PRIMARY KEY,
  name TEXTC NOT NULL,
  hash BLOB NOT NULL,
  created BIGINT NOT NULL,
  used BIGINT NOT NULL DEFAULT 0
) WITHOUT_ROWID;
CREATE UNIQUE INDEX hr_tokens_hash ON hr_tokens (hash);
