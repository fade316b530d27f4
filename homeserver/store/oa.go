package store

import (
	"fmt"
	"strings"

	"maunium.net/go/mautrix/id"
)

// The states of an approval.
const (
	OAOpen      = "open"
	OAApproved  = "approved"
	OARejected  = "rejected"
	OAWithdrawn = "withdrawn"
)

// OATask is something that an OA system wants decided.
type OATask struct {
	NID        int64
	System     string
	ExternalID string // of the OA system
	Version    int64  // counts changes of what is to be decided, and by whom
	Rev        int64  // counts all changes
	Status     string
	Assignee   id.UserID
	Applicant  id.UserID // "" for who has no account here
	LowRisk    bool      // reactions and replies decide
	StepUp     bool      // a second factor is needed
	Polled     bool      // the OA system was asked for it
	Brief      Content   // JSON: what lists show
	Doc        Content   // JSON: everything
	Created    int64     // ms
	Updated    int64

	Decided   int64 // ms; 0 while it is open
	DecidedBy string
	Via       string // page, reaction, reply, oa
	Ref       string // the event by which it was decided
	Reason    Content

	CardDue      int64 // ms; 0: the card shows what is true
	CardRoom     id.RoomID
	CardEvent    id.EventID
	CardUser     id.UserID
	ShownVersion int64
	ShownOrd     int64
	Reminds      int64 // how often to remind
	Reminded     int64 // how often it was done
	LastRemind   int64
	RemindAt     int64
	Told         string // the status that the applicant was told last
}

const oaTaskColumns = `nid, system, external_id, version, rev, status, assignee, applicant, low_risk, step_up, polled, brief, doc, created, updated,
	decided, decided_by, via, ref, reason, card_due, card_room, card_event, card_user, shown_version, shown_ord, reminds, reminded, last_remind, remind_at, told`

func (t *OATask) dest() []any {
	return []any{&t.NID, &t.System, &t.ExternalID, &t.Version, &t.Rev, &t.Status, &t.Assignee, &t.Applicant, &t.LowRisk, &t.StepUp, &t.Polled, &t.Brief, &t.Doc,
		&t.Created, &t.Updated, &t.Decided, &t.DecidedBy, &t.Via, &t.Ref, &t.Reason, &t.CardDue, &t.CardRoom, &t.CardEvent, &t.CardUser, &t.ShownVersion,
		&t.ShownOrd, &t.Reminds, &t.Reminded, &t.LastRemind, &t.RemindAt, &t.Told}
}

func (tx *Tx) oaTasks(sql string, args ...any) ([]OATask, error) {
	var out []OATask
	err := tx.Each(`SELECT `+oaTaskColumns+` FROM oa_tasks `+sql, args, func(r *Row) error {
		var t OATask
		err := r.Scan(t.dest()...)
		out = append(out, t)
		return err
	})
	return out, err
}

func (tx *Tx) oaTask(sql string, args ...any) (OATask, bool, error) {
	list, err := tx.oaTasks(sql, args...)
	if err != nil || len(list) == 0 {
		return OATask{}, false, err
	}
	return list[0], true, nil
}

// OATask reads an approval by its number.
func (tx *Tx) OATask(nid int64) (OATask, bool, error) { return tx.oaTask(`WHERE nid = $1`, nid) }

// OATaskOf reads an approval by what its system calls it.
func (tx *Tx) OATaskOf(system, externalID string) (OATask, bool, error) {
	return tx.oaTask(`WHERE system = $1 AND external_id = $2`, system, externalID)
}

// NumberOATasks takes numbers for approvals that are about to be inserted and returns the last one.
func (tx *Tx) NumberOATasks(n int) (last int64, err error) {
	_, err = tx.Get([]any{&last}, `UPDATE oa_counter SET n = n + $1 WHERE id = 1 RETURNING n`, n)
	return last, err
}

