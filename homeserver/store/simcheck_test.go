package store_test

import (
	"context"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
)

// line is a room as the database has it at the end, replayed from its first event.
type line struct {
	room   *simRoom
	row    store.Room
	rows   []*store.Event
	pdus   []*event.Event
	states []stateAt // one for each state event
	ext    map[id.EventID]bool
	byID   map[id.EventID]int
}

// stateAt is the state from a position on.
type stateAt struct {
	pos  int64
	pdus stateMap
	nids map[event.StateKeyTuple]int64
}

type stateMap map[event.StateKeyTuple]*event.Event

func (m stateMap) Get(evType, key string) *event.Event {
	return m[event.StateKeyTuple{Type: evType, StateKey: key}]
}

// check compares what clients, listeners and nodes were told with what the database holds.
func (s *sim) check() {
	entries := s.checkLog()
	lines := map[int64]*line{}
	for _, r := range s.rooms {
		l, err := s.load(r)
		if err != nil {
			s.t.Errorf("read the room of version %s: %v", r.version.ID, err)
			return
		}
		lines[r.nid] = l
		s.replay(l)
		s.checkRows(l)
		s.checkTxns(l)
		s.checkNodes(l)
	}
	for _, q := range s.requests {
		s.checkRequest(lines[q.room.nid], q)
	}
	s.checkEntries(entries, lines)
	for _, w := range s.walks {
		s.checkWalk(lines[w.room.nid], w)
	}
	s.checkEffects(entries)
}

// checkLog: positions have no gap.
func (s *sim) checkLog() []store.Entry {
	var entries []store.Entry
	err := s.db.Look(func(tx *store.Tx) error {
		var err error
		entries, err = tx.ReadLog(0, 1<<30)
		return err
	})
	if err != nil {
		s.t.Error(err)
		return nil
	}
	for i, e := range entries {
		if e.Pos != int64(i)+1 {
			s.t.Errorf("the log's entry number %d has position %d", i+1, e.Pos)
			break
		}
	}
	if int64(len(entries)) != s.db.Head() {
		s.t.Errorf("the log has %d entries, its head is %d", len(entries), s.db.Head())
	}
	return entries
}

func (s *sim) load(r *simRoom) (*line, error) {
	l := &line{room: r, ext: map[id.EventID]bool{}, byID: map[id.EventID]int{}}
	err := s.db.Look(func(tx *store.Tx) error {
		rooms, err := tx.RoomsByNID([]int64{r.nid})
		if err != nil {
			return err
		}
		l.row = rooms[0]
		l.rows, err = tx.TimelineForward(r.nid, -store.MaxOrd, store.MaxOrd, 1<<30)
		return err
	})
	if err != nil {
		return nil, err
	}
	for i, row := range l.rows {
		p, err := r.version.Parse(row.Body, id.EventID(row.EventID))
		if err != nil {
			return nil, err
		}
		l.pdus = append(l.pdus, p)
		l.byID[p.ID()] = i
	}
	return l, nil
}

// replay: every event was allowed by the state at its place, was authorised by that state and not an older one, and
// follows it; a state event follows everything.
func (s *sim) replay(l *line) {
	now := stateAt{pdus: stateMap{}, nids: map[event.StateKeyTuple]int64{}}
	under := make([]int, len(l.pdus)) // how many state events each event stands behind, itself included
	for i, p := range l.pdus {
		who := fmt.Sprintf("room version %s, position %d, %s by %s", l.room.version.ID, l.rows[i].Pos, p.Type(), p.Sender())
		if err := event.Check(p, now.pdus); err != nil {
			s.t.Errorf("%s: accepted against the state at its place: %v", who, err)
		}
		key, isState := p.StateKey()
		var keyOf *string
		if isState {
			keyOf = &key
		}
		var auth []id.EventID
		for _, t := range l.room.version.AuthTypes(p.Type(), keyOf, p.Sender(), p.Content()) {
			if a := now.pdus[t]; a != nil {
				auth = append(auth, a.ID())
			}
		}
		if got := p.AuthEvents(); !sameSet(got, auth) {
			s.t.Errorf("%s: authorised by %v, the state then was %v", who, got, auth)
		}
		s.checkPrev(l, i, under, len(l.states), who)
		for _, x := range p.PrevEvents() {
			delete(l.ext, x)
		}
		l.ext[p.ID()] = true
		under[i] = len(l.states)
		if isState {
			under[i]++
			next := stateAt{pos: l.rows[i].Pos, pdus: stateMap{}, nids: map[event.StateKeyTuple]int64{}}
			for t, e := range now.pdus {
				next.pdus[t], next.nids[t] = e, now.nids[t]
			}
			next.pdus[p.Tuple()], next.nids[p.Tuple()] = p, l.rows[i].NID
			now = next
			l.states = append(l.states, now)
		}
	}
}

