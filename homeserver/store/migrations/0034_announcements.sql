-- the rooms in which the service account writes to one person
CREATE TABLE service_rooms (
  usr TEXTC PRIMARY KEY,
  room_id TEXTC NOT NULL
) WITHOUT_ROWID;

-- what HR announces. content is the message (JSON); done: everything was sent
CREATE TABLE announcements (
  id TEXTC PRIMARY KEY,
  created BIGINT NOT NULL,
  creator TEXTC NOT NULL,
  content BLOB NOT NULL,
  done BIGINT NOT NULL DEFAULT 0
) WITHOUT_ROWID;
CREATE INDEX announcements_open ON announcements (done) WHERE done = 0;

-- to whom and where. place is a room id, or a user id whose room with the service account is meant; room and ord are those of the
-- message when it was sent
CREATE TABLE announcement_places (
  announcement TEXTC NOT NULL,
  place TEXTC NOT NULL,
  room BIGINT NOT NULL DEFAULT 0,
  event_id TEXTC NOT NULL DEFAULT '',
  ord BIGINT NOT NULL DEFAULT 0,
  failed TEXTC NOT NULL DEFAULT '',
  PRIMARY KEY (announcement, place)
) WITHOUT_ROWID;
