-- the class that a room was given when it was made, or when it was first asked for
CREATE TABLE room_classes (
  room_id TEXTC PRIMARY KEY,
  class TEXTC NOT NULL,
  since BIGINT NOT NULL
) WITHOUT_ROWID;

-- which version of the notice about archive and encryption a user was told
CREATE TABLE compliance_told (
  usr TEXTC PRIMARY KEY,
  version TEXTC NOT NULL,
  told BIGINT NOT NULL
) WITHOUT_ROWID;