func (s *sim) checkPrev(l *line, i int, under []int, states int, who string) {
	p := l.pdus[i]
	if i > 0 && len(p.PrevEvents()) == 0 {
		s.t.Errorf("%s: follows nothing", who)
	}
	for _, x := range p.PrevEvents() {
		j, ok := l.byID[x]
		switch {
		case !ok || j >= i:
			s.t.Errorf("%s: follows %s, which does not stand before it", who, x)
		case under[j] != states:
			s.t.Errorf("%s: follows an event under state %d, the room then had state %d", who, under[j], states)
		case l.pdus[j].Depth() >= p.Depth():
			s.t.Errorf("%s: is at depth %d behind one at %d", who, p.Depth(), l.pdus[j].Depth())
		}
	}
	if _, isState := p.StateKey(); !isState {
		return
	}
	for x := range l.ext {
		if !slices.Contains(p.PrevEvents(), x) {
			s.t.Errorf("%s: the state event leaves the extremity %s out", who, x)
		}
	}
}

func sameSet(a, b []id.EventID) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}

// at gives the state that held at a position.
func (l *line) at(pos int64) stateAt {
	out := stateAt{pdus: stateMap{}}
	for _, st := range l.states {
		if st.pos > pos {
			break
		}
		out = st
	}
	return out
}

// checkRows: the tables of the present say what the history says.
func (s *sim) checkRows(l *line) {
	last := l.at(store.MaxOrd)
	if l.row.StateVersion != int64(len(l.states)) || l.row.LastPos != l.rows[len(l.rows)-1].Pos {
		s.t.Errorf("room version %s: state version %d, last position %d; the history says %d and %d",
			l.room.version.ID, l.row.StateVersion, l.row.LastPos, len(l.states), l.rows[len(l.rows)-1].Pos)
	}
	for x := range l.ext {
		if !strings.Contains(string(l.row.Extremities), string(x)) {
			s.t.Errorf("room version %s: the stored extremities lack %s", l.room.version.ID, x)
		}
	}
	now, members := map[event.StateKeyTuple]int64{}, map[string]string{}
	err := s.db.Look(func(tx *store.Tx) error {
		err := tx.CurrentState(l.room.nid, func(t, k string, nid int64) { now[event.StateKeyTuple{Type: t, StateKey: k}] = nid })
		if err != nil {
			return err
		}
		return tx.RoomMembers(l.room.nid, func(u string, m, nid int64) {
			now[event.StateKeyTuple{Type: "m.room.member", StateKey: u}] = nid
			members[u] = room.Membership(m).String()
		})
	})
	if err != nil {
		s.t.Error(err)
	}
	s.compareState(fmt.Sprintf("room version %s: the tables", l.room.version.ID), now, last.nids)
	for u, m := range members {
		if e := last.pdus.Get("m.room.member", u); e == nil || e.Membership() != m {
			s.t.Errorf("room version %s: the membership of %s is stored as %q", l.room.version.ID, u, m)
		}
	}
}

func (s *sim) compareState(who string, got, want map[event.StateKeyTuple]int64) {
	for t, n := range want {
		if got[t] != n {
			s.t.Errorf("%s have event %d at %v, the history has %d", who, got[t], t, n)
		}
	}
	for t, n := range got {
		if n != 0 && want[t] == 0 {
			s.t.Errorf("%s have event %d at %v, the history has none", who, n, t)
		}
	}
}

// checkTxns: a transaction id made one event, however often it was sent.
func (s *sim) checkTxns(l *line) {
	seen := map[string]int64{}
	bodies := map[string]int64{}
	for i, row := range l.rows {
		if row.Txn == "" {
			continue
		}
		k := row.Device + " " + row.Txn
		if seen[k] != 0 {
			s.t.Errorf("transaction %s made the events %d and %d", k, seen[k], row.NID)
		}
		seen[k] = row.NID
		// the content of a message tells its request too, whatever was stored with it
		if body := string(l.pdus[i].Content()); row.RedactedBy == 0 && l.pdus[i].Type() == "m.room.message" {
			if bodies[body] != 0 {
				s.t.Errorf("the message %s stands there twice", body)
			}
			bodies[body] = row.NID
		}
	}
}

