package store

import "fmt"

// archiveMedia keeps files that are about to be deleted, if there is an archive.
func (tx *Tx) archiveMedia(origin string, mediaIDs []string) error {
	_, err := tx.Exec(`INSERT INTO archive_media (origin, media_id, usr, created, type, filename, size, sha256)
		SELECT origin, media_id, usr, created, type, filename, size, sha256 FROM media
		WHERE origin = $1 AND media_id IN @text($2) AND usr <> '' AND sha256 IS NOT NULL
		AND EXISTS (SELECT 1 FROM archive_head WHERE id = 1 AND active = 1) ON CONFLICT DO NOTHING`, origin, mediaIDs)
	if err != nil {
		return fmt.Errorf("keep files for the archive: %w", err)
	}
	return nil
}

// ArchivedMedia gives a file's row as officers see it, nil if there is none: also of one that users do not get any more, for
// it was hidden or deleted.
func (tx *Tx) ArchivedMedia(origin, mediaID string) (*Media, error) {
	m, err := tx.Media(origin, mediaID)
	if err != nil || m != nil && m.SHA256 != nil {
		return m, err
	}
	m = &Media{Origin: origin, ID: mediaID}
	found, err := tx.Get([]any{&m.User, &m.Created, &m.Type, &m.Filename, &m.Size, &m.SHA256},
		`SELECT usr, created, type, filename, size, sha256 FROM archive_media WHERE origin = $1 AND media_id = $2`, origin, mediaID)
	if err != nil {
		return nil, fmt.Errorf("read archived media %s/%s: %w", origin, mediaID, err)
	}
	if !found {
		return nil, nil
	}
	return m, nil
}
