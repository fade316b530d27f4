package store

import (
	"fmt"

	"maunium.net/go/mautrix/id"
)

// Media is a file of the content repository. Its bytes lie outside the database under their SHA-256.
type Media struct {
	Origin      string // server name
	ID          string
	User        id.UserID // who uploaded it; "" for images of URL previews
	Created     int64     // ms since 1970
	Expires     *int64    // nil once the content is there, else until when it may come
	Type        string
	Filename    string
	Size        int64
	SHA256      []byte
	Public      bool // may be read without a token
	Quarantined bool
	Accessed    int64 // when it was last fetched or uploaded, within a day; ms since 1970
}

// InsertMedia adds a file, or announces one.
func (tx *Tx) InsertMedia(m Media) error {
	_, err := tx.Exec(`INSERT INTO media (origin, media_id, usr, created, expires, type, filename, size, sha256, public, accessed)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $4)`,
		m.Origin, m.ID, m.User, m.Created, m.Expires, m.Type, m.Filename, m.Size, m.SHA256, m.Public)
	if err != nil {
		return fmt.Errorf("insert media %s/%s: %w", m.Origin, m.ID, err)
	}
	return nil
}

// Media gives a file's row, nil if there is none.
func (tx *Tx) Media(origin, mediaID string) (*Media, error) {
	m := &Media{Origin: origin, ID: mediaID}
	found, err := tx.Get([]any{&m.User, &m.Created, &m.Expires, &m.Type, &m.Filename, &m.Size, &m.SHA256, &m.Public, &m.Quarantined, &m.Accessed},
		`SELECT usr, created, expires, type, filename, size, sha256, public, quarantined, accessed FROM media WHERE origin = $1 AND media_id = $2`,
		origin, mediaID)
	if err != nil {
		return nil, fmt.Errorf("read media %s/%s: %w", origin, mediaID, err)
	}
	if !found {
		return nil, nil
	}
	return m, nil
}

// PendingMedia counts the user's announced uploads that may still come, and says when the first of them expires.
func (tx *Tx) PendingMedia(user id.UserID, now int64) (n int, first int64, err error) {
	_, err = tx.Get([]any{&n, &first}, `SELECT count(*), coalesce(min(expires), 0) FROM media
		WHERE usr = $1 AND expires IS NOT NULL AND expires > $2`, user, now)
	return n, first, err
}

// CompleteMedia notes the content of an announced upload; false if it is not waiting for one (any more).
func (tx *Tx) CompleteMedia(m Media, now int64) (bool, error) {
	n, err := tx.Exec(`UPDATE media SET expires = NULL, type = $3, filename = $4, size = $5, sha256 = $6, accessed = $7
		WHERE origin = $1 AND media_id = $2 AND expires IS NOT NULL AND expires > $7`,
		m.Origin, m.ID, m.Type, m.Filename, m.Size, m.SHA256, now)
	if err != nil {
		return false, fmt.Errorf("complete media %s/%s: %w", m.Origin, m.ID, err)
	}
	return n > 0, nil
}

// QuarantineMedia hides a file from everybody, or shows it again; false if there is no such file.
func (tx *Tx) QuarantineMedia(origin, mediaID string, hidden bool) (bool, error) {
	n, err := tx.Exec(`UPDATE media SET quarantined = $3 WHERE origin = $1 AND media_id = $2`, origin, mediaID, hidden)
	return n > 0, err
}

// DeleteExpiredMedia drops announced uploads that never came, at most limit of them.
func (tx *Tx) DeleteExpiredMedia(before int64, limit int) (int64, error) {
	return tx.Exec(`DELETE FROM media WHERE (origin, media_id) IN
		(SELECT origin, media_id FROM media WHERE expires IS NOT NULL AND expires < $1 LIMIT $2)`, before, limit)
}

// URLPreview gives a cached preview; an empty body means that the page could not be read.
func (tx *Tx) URLPreview(url []byte, now int64) (body []byte, found bool, err error) {
	var c Content
	found, err = tx.Get([]any{&c}, `SELECT body FROM url_previews WHERE url = $1 AND expires > $2`, url, now)
	return c, found, err
}

// SetURLPreview caches a preview.
func (tx *Tx) SetURLPreview(url, body []byte, now, expires int64) error {
	_, err := tx.Exec(`INSERT INTO url_previews (url, fetched, expires, body) VALUES ($1, $2, $3, $4)
		ON CONFLICT (url) DO UPDATE SET fetched = excluded.fetched, expires = excluded.expires, body = excluded.body`,
		url, now, expires, Content(body))
	return err
}

// DeleteOldPreviews drops previews that have expired, and the images of previews made before the given time. It gives the
// hashes of those images' contents, which may still be those of other files (MediaContentUsed).
func (tx *Tx) DeleteOldPreviews(now, imagesBefore int64, limit int) (hashes [][]byte, err error) {
	if _, err := tx.Exec(`DELETE FROM url_previews WHERE url IN (SELECT url FROM url_previews WHERE expires < $1 LIMIT $2)`, now, limit); err != nil {
		return nil, err
	}
	err = tx.Each(`DELETE FROM media WHERE (origin, media_id) IN
		(SELECT origin, media_id FROM media WHERE usr = '' AND created < $1 LIMIT $2) RETURNING sha256`, []any{imagesBefore, limit}, func(r *Row) error {
		var h []byte
		if err := r.Scan(&h); err != nil {
			return err
		}
		if h != nil {
			hashes = append(hashes, h)
		}
		return nil
	})
	return hashes, err
}

// MediaContentUsed tells whether any file has this content, or had it and is in the archive.
func (tx *Tx) MediaContentUsed(sha256 []byte) (bool, error) {
	var one int64
	return tx.Get([]any{&one}, `SELECT 1 FROM media WHERE sha256 = $1 UNION ALL SELECT 1 FROM archive_media WHERE sha256 = $1 LIMIT 1`, sha256)
}