// InsertOATask adds an open approval, which has its number; false means that its system has one of this id.
func (tx *Tx) InsertOATask(t *OATask) (bool, error) {
	n, err := tx.Exec(`INSERT INTO oa_tasks (nid, system, external_id, version, rev, status, assignee, applicant, low_risk, step_up, polled, brief, doc,
		created, updated, card_due, remind_at) VALUES ($1, $2, $3, 1, 1, 'open', $4, $5, $6, $7, $8, $9, $10, $11, $11, $11, $12)
		ON CONFLICT (system, external_id) DO NOTHING`,
		t.NID, t.System, t.ExternalID, t.Assignee, t.Applicant, t.LowRisk, t.StepUp, t.Polled, t.Brief, t.Doc, t.Created, t.RemindAt)
	if err != nil {
		return false, fmt.Errorf("insert approval %s of %s: %w", t.ExternalID, t.System, err)
	}
	t.Version, t.Rev, t.Status, t.Updated, t.CardDue = 1, 1, OAOpen, t.Created, t.Created
	return n > 0, nil
}

var oaTaskCols = []Col{
	{"nid", Int}, {"system", Text}, {"external_id", Text}, {"version", Int}, {"rev", Int}, {"status", Text}, {"assignee", Text}, {"applicant", Text},
	{"low_risk", Int}, {"step_up", Int}, {"polled", Int}, {"brief", Bytes}, {"doc", Bytes}, {"created", Int}, {"updated", Int}, {"card_due", Int}, {"remind_at", Int},
}

// InsertOATasks adds open approvals, which have successive numbers, but those that their systems have already. It tells how many
// were added.
func (tx *Tx) InsertOATasks(list []OATask) (added int64, err error) {
	if len(list) == 0 {
		return 0, nil
	}
	err = tx.Insert("oa_tasks", oaTaskCols, len(list), func(i int) []any {
		t := &list[i]
		return []any{t.NID, t.System, t.ExternalID, 1, 1, OAOpen, string(t.Assignee), string(t.Applicant), t.LowRisk, t.StepUp, t.Polled, t.Brief, t.Doc,
			t.Created, t.Created, t.Created, t.RemindAt}
	}, "ON CONFLICT (system, external_id) DO NOTHING")
	if err != nil {
		return 0, fmt.Errorf("insert %d approvals: %w", len(list), err)
	}
	_, err = tx.Get([]any{&added}, `SELECT count(*) FROM oa_tasks WHERE nid >= $1 AND nid <= $2`, list[0].NID, list[len(list)-1].NID)
	return added, err
}

// ChangeOATask replaces what is to be decided, or by whom, of an open approval of a version, which gets the next one. False means
// that it is not open any more or has another version.
func (tx *Tx) ChangeOATask(t OATask, now int64) (bool, error) {
	n, err := tx.Exec(`UPDATE oa_tasks SET version = version + 1, rev = rev + 1, assignee = $3, applicant = $4, low_risk = $5, step_up = $6, brief = $7,
		doc = $8, updated = $9, card_due = $9, remind_at = $10 WHERE nid = $1 AND version = $2 AND status = 'open'`,
		t.NID, t.Version, t.Assignee, t.Applicant, t.LowRisk, t.StepUp, t.Brief, t.Doc, now, t.RemindAt)
	return n > 0, err
}

// DecideOATask ends an open approval. Version 0 means any, assignee "" anybody. False means that it was not open, that it has another
// version by now or that it is somebody else's: whoever comes second always gets false, on whatever node.
func (tx *Tx) DecideOATask(t OATask, version int64, assignee id.UserID, now, cardDue int64) (bool, error) {
	n, err := tx.Exec(`UPDATE oa_tasks SET status = $4, rev = rev + 1, updated = $5, decided = $5, decided_by = $6, via = $7, ref = $8, reason = $9,
		card_due = $10, remind_at = 0 WHERE nid = $1 AND status = 'open' AND ($2 = 0 OR version = $2) AND ($3 = '' OR assignee = $3)`,
		t.NID, version, assignee, t.Status, now, t.DecidedBy, t.Via, t.Ref, t.Reason, cardDue)
	return n > 0, err
}