// checkRequest: what was acknowledged is there, once, at a place between question and answer; what was denied was
// forbidden at some moment between question and answer.
func (s *sim) checkRequest(l *line, q *request) {
	who := fmt.Sprintf("%s's %s (room version %s)", q.user, q.drafts[0].Type, l.room.version.ID)
	if s.calm && q.err != nil && !q.denied {
		s.t.Errorf("%s failed although nothing was wrong: %v", who, q.err)
	}
	if took := q.end - q.start; s.calm && took.Seconds() > 3 {
		s.t.Errorf("%s took %v although nothing was wrong", who, took)
	}
	switch {
	case q.err == nil:
		if len(q.ids) != len(q.drafts) {
			s.t.Errorf("%s: %d ids for %d events", who, len(q.ids), len(q.drafts))
		}
		for n, x := range q.ids {
			i, ok := l.byID[x]
			if !ok {
				s.t.Errorf("%s was acknowledged as %s, which is not there", who, x)
				continue
			}
			d, row, p := q.drafts[n], l.rows[i], l.pdus[i]
			if row.Pos <= q.began || row.Pos > q.upto {
				s.t.Errorf("%s was asked for at head %d, answered at %d, and stands at %d", who, q.began, q.upto, row.Pos)
			}
			if p.Sender() != q.user || p.Type() != d.Type || row.Txn != d.Txn {
				s.t.Errorf("%s was answered by %s of %s under %q", who, p.Type(), p.Sender(), row.Txn)
			}
		}
	case q.denied:
		s.checkDenial(l, q, who)
	}
}

func (s *sim) checkDenial(l *line, q *request, who string) {
	for pos := q.from; pos <= q.upto; pos++ {
		st := l.at(pos)
		for _, d := range q.drafts {
			p := &event.Proto{RoomID: l.room.id, Sender: d.Sender, Type: d.Type, StateKey: d.StateKey, Content: d.Content,
				PrevEvents: []id.EventID{l.pdus[0].ID(), l.pdus[len(l.pdus)-1].ID()}, Redacts: d.Redacts}
			if l.room.version.CheckProto(p, st.pdus) != nil {
				return
			}
		}
	}
	s.t.Errorf("%s was denied at heads %d to %d, where it was allowed: %v", who, q.from, q.upto, q.err)
}

// checkEntries: every process heard every entry from its start on, in order and once, and each says what the database says.
func (s *sim) checkEntries(entries []store.Entry, lines map[int64]*line) {
	for _, sl := range s.slots {
		p := sl.get()
		if got := p.store.Applied(); got != s.db.Head() {
			s.t.Errorf("%s has applied %d of %d", p.name, got, s.db.Head())
		}
	}
	for _, p := range s.lives {
		p.mu.Lock()
		heard := slices.Clone(p.heard)
		p.mu.Unlock()
		for i, e := range heard {
			want := p.first + int64(i) + 1
			if e.Pos != want || want > int64(len(entries)) {
				s.t.Errorf("%s started at %d; its entry number %d is kind %d at %d", p.name, p.first, i+1, e.Kind, e.Pos)
				break
			}
			if is := entries[want-1]; is.Kind != e.Kind || is.Room != e.Room || is.User != e.User || is.Key != e.Key || is.Ref != e.Ref {
				s.t.Errorf("%s heard %+v, the log has %+v", p.name, e, is)
			}
			ev, ok := room.EventOf(&e)
			if !ok {
				continue
			}
			if l := lines[e.Room]; l != nil {
				if j, ok := l.byID[ev.ID()]; !ok || l.rows[j].Pos != e.Pos {
					s.t.Errorf("%s heard at %d of %s, which does not stand there", p.name, e.Pos, ev.ID())
				}
			}
		}
	}
}

