-- what users reported as inappropriate: an event, a room or a user
CREATE TABLE reports (
  id BIGINT PRIMARY KEY,
  created BIGINT NOT NULL,
  reporter TEXTC NOT NULL,
  room_id TEXTC NOT NULL,
  event_id TEXTC NOT NULL,
  usr TEXTC NOT NULL,
  reason TEXTC NOT NULL,
  resolved BIGINT NOT NULL
);