// RemindOATask notes that the assignee is to be reminded of an open approval, unless that was done after a time.
func (tx *Tx) RemindOATask(nid, now, after, next int64) (bool, error) {
	n, err := tx.Exec(`UPDATE oa_tasks SET reminds = reminds + 1, rev = rev + 1, last_remind = $2, remind_at = $4, card_due = $2
		WHERE nid = $1 AND status = 'open' AND last_remind <= $3`, nid, now, after, next)
	return n > 0, err
}

// OAToRemind lists open approvals whose assignees are due to be reminded.
func (tx *Tx) OAToRemind(now int64, limit int) ([]OATask, error) {
	return tx.oaTasks(`WHERE remind_at <> 0 AND remind_at <= $1 AND status = 'open' ORDER BY remind_at LIMIT $2`, now, limit)
}

// OACardsDue lists approvals whose cards have to be made or changed.
func (tx *Tx) OACardsDue(now int64, limit int) ([]OATask, error) {
	return tx.oaTasks(`WHERE card_due <> 0 AND card_due <= $1 ORDER BY card_due, nid LIMIT $2`, now, limit)
}

// NextOACard is when a card is due next (ms), 0 for never.
func (tx *Tx) NextOACard() (int64, error) {
	var n int64
	_, err := tx.Get([]any{&n}, `SELECT coalesce(min(card_due), 0) FROM oa_tasks WHERE card_due <> 0`)
	return n, err
}

// ShownOATask notes what the card shows. It stays due if the approval has changed since.
func (tx *Tx) ShownOATask(t OATask) error {
	_, err := tx.Exec(`UPDATE oa_tasks SET card_room = $3, card_event = $4, card_user = $5, shown_version = $6, shown_ord = $7, reminded = $8, told = $9,
		card_due = CASE WHEN rev = $2 THEN 0 ELSE card_due END WHERE nid = $1`,
		t.NID, t.Rev, t.CardRoom, t.CardEvent, t.CardUser, t.ShownVersion, t.ShownOrd, t.Reminded, t.Told)
	return err
}

// OAShown is a card of an open approval as it stands in a room.
type OAShown struct {
	Task     int64
	Event    id.EventID
	Room     id.RoomID
	User     id.UserID // whose room it is
	Version  int64
	Ord      int64
	Replaces bool // it is an edit of the card
}

// NoteOAShown notes from where in the room on which version of an approval is seen, unless something later was noted.
func (tx *Tx) NoteOAShown(c OAShown) error {
	if c.Replaces {
		_, err := tx.Exec(`UPDATE oa_tasks SET shown_version = $2, shown_ord = $3 WHERE nid = $1 AND shown_ord < $3`, c.Task, c.Version, c.Ord)
		return err
	}
	_, err := tx.Exec(`UPDATE oa_tasks SET shown_version = $2, shown_ord = $3, card_event = $4, card_room = $5, card_user = $6 WHERE nid = $1 AND shown_ord < $3`,
		c.Task, c.Version, c.Ord, c.Event, c.Room, c.User)
	return err
}

// DueOACard makes a card due at a time, unless it is due before.
func (tx *Tx) DueOACard(nid, at int64) error {
	_, err := tx.Exec(`UPDATE oa_tasks SET rev = rev + 1, card_due = $2 WHERE nid = $1`, nid, at)
	return err
}

// LaterOACard puts off a card that could not be made.
func (tx *Tx) LaterOACard(nid, rev, at int64) error {
	_, err := tx.Exec(`UPDATE oa_tasks SET card_due = $3 WHERE nid = $1 AND rev = $2`, nid, rev, at)
	return err
}

// OABrief is an approval as lists show it.
type OABrief struct {
	NID, Version int64
	System       string
	ExternalID   string
	Status       string
	Assignee     id.UserID
	Created      int64
	Brief        Content
}

// OAQuery says which approvals a list has. Empty fields do not restrict.
type OAQuery struct {
	System   string
	Assignee id.UserID
	Status   string
	After    int64 // number; those behind it
	Limit    int
}

