-- approvals. nid gives the short id (A and nid); version counts changes of what is to be decided, rev all changes. brief and doc are JSON.
-- card_due is when the card in the chat has to be made or changed, 0: it shows what is true. card_* is the card as it was
-- posted last; shown_version and shown_ord say from where in the room's timeline on the person could see which version
CREATE TABLE oa_tasks (
  nid BIGINT PRIMARY KEY,
  system TEXTC NOT NULL,
  external_id TEXTC NOT NULL,
  version BIGINT NOT NULL,
  rev BIGINT NOT NULL,
  status TEXTC NOT NULL,
  assignee TEXTC NOT NULL,
  applicant TEXTC NOT NULL,
  low_risk BIGINT NOT NULL,
  step_up BIGINT NOT NULL,
  polled BIGINT NOT NULL,
  brief BLOB NOT NULL,
  doc BLOB NOT NULL,
  created BIGINT NOT NULL,
  updated BIGINT NOT NULL,
  decided BIGINT NOT NULL DEFAULT 0,
  decided_by TEXTC NOT NULL DEFAULT '',
  via TEXTC NOT NULL DEFAULT '',
  ref TEXTC NOT NULL DEFAULT '',
  reason BLOB,
  card_due BIGINT NOT NULL DEFAULT 0,
  card_room TEXTC NOT NULL DEFAULT '',
  card_event TEXTC NOT NULL DEFAULT '',
  card_user TEXTC NOT NULL DEFAULT '',
  shown_version BIGINT NOT NULL DEFAULT 0,
  shown_ord BIGINT NOT NULL DEFAULT 0,
  reminds BIGINT NOT NULL DEFAULT 0,
  reminded BIGINT NOT NULL DEFAULT 0,
  last_remind BIGINT NOT NULL DEFAULT 0,
  remind_at BIGINT NOT NULL DEFAULT 0,
  told TEXTC NOT NULL DEFAULT ''
) WITHOUT_ROWID;
CREATE UNIQUE INDEX oa_tasks_external ON oa_tasks (system, external_id);
CREATE INDEX oa_tasks_open ON oa_tasks (assignee, nid) WHERE status = 'open';
CREATE INDEX oa_tasks_due ON oa_tasks (card_due) WHERE card_due <> 0;
CREATE INDEX oa_tasks_remind ON oa_tasks (remind_at) WHERE remind_at <> 0;

CREATE TABLE oa_counter (
  id BIGINT PRIMARY KEY,
  n BIGINT NOT NULL
) WITHOUT_ROWID;
INSERT INTO oa_counter (id, n) VALUES (1, 1000);

-- links of cards, by hash. used: when somebody decided by it
CREATE TABLE oa_tokens (
  hash TEXTC PRIMARY KEY,
  task BIGINT NOT NULL,
  version BIGINT NOT NULL,
  usr TEXTC NOT NULL,
  expires BIGINT NOT NULL,
  used BIGINT NOT NULL DEFAULT 0
) WITHOUT_ROWID;
CREATE INDEX oa_tokens_expires ON oa_tokens (expires);

-- messages that stand for a task, so that reactions and replies to them find it
CREATE TABLE oa_cards (
  event_id TEXTC PRIMARY KEY,
  task BIGINT NOT NULL,
  usr TEXTC NOT NULL
) WITHOUT_ROWID;

CREATE TABLE oa_rooms (
  usr TEXTC PRIMARY KEY,
  room_id TEXTC NOT NULL,
  nid BIGINT NOT NULL
) WITHOUT_ROWID;
CREATE UNIQUE INDEX oa_rooms_nid ON oa_rooms (nid);

-- what an OA system is told. state: 0 waiting, 1 done, 2 refused, 3 given up
CREATE TABLE oa_callbacks (
  task BIGINT NOT NULL,
  version BIGINT NOT NULL,
  kind TEXTC NOT NULL,
  system TEXTC NOT NULL,
  body BLOB NOT NULL,
  created BIGINT NOT NULL,
  tries BIGINT NOT NULL DEFAULT 0,
  next_at BIGINT NOT NULL,
  state BIGINT NOT NULL DEFAULT 0,
  answer TEXTC NOT NULL DEFAULT '',
  PRIMARY KEY (task, version, kind)
) WITHOUT_ROWID;
CREATE INDEX oa_callbacks_due ON oa_callbacks (system, next_at) WHERE state = 0;
