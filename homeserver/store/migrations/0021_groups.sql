-- groups and units of the company as their sources told of them last. dirty counts changes whose rooms were not looked at yet
CREATE TABLE company_groups (
  source TEXTC NOT NULL,
  id TEXTC NOT NULL,
  kind TEXTC NOT NULL,
  name TEXTC NOT NULL,
  dn TEXTC NOT NULL,
  parent TEXTC NOT NULL,
  gone BIGINT NOT NULL DEFAULT 0,
  dirty BIGINT NOT NULL DEFAULT 0,
  PRIMARY KEY (source, id)
) WITHOUT_ROWID;

-- who is in a group by name, and which groups lie in others
CREATE TABLE company_group_members (
  source TEXTC NOT NULL,
  id TEXTC NOT NULL,
  usr TEXTC NOT NULL,
  PRIMARY KEY (source, id, usr)
) WITHOUT_ROWID;
CREATE INDEX company_group_members_usr ON company_group_members (usr);

CREATE TABLE company_group_nested (
  source TEXTC NOT NULL,
  id TEXTC NOT NULL,
  child TEXTC NOT NULL,
  PRIMARY KEY (source, id, child)
) WITHOUT_ROWID;

-- the room or space of a group. room_id is '' while it is being made; name, alias and parent are what was set last.
-- source is '' where several groups share the room
CREATE TABLE group_rooms (
  target TEXTC PRIMARY KEY,
  nid BIGINT NOT NULL,
  source TEXTC NOT NULL,
  id TEXTC NOT NULL,
  room_id TEXTC NOT NULL,
  name TEXTC NOT NULL,
  alias TEXTC NOT NULL,
  parent TEXTC NOT NULL
) WITHOUT_ROWID;
CREATE UNIQUE INDEX group_rooms_nid ON group_rooms (nid);

-- who is in such a room because of a group, and the power level that this gave
CREATE TABLE group_placed (
  room BIGINT NOT NULL,
  usr TEXTC NOT NULL,
  level BIGINT NOT NULL,
  PRIMARY KEY (room, usr)
) WITHOUT_ROWID;
CREATE INDEX group_placed_usr ON group_placed (usr);
