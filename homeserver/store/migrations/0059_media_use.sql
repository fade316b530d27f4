-- when a file was last fetched (noted at most twice a day), or uploaded. Of files from before this was noted nobody knows when
-- that was: they count as used when the newest of them was uploaded, about now.
ALTER TABLE media ADD COLUMN accessed BIGINT NOT NULL DEFAULT 0;
UPDATE media SET accessed = (SELECT max(created) FROM media);
CREATE INDEX media_accessed ON media (accessed, media_id) WHERE usr <> '' AND expires IS NULL;
