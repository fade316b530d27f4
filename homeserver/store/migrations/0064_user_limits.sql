-- what an administrator allows one account: requests per second and at once instead of the server's limits (0 per second: without
-- limit; NULL: the server's), and until when (ms) cross-signing keys may be replaced without authentication
ALTER TABLE users ADD COLUMN rate_per_second BIGINT;
ALTER TABLE users ADD COLUMN rate_burst BIGINT;
ALTER TABLE users ADD COLUMN keys_open_until BIGINT NOT NULL DEFAULT 0;
