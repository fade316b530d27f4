-- which sessions of ours a session at an identity provider opened, so that its end there ends them here. device_id is set
-- for a client's device, browser for somebody signed in to our own pages. sid is the provider's name of its session.
CREATE TABLE upstream_sessions (
  usr TEXTC NOT NULL,
  device_id TEXTC NOT NULL,
  browser TEXTC NOT NULL,
  provider TEXTC NOT NULL,
  subject TEXTC NOT NULL,
  sid TEXTC NOT NULL,
  id_token BLOB,
  created BIGINT NOT NULL,
  PRIMARY KEY (usr, device_id, browser)
) WITHOUT_ROWID;
CREATE INDEX upstream_sessions_subject ON upstream_sessions (provider, subject);
CREATE INDEX upstream_sessions_sid ON upstream_sessions (provider, sid);
CREATE INDEX upstream_sessions_browser ON upstream_sessions (browser);

-- what identity providers sent and may not be sent again: states, logout tokens, assertions
CREATE TABLE upstream_seen (
  id TEXTC PRIMARY KEY,
  expires BIGINT NOT NULL
) WITHOUT_ROWID;
CREATE INDEX upstream_seen_expires ON upstream_seen (expires);

-- assertions that came by a form from another site, for the browser to fetch with its own cookie; id is a hash
CREATE TABLE upstream_handovers (
  id BLOB PRIMARY KEY,
  provider TEXTC NOT NULL,
  data BLOB NOT NULL,
  expires BIGINT NOT NULL
) WITHOUT_ROWID;
CREATE INDEX upstream_handovers_expires ON upstream_handovers (expires);
