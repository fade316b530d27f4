package clientapi

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/filter"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// SearchQuery is what search is asked for on behalf of a user.
type SearchQuery struct {
	Term                string
	Types               []string // event types; empty: all
	Rooms               []int64  // numbers of rooms
	Senders, NotSenders []string
	HasURL              *bool
	Recent              bool
	After               *SearchCursor
	Limit               int
	Upto                int64 // log position of the newest event in these rooms
	// Accept has the last word on each hit.
	Accept func(ctx context.Context, e *room.Event) (bool, error)
}

// SearchCursor is a place in the order of hits.
type SearchCursor struct {
	Tier    int
	TS, NID int64
}

// SearchHit is a message that was found.
type SearchHit struct {
	Event *room.Event
	Rank  float64
}

// SearchPage is what was found.
type SearchPage struct {
	Hits       []SearchHit
	Count      int64
	Highlights []string
	Next       *SearchCursor // nil: there is no more
}

// SearchFunc finds messages by their texts; it says itself what is wrong with a term.
type SearchFunc func(ctx context.Context, q *SearchQuery) (*SearchPage, error)

// searchRoutes is the endpoint of server-side search.
// Spec: client-server API, "Server Side Search".
func (a *API) searchRoutes() []web.Route {
	return []web.Route{{Pattern: "POST /_matrix/client/v3/search", Auth: web.NoGuest, Rate: web.RateRead, Handler: a.search}}
}

type searchRequest struct {
	Categories *struct {
		RoomEvents *searchCriteria `json:"room_events"`
	} `json:"search_categories"`
}

type searchCriteria struct {
	Term    *string        `json:"search_term"`
	Keys    *[]string      `json:"keys"`
	Filter  jsontext.Value `json:"filter"`
	OrderBy *string        `json:"order_by"`
	Context *struct {
		Before  *int64 `json:"before_limit"`
		After   *int64 `json:"after_limit"`
		Profile bool   `json:"include_profile"`
	} `json:"event_context"`
	State     bool `json:"include_state"`
	Groupings struct {
		By []struct {
			Key string `json:"key"`
		} `json:"group_by"`
	} `json:"groupings"`
}

const (
	defaultContext = 5   // events before and after a hit
	maxContext     = 50  // the most of them
	maxSearchPage  = 100 // hits in one response
)

// searchTypes are the event types behind the keys of a search.
var searchTypes = map[string][]string{
	"content.body":  {"m.room.message", "m.sticker"},
	"content.name":  {"m.room.name"},
	"content.topic": {"m.room.topic"},
}

// search handles POST /search.
func (a *API) search(w http.ResponseWriter, r *http.Request) error {
	in, err := web.ReadJSON[searchRequest](r)
	if err != nil {
		return err
	}
	if in.Categories == nil {
		return mxerr.MissingParam("'search_categories' is missing: it says what to search in")
	}
	if a.Search == nil {
		return mxerr.New(http.StatusBadRequest, "M_UNKNOWN", "search is switched off on this server")
	}
	if in.Categories.RoomEvents == nil {
		return web.WriteRaw(w, []byte(`{"search_categories":{}}`))
	}
	s, err := a.newSearch(r, in.Categories.RoomEvents)
	if err != nil {
		return err
	}
	out, err := s.run(r.Context())
	if err != nil {
		return err
	}
	return web.WriteRaw(w, out)
}

// searching is one search under way.
type searching struct {
	a      *API
	who    *web.Identity
	in     *searchCriteria
	filter *filter.EventFilter
	query  SearchQuery
	only   [2]string // the group that is paged through: its key and value
	groups []string
	views  map[int64]*roomView // by room number; nil: nothing to be seen
	hits   []SearchHit
}

// roomView is a room as the user may see it.
type roomView struct {
	acc *access
	rd  *room.Reader
	ok  func(e *room.Event) bool
}

