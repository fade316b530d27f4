package store

import "fmt"

// The states of a file whose text was looked for.
const (
	SearchFileText   = 1
	SearchFileNone   = 2
	SearchFileFailed = 3
)

// KeepLog makes sure that entries behind a position stay in the log for the follower of this name.
func (tx *Tx) KeepLog(follower string, pos int64) error {
	_, err := tx.Exec(`INSERT INTO followers (name, pos, owner, fence, lease_until) VALUES ($1, $2, '', 0, 0)
		ON CONFLICT (name) DO UPDATE SET pos = excluded.pos`, follower, pos)
	return err
}

// LeaveLog forgets a follower: the log is not kept for it any more.
func (tx *Tx) LeaveLog(follower string) error {
	_, err := tx.Exec(`DELETE FROM followers WHERE name = $1`, follower)
	return err
}

// LogBounds gives the positions of the oldest entry of the log and of its head, and the number of the newest event. An
// empty log has its oldest entry behind the head.
func (tx *Tx) LogBounds() (oldest, head, newest int64, err error) {
	_, err = tx.Get([]any{&head, &newest, &oldest}, `SELECT pos, event_nid, coalesce((SELECT min(pos) FROM log), pos + 1) FROM log_head WHERE id = 1`)
	return oldest, head, newest, err
}

// EventsAfter reads events in the order of their numbers: after < nid <= upto, at most limit.
func (tx *Tx) EventsAfter(after, upto int64, limit int) ([]*Event, error) {
	return tx.events(eventSelect+`WHERE nid > $1 AND nid <= $2 ORDER BY nid LIMIT $3`, after, upto, limit)
}

// Replacements reads the events that replace any of some others, as their relations say; redacted ones are not among them.
func (tx *Tx) Replacements(parents []string, fn func(RelatedEvent)) error {
	return tx.Each(`SELECT r.parent, r.nid, e.ord, e.ts, e.event_id, r.rel_type, r.type, r.sender
		FROM relations r JOIN events e ON e.nid = r.nid
		WHERE r.parent IN @text($1) AND r.rel_type = 'm.replace' AND e.status = 0 AND e.redacted_by IS NULL`,
		[]any{parents}, func(r *Row) error {
			var e RelatedEvent
			if err := r.Scan(&e.Parent, &e.NID, &e.Ord, &e.TS, &e.EventID, &e.RelType, &e.Type, &e.Sender); err != nil {
				return err
			}
			fn(e)
			return nil
		})
}

// RedactedBodies reads what events said before they were redacted.
func (tx *Tx) RedactedBodies(nids []int64, fn func(nid int64, body []byte)) error {
	return tx.Each(`SELECT nid, body FROM redacted_events WHERE nid IN @int($1)`, []any{nids}, func(r *Row) error {
		var nid int64
		var body Content
		if err := r.Scan(&nid, &body); err != nil {
			return err
		}
		fn(nid, body)
		return nil
	})
}

// SearchFile is what was found in a file.
type SearchFile struct {
	Media  string // mxc: address
	Status int64
	Done   int64  // when, ms since 1970
	Reason string // why there is no text; "" where there is
	Text   Content
}

// SearchFiles reads what was found in files.
func (tx *Tx) SearchFiles(media []string, fn func(SearchFile)) error {
	return tx.Each(`SELECT media, status, done, coalesce(reason, ''), body FROM search_files WHERE media IN @text($1)`, []any{media}, func(r *Row) error {
		var f SearchFile
		if err := r.Scan(&f.Media, &f.Status, &f.Done, &f.Reason, &f.Text); err != nil {
			return err
		}
		fn(f)
		return nil
	})
}

// SaveSearchFile notes what was found in a file.
func (tx *Tx) SaveSearchFile(f SearchFile) error {
	var text any
	if len(f.Text) > 0 {
		text = f.Text
	}
	_, err := tx.Exec(`INSERT INTO search_files (media, status, done, reason, body) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (media) DO UPDATE SET status = excluded.status, done = excluded.done, reason = excluded.reason, body = excluded.body`,
		f.Media, f.Status, f.Done, nonEmpty(f.Reason), text)
	return err
}

// DropSearchFiles forgets the texts of files that are gone, at most limit.
func (tx *Tx) DropSearchFiles(limit int) (int64, error) {
	return tx.Exec(`DELETE FROM search_files WHERE media IN (SELECT f.media FROM search_files f
		WHERE NOT EXISTS (SELECT 1 FROM media m WHERE 'mxc://' || m.origin || '/' || m.media_id = f.media)
		AND NOT EXISTS (SELECT 1 FROM archive_media a WHERE 'mxc://' || a.origin || '/' || a.media_id = f.media) LIMIT $1)`, limit)
}

// WantedFile is a file whose text is to be found.
type WantedFile struct {
	NID   int64  // the message's event
	Media string // mxc: address
	Due   int64  // ms since 1970
	Tries int64
}

var wantedCols = []Col{{"nid", Int}, {"media", Text}, {"due", Int}, {"tries", Int}}

// WantSearchFiles asks for the text of files; what was asked for before stays as it is.
func (tx *Tx) WantSearchFiles(files []WantedFile) error {
	if len(files) == 0 {
		return nil
	}
	return tx.Insert("search_wanted", wantedCols, len(files), func(i int) []any {
		return []any{files[i].NID, files[i].Media, files[i].Due, files[i].Tries}
	}, "ON CONFLICT DO NOTHING")
}

// WantedSearchFiles reads files that are due, the longest waiting first.
func (tx *Tx) WantedSearchFiles(now int64, limit int) ([]WantedFile, error) {
	var out []WantedFile
	err := tx.Each(`SELECT nid, media, due, tries FROM search_wanted WHERE due <= $1 ORDER BY due LIMIT $2`, []any{now, limit}, func(r *Row) error {
		var f WantedFile
		err := r.Scan(&f.NID, &f.Media, &f.Due, &f.Tries)
		out = append(out, f)
		return err
	})
	return out, err
}

