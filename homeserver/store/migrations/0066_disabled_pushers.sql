-- Pushers that a user has switched off (MSC3881).
ALTER TABLE pushers ADD COLUMN disabled BIGINT NOT NULL DEFAULT 0;