// OABriefs calls fn with approvals in the order of their numbers.
func (tx *Tx) OABriefs(q OAQuery, fn func(OABrief) error) error {
	where, args := []string{"nid > $1"}, []any{q.After, q.Limit}
	and := func(cond string, v any) {
		args = append(args, v)
		where = append(where, fmt.Sprintf(cond, len(args)))
	}
	if q.System != "" {
		and("system = $%d", q.System)
	}
	if q.Assignee != "" {
		and("assignee = $%d", q.Assignee)
	}
	switch q.Status {
	case "":
	case OAOpen: // spelled out: this is what the index is for
		where = append(where, "status = 'open'")
	default:
		and("status = $%d", q.Status)
	}
	return tx.Each(`SELECT nid, version, system, external_id, status, assignee, created, brief FROM oa_tasks
		WHERE `+strings.Join(where, " AND ")+` ORDER BY nid LIMIT $2`, args, func(r *Row) error {
		var b OABrief
		if err := r.Scan(&b.NID, &b.Version, &b.System, &b.ExternalID, &b.Status, &b.Assignee, &b.Created, &b.Brief); err != nil {
			return err
		}
		return fn(b)
	})
}

// CountOAOpen counts a user's open approvals.
func (tx *Tx) CountOAOpen(user id.UserID) (int64, error) {
	var n int64
	_, err := tx.Get([]any{&n}, `SELECT count(*) FROM oa_tasks WHERE assignee = $1 AND status = 'open'`, user)
	return n, err
}

// OAOpenPolled lists what a system's open approvals are called that it was asked for before a time.
func (tx *Tx) OAOpenPolled(system string, before int64) ([]string, error) {
	var out []string
	err := tx.Each(`SELECT external_id FROM oa_tasks WHERE system = $1 AND status = 'open' AND polled = 1 AND created < $2`, []any{system, before}, func(r *Row) error {
		var s string
		err := r.Scan(&s)
		out = append(out, s)
		return err
	})
	return out, err
}

// OAToken is a link of a card.
type OAToken struct {
	Hash    string
	Task    int64
	Version int64
	User    id.UserID
	Expires int64
	Used    int64
}

// InsertOAToken adds a link.
func (tx *Tx) InsertOAToken(t OAToken) error {
	_, err := tx.Exec(`INSERT INTO oa_tokens (hash, task, version, usr, expires) VALUES ($1, $2, $3, $4, $5)`, t.Hash, t.Task, t.Version, t.User, t.Expires)
	return err
}

// OAToken reads a link.
func (tx *Tx) OAToken(hash string) (OAToken, bool, error) {
	t := OAToken{Hash: hash}
	found, err := tx.Get([]any{&t.Task, &t.Version, &t.User, &t.Expires, &t.Used}, `SELECT task, version, usr, expires, used FROM oa_tokens WHERE hash = $1`, hash)
	return t, found, err
}

// UseOAToken takes a link that nobody used and that has not expired.
func (tx *Tx) UseOAToken(hash string, now int64) (bool, error) {
	n, err := tx.Exec(`UPDATE oa_tokens SET used = $2 WHERE hash = $1 AND used = 0 AND expires > $2`, hash, now)
	return n > 0, err
}

// PurgeOATokens forgets links that have long expired.
func (tx *Tx) PurgeOATokens(before int64) error {
	_, err := tx.Exec(`DELETE FROM oa_tokens WHERE expires < $1`, before)
	return err
}

// InsertOACard notes a message that stands for an approval.
func (tx *Tx) InsertOACard(eventID id.EventID, nid int64, user id.UserID) error {
	_, err := tx.Exec(`INSERT INTO oa_cards (event_id, task, usr) VALUES ($1, $2, $3) ON CONFLICT (event_id) DO NOTHING`, eventID, nid, user)
	return err
}

// OACard finds the approval and the person that a message is for.
func (tx *Tx) OACard(eventID id.EventID) (nid int64, user id.UserID, found bool, err error) {
	found, err = tx.Get([]any{&nid, &user}, `SELECT task, usr FROM oa_cards WHERE event_id = $1`, eventID)
	return nid, user, found, err
}

// OARoom is the room of a user's approvals, "" for none.
func (tx *Tx) OARoom(user id.UserID) (id.RoomID, error) {
	var roomID id.RoomID
	_, err := tx.Get([]any{&roomID}, `SELECT room_id FROM oa_rooms WHERE usr = $1`, user)
	return roomID, err
}

