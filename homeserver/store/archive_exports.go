package store

import "fmt"

// The states of an export.
const (
	ExportWaiting     = 0 // for its download
	ExportRunning     = 1
	ExportDone        = 2
	ExportCancelled   = 3
	ExportInterrupted = 4
)

// ArchiveExport is an export of the archive that an officer asked for. Times are ms since 1970, 0 for what has not happened.
type ArchiveExport struct {
	ID      string
	User    string
	Reason  string
	Format  string
	Asked   Content // the query, as JSON
	About   int64   // how many entries the index found
	Created int64

	State   int64
	Run     int64 // number of the download
	Began   int64
	Seen    int64 // when the process that sends it last said how far it is
	Ended   int64
	Entries int64 // sent
	Bytes   int64 // sent
	SHA256  string
}

const archiveExportColumns = `id, usr, reason, format, asked, about, created, state, run, began, seen, ended, entries, bytes, sha256`

func (e *ArchiveExport) dest() []any {
	return []any{&e.ID, &e.User, &e.Reason, &e.Format, &e.Asked, &e.About, &e.Created, &e.State, &e.Run, &e.Began, &e.Seen, &e.Ended, &e.Entries, &e.Bytes, &e.SHA256}
}

// AddArchiveExport notes an export that waits for its download.
func (tx *Tx) AddArchiveExport(e *ArchiveExport) error {
	_, err := tx.Exec(`INSERT INTO archive_exports (id, usr, reason, format, asked, about, created) VALUES ($1, $2, $3, $4, $5, $6, $7)`,
		e.ID, e.User, e.Reason, e.Format, e.Asked, e.About, e.Created)
	if err != nil {
		return fmt.Errorf("note an export: %w", err)
	}
	return nil
}

// ArchiveExport reads an export of a user.
func (tx *Tx) ArchiveExport(id, user string) (e ArchiveExport, found bool, err error) {
	found, err = tx.Get(e.dest(), `SELECT `+archiveExportColumns+` FROM archive_exports WHERE id = $1 AND usr = $2`, id, user)
	return e, found, err
}

// ArchiveExports reads the exports of a user, the newest first.
func (tx *Tx) ArchiveExports(user string, limit int) ([]ArchiveExport, error) {
	return list(tx, (*ArchiveExport).dest, `SELECT `+archiveExportColumns+` FROM archive_exports WHERE usr = $1 ORDER BY created DESC, id LIMIT $2`, user, limit)
}

// RunningArchiveExports counts the exports that are being sent to a user and were heard of since a time.
func (tx *Tx) RunningArchiveExports(user string, since int64) (n int64, err error) {
	_, err = tx.Get([]any{&n}, `SELECT count(*) FROM archive_exports WHERE usr = $1 AND state = 1 AND seen >= $2`, user, since)
	return n, err
}

// BeginArchiveExport begins to send an export from its first entry. ok is false where it is being sent already and was heard
// of since a time.
func (tx *Tx) BeginArchiveExport(id, user string, now, since int64) (run int64, ok bool, err error) {
	ok, err = tx.Get([]any{&run}, `UPDATE archive_exports SET state = 1, run = run + 1, began = $3, seen = $3, ended = 0, entries = 0, bytes = 0, sha256 = ''
		WHERE id = $1 AND usr = $2 AND (state <> 1 OR seen < $4) RETURNING run`, id, user, now, since)
	return run, ok, err
}

// SeeArchiveExport notes how far a download is; false where it was cancelled, or another one has begun.
func (tx *Tx) SeeArchiveExport(id string, run, entries, bytes, now int64) (bool, error) {
	n, err := tx.Exec(`UPDATE archive_exports SET seen = $3, entries = $4, bytes = $5 WHERE id = $1 AND run = $2 AND state = 1`, id, run, now, entries, bytes)
	return n > 0, err
}

// EndArchiveExport notes how a download ended; false where it was cancelled before, or another one has begun.
func (tx *Tx) EndArchiveExport(e *ArchiveExport) (bool, error) {
	n, err := tx.Exec(`UPDATE archive_exports SET state = $3, seen = $4, ended = $4, entries = $5, bytes = $6, sha256 = $7 WHERE id = $1 AND run = $2 AND state = 1`,
		e.ID, e.Run, e.State, e.Ended, e.Entries, e.Bytes, e.SHA256)
	return n > 0, err
}

// CancelArchiveExport cancels an export that waits or is being sent; false where it is neither.
func (tx *Tx) CancelArchiveExport(id, user string, now int64) (bool, error) {
	n, err := tx.Exec(`UPDATE archive_exports SET state = 3, ended = $3 WHERE id = $1 AND usr = $2 AND state IN (0, 1)`, id, user, now)
	return n > 0, err
}

// DropArchiveExports forgets exports that were asked for before a time and are not being sent.
func (tx *Tx) DropArchiveExports(before, since int64) error {
	_, err := tx.Exec(`DELETE FROM archive_exports WHERE created < $1 AND (state <> 1 OR seen < $2)`, before, since)
	return err
}