// newSearch checks a request.
func (a *API) newSearch(r *http.Request, in *searchCriteria) (*searching, error) {
	s := &searching{a: a, who: web.Requester(r), in: in, views: map[int64]*roomView{}}
	if in.Term == nil {
		return nil, mxerr.MissingParam("'search_categories.room_events.search_term' is missing: the words to look for")
	}
	s.query = SearchQuery{Term: *in.Term}
	if in.Keys != nil {
		s.query.Types = []string{}
		for _, k := range *in.Keys {
			t, ok := searchTypes[k]
			if !ok {
				return nil, mxerr.InvalidParam(fmt.Sprintf("'keys' may hold content.body, content.name and content.topic, not %s", printable(k)))
			}
			s.query.Types = append(s.query.Types, t...)
		}
	}
	if in.OrderBy != nil {
		if s.query.Recent = *in.OrderBy == "recent"; !s.query.Recent && *in.OrderBy != "rank" {
			return nil, mxerr.InvalidParam("'order_by' must be rank or recent")
		}
	}
	if c := in.Context; c != nil && (c.Before != nil && *c.Before < 0 || c.After != nil && *c.After < 0) {
		return nil, mxerr.InvalidParam("'before_limit' and 'after_limit' must not be negative")
	}
	for _, g := range in.Groupings.By {
		if g.Key != "room_id" && g.Key != "sender" {
			return nil, mxerr.InvalidParam("results can be grouped by room_id and by sender, not by " + printable(g.Key))
		}
		if !slices.Contains(s.groups, g.Key) {
			s.groups = append(s.groups, g.Key)
		}
	}
	if len(in.Filter) > 0 && in.Filter.Kind() != 'n' {
		f, err := filter.ParseEvents(in.Filter)
		if err != nil {
			return nil, err
		}
		s.filter = f
		s.query.HasURL = f.ContainsURL
	}
	s.query.Senders, s.query.NotSenders = s.filter.Senders()
	s.query.Limit = min(s.filter.LimitOr(defaultPage), maxSearchPage)
	return s, s.from(web.QueryString(r, "next_batch"))
}

// from reads the token to go on from: the place, and the group where it is that of a group.
func (s *searching) from(token string) error {
	if token == "" {
		return nil
	}
	wrong := mxerr.InvalidParam("'next_batch' must be a token from an earlier response to the same search")
	raw, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		return wrong
	}
	f := strings.SplitN(string(raw), " ", 5)
	if len(f) != 5 {
		return wrong
	}
	var n [3]int64
	for i := range n {
		if n[i], err = strconv.ParseInt(f[i], 10, 64); err != nil || n[i] < 0 {
			return wrong
		}
	}
	if n[0] > 9 || f[3] != "" && f[3] != "room_id" && f[3] != "sender" || strings.ContainsRune(f[4], 0) {
		return wrong
	}
	s.query.After = &SearchCursor{Tier: int(n[0]), TS: n[1], NID: n[2]}
	s.only = [2]string{f[3], f[4]}
	if f[3] == "sender" {
		if len(s.query.Senders) > 0 && !slices.Contains(s.query.Senders, f[4]) {
			return wrong
		}
		s.query.Senders = []string{f[4]}
	}
	return nil
}

func batchToken(c *SearchCursor, group, value string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(fmt.Sprintf("%d %d %d %s %s", c.Tier, c.TS, c.NID, group, value)))
}

// run searches and renders the response.
func (s *searching) run(ctx context.Context) ([]byte, error) {
	page := &SearchPage{}
	rooms, err := s.rooms(ctx)
	if err != nil {
		return nil, err
	}
	s.query.Rooms, s.query.Accept = rooms, s.accept
	if s.filter.MatchesNothing() || s.query.Types != nil && len(s.query.Types) == 0 {
		s.query.Rooms = nil // the term is still checked
	}
	if page, err = s.a.Search(ctx, &s.query); err != nil {
		return nil, err
	}
	s.hits = page.Hits
	out := append([]byte(`{"search_categories":{"room_events":{"count":`), strconv.FormatInt(max(page.Count, int64(len(page.Hits))), 10)...)
	out = append(out, `,"highlights":`...)
	out = appendStrings(out, page.Highlights)
	out = append(out, `,"results":[`...)
	for i := range s.hits {
		if i > 0 {
			out = append(out, ',')
		}
		if out, err = s.result(ctx, out, &s.hits[i]); err != nil {
			return nil, err
		}
	}
	out = append(out, ']')
	if s.in.State {
		if out, err = s.state(ctx, out); err != nil {
			return nil, err
		}
	}
	if len(s.groups) > 0 {
		out = s.grouped(out, page.Next)
	}
	if page.Next != nil {
		out = append(out, `,"next_batch":`...)
		out = append(out, quoted(batchToken(page.Next, s.only[0], s.only[1]))...)
	}
	return append(out, "}}}"...), nil
}

