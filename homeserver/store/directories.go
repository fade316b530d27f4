package store

import "fmt"

// Kinds of entries of a company's directory.
const (
	DirectoryUser  = 1
	DirectoryGroup = 2
	DirectoryUnit  = 3
)

// DirectoryItem is an entry of a company's directory as it was seen last.
type DirectoryItem struct {
	ID     string // objectGUID, entryUUID
	Kind   int64
	DN     string
	Digest []byte
	Data   Content // JSON
}

// DirectoryItems gives all entries that are known of a directory.
func (tx *Tx) DirectoryItems(directory string, fn func(DirectoryItem) error) error {
	return tx.Each(`SELECT external_id, kind, dn, digest, data FROM directory_entries WHERE directory = $1`, []any{directory}, func(r *Row) error {
		var e DirectoryItem
		if err := r.Scan(&e.ID, &e.Kind, &e.DN, &e.Digest, &e.Data); err != nil {
			return err
		}
		return fn(e)
	})
}

var directoryCols = []Col{{"directory", Text}, {"external_id", Text}, {"kind", Int}, {"dn", Text}, {"digest", Bytes}, {"data", Bytes}}

// PutDirectoryItems stores what entries are now.
func (tx *Tx) PutDirectoryItems(directory string, items []DirectoryItem) error {
	return tx.Insert("directory_entries", directoryCols, len(items), func(i int) []any {
		e := &items[i]
		return []any{directory, e.ID, e.Kind, e.DN, e.Digest, e.Data}
	}, `ON CONFLICT (directory, external_id) DO UPDATE SET kind = excluded.kind, dn = excluded.dn, digest = excluded.digest, data = excluded.data`)
}

// DeleteDirectoryItem forgets an entry.
func (tx *Tx) DeleteDirectoryItem(directory, externalID string) error {
	_, err := tx.Exec(`DELETE FROM directory_entries WHERE directory = $1 AND external_id = $2`, directory, externalID)
	return err
}

// LDAPState reads how far a directory was followed, and what is asked of whoever follows it; nil where there is none.
func (tx *Tx) LDAPState(directory string) (state, request []byte, err error) {
	var s, r Content
	_, err = tx.Get([]any{&s, &r}, `SELECT state, request FROM directory_state WHERE directory = $1`, directory)
	return s, r, err
}

// PutLDAPState stores how far a directory was followed.
func (tx *Tx) PutLDAPState(directory string, state []byte) error {
	_, err := tx.Exec(`INSERT INTO directory_state (directory, state) VALUES ($1, $2)
		ON CONFLICT (directory) DO UPDATE SET state = excluded.state`, directory, Content(state))
	return err
}

// PutLDAPRequest stores what is asked of whoever follows a directory; nil: nothing.
func (tx *Tx) PutLDAPRequest(directory string, request []byte) error {
	_, err := tx.Exec(`INSERT INTO directory_state (directory, request) VALUES ($1, $2)
		ON CONFLICT (directory) DO UPDATE SET request = excluded.request`, directory, Content(request))
	return err
}

// DirectoryRun is one run of a synchronisation.
type DirectoryRun struct {
	ID, Directory  string
	Started, Ended int64   // ms; Ended 0: not yet
	Report         Content // JSON
}

// PutDirectoryRun stores a run.
func (tx *Tx) PutDirectoryRun(run DirectoryRun) error {
	_, err := tx.Exec(`INSERT INTO directory_runs (id, directory, started, ended, report) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (id) DO UPDATE SET ended = excluded.ended, report = excluded.report`, run.ID, run.Directory, run.Started, run.Ended, run.Report)
	if err != nil {
		return fmt.Errorf("store a run of directory %s: %w", run.Directory, err)
	}
	return nil
}

// DirectoryRuns reads the newest runs of a directory, the newest first.
func (tx *Tx) DirectoryRuns(directory string, limit int) ([]DirectoryRun, error) {
	var out []DirectoryRun
	err := tx.Each(`SELECT id, directory, started, ended, report FROM directory_runs WHERE directory = $1 ORDER BY started DESC, id DESC LIMIT $2`,
		[]any{directory, limit}, func(r *Row) error {
			var run DirectoryRun
			if err := r.Scan(&run.ID, &run.Directory, &run.Started, &run.Ended, &run.Report); err != nil {
				return err
			}
			out = append(out, run)
			return nil
		})
	return out, err
}

// TrimDirectoryRuns forgets all but the newest runs of a directory.
func (tx *Tx) TrimDirectoryRuns(directory string, keep int) error {
	_, err := tx.Exec(`DELETE FROM directory_runs WHERE directory = $1 AND id NOT IN
		(SELECT id FROM directory_runs WHERE directory = $1 ORDER BY started DESC, id DESC LIMIT $2)`, directory, keep)
	return err
}

// DirectoryCounts counts what is known of a directory: its entries by kind, and the accounts of its source that can be
// used and that cannot.
func (tx *Tx) DirectoryCounts(directory, source string) (kinds map[int64]int64, active, barred int64, err error) {
	kinds = map[int64]int64{}
	err = tx.Each(`SELECT kind, count(*) FROM directory_entries WHERE directory = $1 GROUP BY kind`, []any{directory}, func(r *Row) error {
		var kind, n int64
		if err := r.Scan(&kind, &n); err != nil {
			return err
		}
		kinds[kind] = n
		return nil
	})
	if err != nil {
		return nil, 0, 0, err
	}
	err = tx.Each(`SELECT active, count(*) FROM external_ids WHERE source = $1 GROUP BY active`, []any{source}, func(r *Row) error {
		var on bool
		var n int64
		if err := r.Scan(&on, &n); err != nil {
			return err
		}
		if on {
			active = n
		} else {
			barred = n
		}
		return nil
	})
	return kinds, active, barred, err
}
