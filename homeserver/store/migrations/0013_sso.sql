-- sign-ins under way in a browser, and browsers signed in to our own pages. id is made of the SHA-256 of the cookie.
CREATE TABLE sso_attempts (
  id TEXTC PRIMARY KEY,
  data BLOB NOT NULL,
  expires BIGINT NOT NULL
) WITHOUT_ROWID;
CREATE INDEX sso_attempts_expires ON sso_attempts (expires);

CREATE TABLE sso_browsers (
  id TEXTC PRIMARY KEY,
  usr TEXTC NOT NULL,
  data BLOB NOT NULL,
  seen BIGINT NOT NULL,
  expires BIGINT NOT NULL
) WITHOUT_ROWID;
CREATE INDEX sso_browsers_usr ON sso_browsers (usr);
CREATE INDEX sso_browsers_expires ON sso_browsers (expires);