func appendStrings(dst []byte, list []string) []byte {
	dst = append(dst, '[')
	for i, s := range list {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, quoted(s)...)
	}
	return append(dst, ']')
}

// rooms lists the rooms to search: those that the user is in or has left and not forgotten, and those that were upgraded
// to one of them, as the filter wants.
func (s *searching) rooms(ctx context.Context) ([]int64, error) {
	u, err := s.a.Rooms.User(ctx, s.who.UserID)
	if err != nil {
		return nil, err
	}
	known := map[id.RoomID]bool{}
	var list []*room.Room
	u.EachRoom(func(ur *room.UserRoom) {
		known[ur.Room.ID()] = true
		left := ur.Membership == room.MembershipLeave || ur.Membership == room.MembershipBan
		if (ur.Membership == room.MembershipJoin || left && !ur.Forgotten) && s.filter.MatchRoom(string(ur.Room.ID())) {
			list = append(list, ur.Room)
		}
	})
	taken := make(map[int64]bool, len(list))
	var out []int64
	for _, r := range list {
		taken[r.NID()] = true
		out = append(out, r.NID())
		s.query.Upto = max(s.query.Upto, r.LastPos())
	}
	older, err := s.upgraded(ctx, out)
	if err != nil {
		return nil, err
	}
	for _, nid := range older {
		if !taken[nid] {
			taken[nid] = true
			out = append(out, nid)
		}
	}
	if s.only[0] != "room_id" {
		return out, nil
	}
	r, err := s.a.Rooms.Room(ctx, id.RoomID(s.only[1]))
	if mxerr.Is(err, "M_NOT_FOUND") || err == nil && !taken[r.NID()] {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return []int64{r.NID()}, nil
}

const maxUpgrades = 20 // rooms that are followed back from one

// upgraded finds the rooms that were replaced by others, step by step. What the user may not see is sorted out later.
func (s *searching) upgraded(ctx context.Context, rooms []int64) ([]int64, error) {
	var out []int64
	seen := map[id.RoomID]bool{}
	for step := 0; len(rooms) > 0 && step < maxUpgrades; step++ {
		var before []id.RoomID
		var ask []int64
		for _, nid := range rooms {
			if p, ok := s.a.predecessors.Load(nid); ok {
				before = append(before, p.(id.RoomID))
			} else {
				ask = append(ask, nid)
			}
		}
		if len(ask) > 0 {
			err := s.a.Store.ReadOne(ctx, func(tx *store.Tx) error {
				return tx.CreateBodies(ask, func(nid int64, body []byte) {
					p := id.RoomID(gjson.GetBytes(body, "content.predecessor.room_id").Str)
					s.a.predecessors.Store(nid, p) // never changes
					before = append(before, p)
				})
			})
			if err != nil {
				return nil, err
			}
		}
		rooms = nil
		for _, p := range before {
			if p == "" || seen[p] || s.filter.ExcludesRoom(string(p)) {
				continue
			}
			seen[p] = true
			r, err := s.a.Rooms.Room(ctx, p)
			if mxerr.Is(err, "M_NOT_FOUND") {
				continue
			}
			if err != nil {
				return nil, err
			}
			out, rooms = append(out, r.NID()), append(rooms, r.NID())
		}
	}
	return out, nil
}

// view is a room as the user may see it; nil where that is nothing at all.
func (s *searching) view(ctx context.Context, nid int64) (*roomView, error) {
	if v, ok := s.views[nid]; ok {
		return v, nil
	}
	s.views[nid] = nil
	r, err := s.a.Rooms.RoomByNID(ctx, nid)
	if mxerr.Is(err, "M_NOT_FOUND") {
		return nil, nil // deleted meanwhile
	}
	if err != nil {
		return nil, err
	}
	acc, err := s.a.readable(ctx, r.ID(), s.who.UserID)
	if mxerr.Is(err, "M_FORBIDDEN") {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	rd, err := s.a.reader(ctx, s.who, acc)
	if err != nil {
		return nil, err
	}
	v := &roomView{acc: acc, rd: rd, ok: func(e *room.Event) bool { return shows(rd, e) }}
	s.views[nid] = v
	return v, nil
}

// accept tells whether the user may see a hit and whether the filter lets it through. The filter's rooms were looked at
// before: rooms that are followed back are not among them.
func (s *searching) accept(ctx context.Context, e *room.Event) (bool, error) {
	v, err := s.view(ctx, e.Room)
	if err != nil || v == nil || !v.ok(e) {
		return false, err
	}
	m := filter.EventMeta{Type: e.PDU.Type(), Sender: string(e.PDU.Sender()), Content: e.PDU.Content()}
	if s.filter.NeedsRelations() && s.filter.MatchType(m.Type) && s.filter.MatchSender(m.Sender) {
		m.Relations = s.a.relationsFor(ctx, v.acc, v.rd, e)
	}
	return s.filter.Match(m), nil
}

// result renders one hit.
func (s *searching) result(ctx context.Context, out []byte, h *SearchHit) ([]byte, error) {
	v := s.views[h.Event.Room]
	out = append(out, `{"rank":`...)
	out = strconv.AppendFloat(out, h.Rank, 'g', 6, 64)
	out = append(out, `,"result":`...)
	out, err := s.a.Rooms.AppendEvent(ctx, out, v.acc.room, h.Event, v.rd)
	if err != nil {
		return nil, err
	}
	if s.in.Context != nil {
		if out, err = s.context(ctx, append(out, `,"context":`...), v, h.Event); err != nil {
			return nil, err
		}
	}
	return append(out, '}'), nil
}

// context renders what was said around a hit.
func (s *searching) context(ctx context.Context, out []byte, v *roomView, e *room.Event) ([]byte, error) {
	limit := func(p *int64) int {
		if p == nil {
			return defaultContext
		}
		return int(min(*p, maxContext))
	}
	before, err := s.a.timelinePage(ctx, v.acc, room.TimelineQuery{From: e.Ord, Backwards: true, Limit: limit(s.in.Context.Before), Match: v.ok}, nil)
	if err != nil {
		return nil, err
	}
	forward := room.TimelineQuery{From: e.Ord, Limit: limit(s.in.Context.After), Match: v.ok}
	if v.acc.until != 0 {
		forward.To = v.acc.until + 1
	}
	after, err := s.a.timelinePage(ctx, v.acc, forward, nil)
	if err != nil {
		return nil, err
	}
	start, end := e.Ord-1, e.Ord
	if len(before.Events) > 0 {
		start = before.End - 1
	}
	if len(after.Events) > 0 {
		end = after.End
	}
	out = append(append(out, `{"start":`...), quoted(room.Token(start).String())...)
	out = append(append(out, `,"end":`...), quoted(room.Token(end).String())...)
	out = append(out, `,"events_before":`...)
	if out, err = s.a.Rooms.AppendEvents(ctx, out, v.acc.room, before.Events, v.rd); err != nil {
		return nil, err
	}
	out = append(out, `,"events_after":`...)
	if out, err = s.a.Rooms.AppendEvents(ctx, out, v.acc.room, after.Events, v.rd); err != nil {
		return nil, err
	}
	if s.in.Context.Profile {
		all := slices.Concat(before.Events, []*room.Event{e}, after.Events)
		if out, err = s.profiles(ctx, append(out, `,"profile_info":`...), v, e, all); err != nil {
			return nil, err
		}
	}
	return append(out, '}'), nil
}

// profiles renders the senders of some events as they were called when e was sent.
func (s *searching) profiles(ctx context.Context, out []byte, v *roomView, e *room.Event, evs []*room.Event) ([]byte, error) {
	out = append(out, '{')
	seen := map[id.UserID]bool{}
	for _, x := range evs {
		user := x.PDU.Sender()
		if seen[user] {
			continue
		}
		seen[user] = true
		member, err := s.a.Rooms.StateAtOne(ctx, v.acc.room, max(e.Ord, x.Ord), typeMember, string(user))
		if err != nil {
			return nil, err
		}
		if member == nil {
			continue
		}
		if len(seen) > 1 && out[len(out)-1] != '{' {
			out = append(out, ',')
		}
		out = append(append(out, quoted(string(user))...), ":{"...)
		content := member.PDU.Content()
		comma := false
		for _, field := range []string{"displayname", "avatar_url"} {
			value := gjson.GetBytes(content, field)
			if value.Type != gjson.String || field == "avatar_url" && !strings.HasPrefix(value.Str, "mxc://") {
				continue
			}
			if comma {
				out = append(out, ',')
			}
			comma = true
			out = append(append(append(out, quoted(field)...), ':'), quoted(value.Str)...)
		}
		out = append(out, '}')
	}
	return append(out, '}'), nil
}

// state renders the state of the rooms of all hits: the current one, or for those who left that of the time when they left.
func (s *searching) state(ctx context.Context, out []byte) ([]byte, error) {
	out = append(out, `,"state":{`...)
	seen := map[int64]bool{}
	for _, h := range s.hits {
		if seen[h.Event.Room] {
			continue
		}
		if len(seen) > 0 {
			out = append(out, ',')
		}
		seen[h.Event.Room] = true
		v := s.views[h.Event.Room]
		var evs []*room.Event
		var err error
		if v.acc.until == 0 {
			evs, err = v.acc.room.State(ctx)
		} else {
			evs, err = s.stateAt(ctx, v)
		}
		if err != nil {
			return nil, err
		}
		out = append(append(out, quoted(string(v.acc.room.ID()))...), ':')
		if out, err = s.a.Rooms.AppendEvents(ctx, out, v.acc.room, evs, plainReader(s.who, v.acc)); err != nil {
			return nil, err
		}
	}
	return append(out, '}'), nil
}

func (s *searching) stateAt(ctx context.Context, v *roomView) ([]*room.Event, error) {
	nids, err := s.a.Rooms.StateAt(ctx, v.acc.room, v.acc.until)
	if err != nil {
		return nil, err
	}
	list := make([]int64, 0, len(nids))
	for _, nid := range nids {
		list = append(list, nid)
	}
	return s.a.Rooms.EventsByNID(ctx, list)
}

// grouped renders the groups of the hits, in the order of their first hits.
func (s *searching) grouped(out []byte, next *SearchCursor) []byte {
	out = append(out, `,"groups":{`...)
	for i, key := range s.groups {
		if i > 0 {
			out = append(out, ',')
		}
		var order []string
		members := map[string][]string{}
		for _, h := range s.hits {
			value := string(h.Event.PDU.Sender())
			if key == "room_id" {
				value = string(s.views[h.Event.Room].acc.room.ID())
			}
			if members[value] == nil {
				order = append(order, value)
			}
			members[value] = append(members[value], string(h.Event.ID()))
		}
		out = append(append(out, quoted(key)...), ":{"...)
		for n, value := range order {
			if n > 0 {
				out = append(out, ',')
			}
			out = append(append(out, quoted(value)...), `:{"order":`...)
			out = strconv.AppendInt(out, int64(n), 10)
			out = append(out, `,"results":`...)
			out = appendStrings(out, members[value])
			if next != nil && (s.only[0] == "" || s.only == [2]string{key, value}) {
				out = append(append(out, `,"next_batch":`...), quoted(batchToken(next, key, value))...)
			}
			out = append(out, '}')
		}
		out = append(out, '}')
	}
	return append(out, '}')
}
