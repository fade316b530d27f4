package search

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/tidwall/gjson"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
)

// UserQuery is what a user searches for.
type UserQuery struct {
	Term       string
	Types      []string // event types; empty: all that are indexed
	Rooms      []int64
	Senders    []string // empty: anybody
	NotSenders []string
	HasURL     *bool
	Recent     bool // newest first; else the closest first
	After      *UserCursor
	Limit      int
	// Accept has the last word on each hit: whether the user may see it and wants it.
	Accept func(ctx context.Context, e *room.Event) (bool, error)
}

// UserCursor is a place in the order of a user's hits.
type UserCursor struct {
	Tier int
	Cursor
}

// UserHit is a message that a user found.
type UserHit struct {
	Event *room.Event
	Rank  float64 // 1 where the words stand as they were asked for, less where parts of words do
}

// UserPage is what a user found.
type UserPage struct {
	Hits       []UserHit
	Count      int64 // about how many there are in all
	Highlights []string
	Next       *UserCursor // nil: there is no more
}

const (
	maxRounds    = 12  // pages of the engine that are looked through for one page of the user
	maxHighlight = 100 // words that a client is told to highlight
)

// unavailable is the answer while the engine cannot be asked.
func unavailable(msg string) error { return mxerr.New(http.StatusServiceUnavailable, "M_UNKNOWN", msg) }

// available tells why no search is possible now.
func (s *Search) available() error {
	switch {
	case s.d.Private && !s.leads.Load() && !s.d.Store.SQLite():
		return unavailable("search is answered by another process of this server; with several processes it needs Elasticsearch")
	case !s.ready.Load():
		return unavailable("search is being prepared; please try again in a moment")
	}
	return nil
}

// Query asks the index as it is; on a server where nothing was ever said it finds nothing. Errors are for people: 503 where the
// engine cannot be asked.
func (s *Search) Query(ctx context.Context, q *Query) (*Page, error) {
	if err := s.available(); err != nil {
		return nil, err
	}
	page, err := s.d.Index.Search(ctx, q)
	if err == nil || ctx.Err() != nil || mxerr.As(err) != nil {
		return page, err
	}
	if errors.Is(err, ErrNotServed) {
		if some, err := s.anything(ctx); err != nil || !some {
			return &Page{}, err
		}
	} else {
		s.d.Log.Warn("search", "engine", s.d.Index.Name(), "error", err)
	}
	return nil, unavailable("search does not work at the moment; please try again in a moment")
}

// Users answers a user's query: messages as they read now, that hold the term, that Accept lets through.
func (s *Search) Users(ctx context.Context, q *UserQuery) (*UserPage, error) {
	text, err := Parse(q.Term)
	if err != nil {
		return nil, err
	}
	base := Query{View: ViewUser, Types: q.Types, Rooms: q.Rooms, Senders: q.Senders, NotSenders: q.NotSenders}
	if base.Rooms == nil {
		base.Rooms = []int64{}
	}
	if q.HasURL != nil && *q.HasURL {
		base.Flags = []string{FlagURL}
	} else if q.HasURL != nil {
		base.NotFlags = []string{FlagURL}
	}
	all := base
	all.Text = text.Expr()
	total, err := s.Query(ctx, &all)
	if err != nil {
		return nil, err
	}
	u := &userSearch{s: s, q: q, text: text, page: &UserPage{Count: total.Total}, marks: map[string]bool{}}
	var tiers []Expr
	if !q.Recent {
		tiers = text.Tiers()
	}
	tiers = append(tiers, text.Expr())
	if total.Total > 0 {
		err = u.run(ctx, &base, tiers)
	}
	u.highlight()
	return u.page, err
}

// userSearch is one query under way.
type userSearch struct {
	s      *Search
	q      *UserQuery
	text   *Text
	page   *UserPage
	marks  map[string]bool
	rounds int
	last   UserCursor // of the last hit in the page
}

// run goes through the tiers until the page is full and it is known whether there is more.
func (u *userSearch) run(ctx context.Context, base *Query, tiers []Expr) error {
	start := 0
	if u.q.After != nil {
		start = min(max(u.q.After.Tier, 0), len(tiers)-1)
	}
	for i := start; i < len(tiers); i++ {
		q := *base
		q.Text = Expr{All: []Expr{tiers[i]}}
		for k := range i {
			q.Text.All = append(q.Text.All, Expr{Not: &tiers[k]})
		}
		q.Limit = min(max(2*u.q.Limit, 20), 200)
		if u.q.After != nil && i == start {
			after := u.q.After.Cursor
			q.After = &after
		}
		full, err := u.tier(ctx, &q, i, rankOf(i, len(tiers)))
		if err != nil || full {
			return err
		}
	}
	return nil
}

// rankOf is 1 for the first of some tiers and falls with each.
func rankOf(i, tiers int) float64 { return float64(tiers-i) / float64(tiers) }