// LaterSearchFile puts a file off.
func (tx *Tx) LaterSearchFile(nid, due int64) error {
	_, err := tx.Exec(`UPDATE search_wanted SET due = $2, tries = tries + 1 WHERE nid = $1`, nid, due)
	return err
}

// GotSearchFile takes a file off the list.
func (tx *Tx) GotSearchFile(nid int64) error {
	_, err := tx.Exec(`DELETE FROM search_wanted WHERE nid = $1`, nid)
	return err
}

// SearchRebuild is the last rebuilding of the search index; times are ms since 1970, 0 for what has not happened.
type SearchRebuild struct {
	Requested, Began, Ended int64
	Done, Total             int64
	Reason                  string // why it failed or what holds it up; "" while all is well
}

// SearchRebuild reads the row of the last rebuilding; zero where there was none.
func (tx *Tx) SearchRebuild() (b SearchRebuild, err error) {
	_, err = tx.Get([]any{&b.Requested, &b.Began, &b.Ended, &b.Done, &b.Total, &b.Reason},
		`SELECT requested, began, ended, done, total, reason FROM search_rebuild WHERE id = 1`)
	return b, err
}

// RequestSearchRebuild asks for a rebuilding; one that is waiting or under way is not asked for again.
func (tx *Tx) RequestSearchRebuild(now int64) error {
	_, err := tx.Exec(`INSERT INTO search_rebuild (id, requested, began, ended, done, total, reason) VALUES (1, $1, 0, 0, 0, 0, '')
		ON CONFLICT (id) DO UPDATE SET requested = excluded.requested, began = 0, ended = 0, done = 0, total = 0, reason = ''
		WHERE search_rebuild.ended > 0`, now)
	if err != nil {
		return fmt.Errorf("ask for a new search index: %w", err)
	}
	return nil
}

// SaveSearchRebuild notes how far the rebuilding is.
func (tx *Tx) SaveSearchRebuild(b SearchRebuild) error {
	_, err := tx.Exec(`INSERT INTO search_rebuild (id, requested, began, ended, done, total, reason) VALUES (1, $1, $2, $3, $4, $5, $6)
		ON CONFLICT (id) DO UPDATE SET requested = excluded.requested, began = excluded.began, ended = excluded.ended,
		done = excluded.done, total = excluded.total, reason = excluded.reason`,
		b.Requested, b.Began, b.Ended, b.Done, b.Total, b.Reason)
	return err
}

// SearchStatus is how far the search index was when the process that keeps it last said so.
type SearchStatus struct {
	Engine       string
	Docs, Bytes  int64
	Pos          int64 // of the log, up to which all is indexed
	Scan, ScanTo int64 // of the events that were there before
	Updated      int64 // ms since 1970
}

// SaveSearchStatus notes how far the index is.
func (tx *Tx) SaveSearchStatus(s SearchStatus) error {
	_, err := tx.Exec(`INSERT INTO search_status (id, engine, docs, bytes, log_pos, scan, scan_to, updated) VALUES (1, $1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (id) DO UPDATE SET engine = excluded.engine, docs = excluded.docs, bytes = excluded.bytes, log_pos = excluded.log_pos,
		scan = excluded.scan, scan_to = excluded.scan_to, updated = excluded.updated`, s.Engine, s.Docs, s.Bytes, s.Pos, s.Scan, s.ScanTo, s.Updated)
	return err
}

// SearchStatus reads what was noted last, and the log's head; found is false where nothing ever was.
func (tx *Tx) SearchStatus() (s SearchStatus, head int64, found bool, err error) {
	if _, err = tx.Get([]any{&head}, `SELECT pos FROM log_head WHERE id = 1`); err != nil {
		return s, 0, false, err
	}
	found, err = tx.Get([]any{&s.Engine, &s.Docs, &s.Bytes, &s.Pos, &s.Scan, &s.ScanTo, &s.Updated},
		`SELECT engine, docs, bytes, log_pos, scan, scan_to, updated FROM search_status WHERE id = 1`)
	return s, head, found, err
}

// CreateBodies reads the m.room.create events of rooms.
func (tx *Tx) CreateBodies(rooms []int64, fn func(room int64, body []byte)) error {
	return tx.Each(`SELECT s.room, e.body FROM room_state s JOIN events e ON e.nid = s.nid
		WHERE s.room IN @int($1) AND s.type = 'm.room.create' AND s.state_key = ''`, []any{rooms}, func(r *Row) error {
		var room int64
		var body Content
		if err := r.Scan(&room, &body); err != nil {
			return err
		}
		fn(room, body)
		return nil
	})
}

// ExistingRooms tells which rooms of some numbers there are.
func (tx *Tx) ExistingRooms(nids []int64) (map[int64]bool, error) {
	out := make(map[int64]bool, len(nids))
	err := tx.Each(`SELECT nid FROM rooms WHERE nid IN @int($1)`, []any{nids}, func(r *Row) error {
		var nid int64
		err := r.Scan(&nid)
		out[nid] = true
		return err
	})
	return out, err
}

// ExistingEvents tells which events of some numbers there are.
func (tx *Tx) ExistingEvents(nids []int64) (map[int64]bool, error) {
	out := make(map[int64]bool, len(nids))
	err := tx.Each(`SELECT nid FROM events WHERE nid IN @int($1)`, []any{nids}, func(r *Row) error {
		var nid int64
		err := r.Scan(&nid)
		out[nid] = true
		return err
	})
	return out, err
}