// checkNodes: every node shows one order and one state.
func (s *sim) checkNodes(l *line) {
	want := make([]int64, len(l.rows))
	for i, row := range l.rows {
		want[i] = row.NID
	}
	for _, sl := range s.slots {
		p := sl.get()
		who := fmt.Sprintf("%s, room version %s", p.name, l.room.version.ID)
		ctx := s.db.WithActor(context.Background(), who)
		r, err := p.rooms.Room(ctx, l.room.id)
		if err != nil {
			s.t.Errorf("%s: %v", who, err)
			continue
		}
		s.compareState(who+": memory", r.StateNIDs(), l.at(store.MaxOrd).nids)
		if r.LastPos() != l.row.LastPos {
			s.t.Errorf("%s: the last position is %d, not %d", who, r.LastPos(), l.row.LastPos)
		}
		from := s.rng.IntN(len(want))
		limit := 1 + s.rng.IntN(30)
		start := -int64(store.MaxOrd)
		if from > 0 {
			start = l.rows[from-1].Ord
		}
		if got := s.page(p, r, room.TimelineQuery{From: start, Limit: limit}); !slices.Equal(got, want[from:]) {
			s.t.Errorf("%s: forwards from %d in pages of %d: %v, want %v", who, start, limit, got, want[from:])
		}
		got := s.page(p, r, room.TimelineQuery{From: l.rows[from].Ord + 1, Backwards: true, Limit: limit})
		slices.Reverse(got)
		if !slices.Equal(got, want[:from+1]) {
			s.t.Errorf("%s: backwards from %d in pages of %d: %v, want %v", who, l.rows[from].Ord+1, limit, got, want[:from+1])
		}
		after := l.rows[from].Ord
		changes, err := p.rooms.StateChanges(ctx, r, after, s.db.Head())
		if err != nil {
			s.t.Errorf("%s: %v", who, err)
			continue
		}
		state := map[event.StateKeyTuple]int64{}
		for t, n := range l.at(after).nids {
			state[t] = n
		}
		for t, n := range changes {
			state[t] = n
		}
		s.compareState(fmt.Sprintf("%s: the state at %d and the changes since", who, after), state, l.at(store.MaxOrd).nids)
	}
}

func (s *sim) page(p *process, r *room.Room, q room.TimelineQuery) []int64 {
	ctx := s.db.WithActor(context.Background(), p.name+" pages")
	var out []int64
	for {
		page, err := p.rooms.Timeline(ctx, r, q)
		if err != nil {
			s.t.Errorf("%s: %v", p.name, err)
			return out
		}
		for _, e := range page.Events {
			out = append(out, e.NID)
		}
		if !page.More {
			return out
		}
		q.From = page.End
	}
}

// checkWalk: from token to token nothing was skipped and nothing came twice.
func (s *sim) checkWalk(l *line, w *walk) {
	var want []int64
	for _, row := range l.rows {
		if row.Pos > w.first && row.Pos <= w.token {
			want = append(want, row.NID)
		}
	}
	if !slices.Equal(w.nids, want) {
		s.t.Errorf("%s from %d to %d saw %v, want %v", w.name, w.first, w.token, w.nids, want)
	}
	if w.state != nil {
		s.compareState(fmt.Sprintf("%s from %d to %d: the tokens", w.name, w.first, w.token), w.state, l.at(w.token).nids)
	}
}

// checkEffects: the follower's work was done once for each entry.
func (s *sim) checkEffects(entries []store.Entry) {
	n := 0
	err := s.db.Look(func(tx *store.Tx) error {
		return tx.Each(`SELECT pos, kind FROM sim_effects ORDER BY pos`, nil, func(r *store.Row) error {
			var pos, kind int64
			if err := r.Scan(&pos, &kind); err != nil {
				return err
			}
			if n >= len(entries) || entries[n].Pos != pos || int64(entries[n].Kind) != kind {
				s.t.Errorf("the follower's effect number %d is that of kind %d at position %d", n+1, kind, pos)
			}
			n++
			return nil
		})
	})
	if err != nil || n != len(entries) {
		s.t.Errorf("the follower did %d of %d entries, %v", n, len(entries), err)
	}
}

// history tells in one line each what came out of the schedule.
func (s *sim) history() string {
	var b strings.Builder
	for _, r := range s.rooms {
		l, err := s.load(r)
		if err != nil {
			return err.Error()
		}
		h := fnv.New64a()
		for i, p := range l.pdus {
			_, _ = fmt.Fprintf(h, "%d %s %s %d %s\n", l.rows[i].Pos, p.Type(), p.Sender(), p.OriginServerTS(), p.Content())
		}
		fmt.Fprintf(&b, "room version %s: %d events, %d states, %x\n", r.version.ID, len(l.pdus), l.row.StateVersion, h.Sum64())
	}
	answers := map[string]int{}
	for _, q := range s.requests {
		switch {
		case q.err == nil:
			answers["acknowledged"]++
		case q.denied:
			answers["denied"]++
		default:
			answers["failed"]++
		}
	}
	fmt.Fprintf(&b, "weather %d, %d places, head %d, %d processes, %v", s.weather, len(s.slots), s.db.Head(), s.began, answers)
	return b.String()
}