// tier reads hits of one tier; full tells that the page is complete.
func (u *userSearch) tier(ctx context.Context, q *Query, tier int, rank float64) (full bool, err error) {
	for {
		found, err := u.s.Query(ctx, q)
		if err != nil {
			return false, err
		}
		evs, err := u.check(ctx, found.Hits)
		if err != nil {
			return false, err
		}
		for i, h := range found.Hits {
			e := evs[i]
			if e == nil {
				continue
			}
			ok, err := u.q.Accept(ctx, e.Event)
			if err != nil {
				return false, err
			}
			if !ok {
				continue
			}
			if len(u.page.Hits) == u.q.Limit {
				u.page.Next = &UserCursor{u.last.Tier, u.last.Cursor}
				return true, nil
			}
			u.page.Hits = append(u.page.Hits, UserHit{Event: e.Event, Rank: rank})
			u.mark(e.texts)
			u.last = UserCursor{tier, h.Cursor}
		}
		if len(found.Hits) < q.Limit {
			return false, nil
		}
		last := found.Hits[len(found.Hits)-1].Cursor
		if u.rounds++; u.rounds >= maxRounds {
			u.page.Next = &UserCursor{tier, last} // the user goes on from here
			return true, nil
		}
		q.After = &last
		q.Limit = 200 // much of what is found is not to be seen
	}
}

// said is an event with what it says now.
type said struct {
	*room.Event
	texts []string
	file  string // mxc: address
}

// check reads the events of hits and looks whether they still say what is searched for; nil for those that do not.
func (u *userSearch) check(ctx context.Context, hits []Hit) ([]*said, error) {
	out := make([]*said, len(hits))
	if len(hits) == 0 {
		return out, nil
	}
	nids := make([]int64, len(hits))
	for i, h := range hits {
		nids[i] = h.NID
	}
	evs, err := u.s.d.Rooms.EventsByNID(ctx, nids)
	if err != nil {
		return nil, err
	}
	byNID := make(map[int64]*said, len(evs))
	for _, e := range evs {
		if e.Status == store.StatusAccepted && e.RedactedBy == 0 {
			byNID[e.NID] = &said{Event: e}
		}
	}
	if err := u.s.read(ctx, byNID); err != nil {
		return nil, err
	}
	var files []string
	for _, e := range byNID {
		if e.file != "" && !u.text.Matches(FoldAll(e.texts...)) {
			files = append(files, e.file)
		}
	}
	inFiles, err := u.s.fileTexts(ctx, files)
	if err != nil {
		return nil, err
	}
	for i, h := range hits {
		e := byNID[h.NID]
		if e == nil {
			continue
		}
		folded := FoldAll(e.texts...)
		if u.text.Matches(folded) || inFiles[e.file] != "" && u.text.Matches(folded+part+Fold(inFiles[e.file])) {
			out[i] = e
		}
	}
	return out, nil
}

// fileTexts reads the texts that were found in files.
func (s *Search) fileTexts(ctx context.Context, media []string) (map[string]string, error) {
	if len(media) == 0 {
		return nil, nil
	}
	out := make(map[string]string, len(media))
	err := s.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
		return tx.SearchFiles(media, func(f store.SearchFile) { out[f.Media] = string(f.Text) })
	})
	return out, err
}

// read finds what events say now: the newest of their edits.
func (s *Search) read(ctx context.Context, evs map[int64]*said) error {
	ids := make([]string, 0, len(evs))
	byID := make(map[string]*said, len(evs))
	for _, e := range evs {
		if _, isState := e.PDU.StateKey(); !isState {
			ids = append(ids, string(e.ID()))
			byID[string(e.ID())] = e
		}
	}
	edits := map[string][]store.RelatedEvent{}
	rows := map[int64]*store.Event{}
	err := s.d.Store.Read(ctx, func(tx *store.Tx) error {
		clear(edits)
		err := tx.Replacements(ids, func(r store.RelatedEvent) {
			if e := byID[r.Parent]; string(e.PDU.Sender()) == r.Sender && e.PDU.Type() == r.Type {
				edits[r.Parent] = append(edits[r.Parent], r)
			}
		})
		if err != nil || len(edits) == 0 {
			return err
		}
		var nids []int64
		for id, list := range edits {
			slices.SortFunc(list, func(a, b store.RelatedEvent) int {
				return cmp.Or(cmp.Compare(b.TS, a.TS), cmp.Compare(b.EventID, a.EventID))
			})
			edits[id] = list[:min(len(list), maxEdits)]
			for _, r := range edits[id] {
				nids = append(nids, r.NID)
			}
		}
		found, err := tx.EventsByNID(nids)
		for _, row := range found {
			rows[row.NID] = row
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, e := range evs {
		content := gjson.ParseBytes(e.PDU.Content())
		for _, r := range edits[string(e.ID())] {
			if row := rows[r.NID]; row != nil && row.Room == e.Room {
				if c := readVersion(row, nil).content.Get(`m\.new_content`); c.IsObject() {
					content = c
					break
				}
			}
		}
		e.texts = texts(e.PDU.Type(), content)
		if media := s.builder.fileOf(content); media != "" && s.builder.wants(e.PDU.Type(), content) {
			e.file = media
		}
	}
	return nil
}

// mark collects how the words are written where they were found.
func (u *userSearch) mark(texts []string) {
	for _, t := range texts {
		for _, m := range Highlight(t, u.text.Words(), 20) {
			word := t[m[0]:m[1]]
			if len(u.marks) < maxHighlight && utf8.RuneCountInString(word) <= MaxTerm {
				u.marks[strings.TrimSpace(word)] = true
			}
		}
	}
}

func (u *userSearch) highlight() {
	for _, w := range u.text.Words() {
		u.marks[w] = true
	}
	seen := map[string]bool{}
	for w := range u.marks {
		if low := strings.ToLower(w); w != "" && !seen[low] {
			seen[low] = true
			u.page.Highlights = append(u.page.Highlights, low)
		}
	}
	slices.Sort(u.page.Highlights)
}
