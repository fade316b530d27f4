-- application services: up to which position of the log their transactions are made, the number of the last one, how often
-- the oldest one that waits was tried in vain, and when it may be tried next
CREATE TABLE appservices (
  id TEXTC NOT NULL,
  pos BIGINT NOT NULL,
  last_txn BIGINT NOT NULL,
  failures BIGINT NOT NULL,
  next_try BIGINT NOT NULL,
  PRIMARY KEY (id)
) WITHOUT_ROWID;

-- transactions that wait for a service. What was tried once is sent again as it is; the others may be put together.
CREATE TABLE appservice_txns (
  service TEXTC NOT NULL,
  txn BIGINT NOT NULL,
  created BIGINT NOT NULL,
  tried BIGINT NOT NULL,
  events BIGINT NOT NULL,
  body BLOB NOT NULL,
  PRIMARY KEY (service, txn)
) WITHOUT_ROWID;

-- rooms in the directories of the networks that services bridge
CREATE TABLE appservice_rooms (
  service TEXTC NOT NULL,
  network TEXTC NOT NULL,
  room BIGINT NOT NULL,
  PRIMARY KEY (service, network, room)
) WITHOUT_ROWID;
