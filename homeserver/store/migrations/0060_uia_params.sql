-- what the requests of an authentication said, for those that follow it
ALTER TABLE uia_sessions ADD COLUMN params BLOB;
