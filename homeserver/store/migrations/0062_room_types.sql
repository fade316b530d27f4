-- the type that a room was made with; NULL: nobody has looked yet
ALTER TABLE rooms ADD COLUMN room_type TEXTC;