// SetOARoom notes the room of a user's approvals.
func (tx *Tx) SetOARoom(user id.UserID, roomID id.RoomID, nid int64) error {
	_, err := tx.Exec(`INSERT INTO oa_rooms (usr, room_id, nid) VALUES ($1, $2, $3) ON CONFLICT (usr) DO UPDATE SET room_id = excluded.room_id, nid = excluded.nid`, user, roomID, nid)
	return err
}

// OARoomUsers tells whose approvals rooms are, of those that are such.
func (tx *Tx) OARoomUsers(nids []int64) (map[int64]id.UserID, error) {
	out := map[int64]id.UserID{}
	err := tx.Each(`SELECT nid, usr FROM oa_rooms WHERE nid IN @int($1)`, []any{nids}, func(r *Row) error {
		var n int64
		var u id.UserID
		err := r.Scan(&n, &u)
		out[n] = u
		return err
	})
	return out, err
}

// The states of a callback.
const (
	OACallbackWaiting int64 = iota
	OACallbackDone
	OACallbackRefused
	OACallbackGivenUp
)

// OACallback is something that an OA system is told.
type OACallback struct {
	Task    int64
	Version int64
	Kind    string
	System  string
	Body    Content
	Created int64
	Tries   int64
	Next    int64
	State   int64
	Answer  string
}

const oaCallbackColumns = `task, version, kind, system, body, created, tries, next_at, state, answer`

func (c *OACallback) dest() []any {
	return []any{&c.Task, &c.Version, &c.Kind, &c.System, &c.Body, &c.Created, &c.Tries, &c.Next, &c.State, &c.Answer}
}

// InsertOACallback queues something to tell.
func (tx *Tx) InsertOACallback(c OACallback) error {
	_, err := tx.Exec(`INSERT INTO oa_callbacks (task, version, kind, system, body, created, next_at) VALUES ($1, $2, $3, $4, $5, $6, $6)
		ON CONFLICT (task, version, kind) DO NOTHING`, c.Task, c.Version, c.Kind, c.System, c.Body, c.Created)
	return err
}

// OACallbacksDue lists what a system is to be told now.
func (tx *Tx) OACallbacksDue(system string, now int64, limit int) ([]OACallback, error) {
	var out []OACallback
	err := tx.Each(`SELECT `+oaCallbackColumns+` FROM oa_callbacks WHERE system = $1 AND state = 0 AND next_at <= $2 ORDER BY next_at LIMIT $3`,
		[]any{system, now, limit}, func(r *Row) error {
			var c OACallback
			err := r.Scan(c.dest()...)
			out = append(out, c)
			return err
		})
	return out, err
}

// NextOACallback is when a system is to be told something next (ms), 0 for never.
func (tx *Tx) NextOACallback(system string) (int64, error) {
	var n int64
	_, err := tx.Get([]any{&n}, `SELECT coalesce(min(next_at), 0) FROM oa_callbacks WHERE system = $1 AND state = 0`, system)
	return n, err
}

// OACallback reads what was told of a version.
func (tx *Tx) OACallback(nid, version int64, kind string) (OACallback, bool, error) {
	var c OACallback
	found, err := tx.Get(c.dest(), `SELECT `+oaCallbackColumns+` FROM oa_callbacks WHERE task = $1 AND version = $2 AND kind = $3`, nid, version, kind)
	return c, found, err
}

// TriedOACallback notes what became of an attempt.
func (tx *Tx) TriedOACallback(c OACallback) error {
	_, err := tx.Exec(`UPDATE oa_callbacks SET tries = $4, next_at = $5, state = $6, answer = $7 WHERE task = $1 AND version = $2 AND kind = $3 AND state = 0`,
		c.Task, c.Version, c.Kind, c.Tries, c.Next, c.State, c.Answer)
	return err
}

// OAOpenOf reads a user's open approvals, the oldest first.
func (tx *Tx) OAOpenOf(user id.UserID, limit int) ([]OATask, error) {
	return tx.oaTasks(`WHERE assignee = $1 AND status = 'open' ORDER BY nid LIMIT $2`, user, limit)
}
