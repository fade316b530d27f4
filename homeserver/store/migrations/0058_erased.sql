CREATE INDEX users_erased ON users (user_id) WHERE erased = 1;
