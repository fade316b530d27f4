package audit

import (
	"context"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// Stored is an entry as it was read: Before and After are nil or jsontext.Value.
type Stored struct {
	ID    string
	Batch int64 // of the chain; 0: not chained yet
	Entry
}

// Filter chooses entries; what is empty chooses all.
type Filter struct {
	Actor   id.UserID
	Target  string
	Kind    string
	IP      string
	Result  Result
	Actions []string // whole actions or groups: "signin" is every "signin.…" too
	// From and To bound the time, To exclusively.
	From, To time.Time
	// Text is looked for in every field, in any case.
	Text string
	// Limit is the most entries of a page; 50 if it is 0, 1000 at most.
	Limit int
	// Page is Page.Next of the page before; "" for the first.
	Page string
	// OldestFirst turns the order around.
	OldestFirst bool
}

// Page is a part of what a Filter chooses, newest first.
type Page struct {
	Entries []Stored
	// Next is where the next page begins, "" behind the last. A page may be empty and have a next one: a search for text
	// reads only so many entries at a time.
	Next string
}

const (
	scanChunk = 500
	maxScan   = 20_000 // entries that one query for text looks at
)

// Query reads a page of the log. Errors: M_INVALID_PARAM for a page that is none.
func (l *Log) Query(ctx context.Context, f Filter) (Page, error) {
	limit := f.Limit
	if limit <= 0 {
		limit = 50
	}
	limit = min(limit, 1000)
	if f.Page != "" && len(f.Page) != idLength {
		return Page{}, mxerr.InvalidParam("this page does not exist")
	}
	sf := store.AuditFilter{Actor: f.Actor, Target: f.Target, Kind: f.Kind, IP: f.IP, Result: string(f.Result), Actions: f.Actions}
	if !f.From.IsZero() {
		sf.After = firstID(f.From.UnixMilli())
	}
	if !f.To.IsZero() {
		sf.Before = firstID(f.To.UnixMilli())
	}
	var page Page
	needle := strings.ToLower(f.Text)
	at := f.Page
	for scanned := 0; ; {
		if at != "" {
			if f.OldestFirst {
				sf.After = max(sf.After, at)
			} else if sf.Before == "" || at < sf.Before {
				sf.Before = at
			}
		}
		chunk := limit - len(page.Entries) + 1
		if needle != "" {
			chunk = scanChunk
		}
		var rows []store.AuditEntry
		err := l.Store.Read(ctx, func(tx *store.Tx) error {
			var err error
			rows, err = tx.AuditEntries(sf, f.OldestFirst, chunk)
			return err
		})
		if err != nil {
			return Page{}, err
		}
		for i := range rows {
			if needle != "" && !contains(&rows[i], needle) {
				at = rows[i].ID
				continue
			}
			if len(page.Entries) == limit {
				page.Next = page.Entries[limit-1].ID
				return page, nil
			}
			e, err := stored(&rows[i])
			if err != nil {
				return Page{}, err
			}
			page.Entries = append(page.Entries, e)
			at = rows[i].ID
		}
		scanned += len(rows)
		switch {
		case len(rows) < chunk:
			return page, nil
		case scanned >= maxScan:
			page.Next = at
			return page, nil
		}
	}
}

func contains(e *store.AuditEntry, needle string) bool {
	for _, s := range []string{
		string(e.Actor), e.Target, e.Action, e.Reason, e.IP, e.Agent, string(e.Device), e.Session, e.Kind, e.Result, e.ID, string(e.Body),
	} {
		if strings.Contains(strings.ToLower(s), needle) {
			return true
		}
	}
	return false
}

func stored(row *store.AuditEntry) (Stored, error) {
	s := Stored{ID: row.ID, Batch: row.Batch, Entry: Entry{
		Time:   row.Time,
		Source: Source{Actor: row.Actor, Kind: row.Kind, Device: row.Device, Session: row.Session, IP: row.IP, Agent: row.Agent},
		Action: row.Action, Target: row.Target, Result: Result(row.Result), Reason: row.Reason,
	}}
	if row.Body == nil {
		return s, nil
	}
	var b entryBody
	if err := json.Unmarshal(row.Body, &b); err != nil {
		// Somebody changed it in the database. Verify names it; reading shows what there is.
		s.Details = map[string]any{"unreadable": string(row.Body)}
		return s, nil
	}
	if b.Before != nil {
		s.Before = b.Before
	}
	if b.After != nil {
		s.After = b.After
	}
	if b.Details != nil {
		if err := json.Unmarshal(b.Details, &s.Details); err != nil {
			s.Details = map[string]any{"unreadable": string(b.Details)}
		}
	}
	return s, nil
}

type storedJSON struct {
	ID      string         `json:"id"`
	Time    string         `json:"time"`
	Actor   id.UserID      `json:"actor,omitempty"`
	Kind    string         `json:"kind"`
	Device  id.DeviceID    `json:"device,omitempty"`
	Session string         `json:"session,omitempty"`
	IP      string         `json:"ip,omitempty"`
	Agent   string         `json:"agent,omitempty"`
	Action  string         `json:"action"`
	Target  string         `json:"target,omitempty"`
	Result  Result         `json:"result"`
	Reason  string         `json:"reason,omitempty"`
	Before  any            `json:"before,omitzero"`
	After   any            `json:"after,omitzero"`
	Details map[string]any `json:"details,omitempty"`
	Batch   int64          `json:"batch,omitzero"`
}

// MarshalJSON implements json.Marshaler: the form in which entries are exported and shown.
func (s Stored) MarshalJSON() ([]byte, error) {
	return json.Marshal(storedJSON{
		ID: s.ID, Time: time.UnixMilli(s.Time).UTC().Format("2006-01-02T15:04:05.000Z"), Actor: s.Actor, Kind: s.Kind, Device: s.Device,
		Session: s.Session, IP: s.IP, Agent: s.Agent, Action: s.Action, Target: s.Target, Result: s.Result, Reason: s.Reason,
		Before: s.Before, After: s.After, Details: s.Details, Batch: s.Batch,
	}, json.Deterministic(true))
}
