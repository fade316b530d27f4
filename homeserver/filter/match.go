package filter

import (
	"slices"
	"strings"

	"github.com/tidwall/gjson"
)

// EventFilter decides about single events. A nil *EventFilter lets everything through.
type EventFilter struct {
	Limit                     int // 1 to MaxLimit; 0 where the filter names none
	LazyLoadMembers           bool
	IncludeRedundantMembers   bool
	UnreadThreadNotifications bool
	ContainsURL               *bool
	// RelatedBySenders and RelatedByRelTypes want events to which another event relates: sent by one of these users,
	// by one of these relation types. The caller brings the relations where NeedsRelations says so.
	RelatedBySenders  []string
	RelatedByRelTypes []string

	none                bool // the limit is 0
	rooms               roomSet
	senders, notSenders set
	relTypes            set
	notRelTypes         set
	types, notTypes     patterns
}

// EventMeta is what a filter looks at.
type EventMeta struct {
	Type    string
	Sender  string // empty where the thing has none (account data): then senders do not count
	RoomID  string // empty where the thing is in no room: then rooms do not count
	Content []byte // the content's JSON; read only for contains_url
	// Relations are the events that relate to this one; needed only where NeedsRelations.
	Relations []Relation
}

// Relation is an event that relates to another.
type Relation struct{ Type, Sender string }

// Match tells whether the filter lets an event through.
func (f *EventFilter) Match(m EventMeta) bool {
	switch {
	case f == nil:
		return true
	case !f.MatchType(m.Type),
		m.Sender != "" && !f.MatchSender(m.Sender),
		m.RoomID != "" && !f.rooms.match(m.RoomID):
		return false
	case f.ContainsURL != nil && gjson.GetBytes(m.Content, "url").Exists() != *f.ContainsURL:
		return false
	case !f.matchRelation(m.Content):
		return false
	case f.NeedsRelations() && !slices.ContainsFunc(m.Relations, f.wantsRelation):
		return false
	}
	return true
}

// matchRelation looks at how an event itself relates to another one; "" stands for not at all.
func (f *EventFilter) matchRelation(content []byte) bool {
	if !f.relTypes.given && len(f.notRelTypes.in) == 0 {
		return true
	}
	relType := gjson.GetBytes(content, `m\.relates_to.rel_type`).Str
	return (!f.relTypes.given || f.relTypes.has(relType)) && !f.notRelTypes.has(relType)
}

// MatchType tells whether the filter lets events of a type through, as far as their type goes.
func (f *EventFilter) MatchType(eventType string) bool {
	if f == nil {
		return true
	}
	return (!f.types.given || f.types.match(eventType)) && !f.notTypes.match(eventType)
}

// MatchSender tells whether the filter lets events of a sender through, as far as their sender goes.
func (f *EventFilter) MatchSender(sender string) bool {
	if f == nil {
		return true
	}
	return (!f.senders.given || f.senders.has(sender)) && !f.notSenders.has(sender)
}

// MatchRoom tells whether the filter lets events of a room through, as far as their room goes.
func (f *EventFilter) MatchRoom(roomID string) bool { return f == nil || f.rooms.match(roomID) }

// MatchesNothing tells that no event can pass, so that none need be read ("types": [] is how clients switch a part off).
func (f *EventFilter) MatchesNothing() bool {
	if f == nil {
		return false
	}
	only, limited := f.rooms.list()
	return f.types.given && f.types.empty() || f.senders.given && len(f.senders.in) == 0 || limited && len(only) == 0
}

// NoEvents tells that the filter's limit is 0.
func (f *EventFilter) NoEvents() bool { return f != nil && f.none }

// NeedsRelations tells that Match must be given the events' relations.
func (f *EventFilter) NeedsRelations() bool {
	return f != nil && (len(f.RelatedBySenders) > 0 || len(f.RelatedByRelTypes) > 0)
}

func (f *EventFilter) wantsRelation(r Relation) bool {
	return (len(f.RelatedBySenders) == 0 || slices.Contains(f.RelatedBySenders, r.Sender)) &&
		(len(f.RelatedByRelTypes) == 0 || slices.Contains(f.RelatedByRelTypes, r.Type))
}

// LimitOr is the filter's limit, or def where it names none.
func (f *EventFilter) LimitOr(def int) int {
	if f == nil || f.Limit == 0 {
		return def
	}
	return f.Limit
}

// LazyMembers tells whether the filter wants members only as they are needed.
func (f *EventFilter) LazyMembers() bool { return f != nil && f.LazyLoadMembers }

// ThreadNotifications tells whether unread counts of threads are wanted apart from the room's.
func (f *EventFilter) ThreadNotifications() bool { return f != nil && f.UnreadThreadNotifications }

// set holds exact names; not given is different from empty.
type set struct {
	given bool
	in    map[string]struct{}
}

func newSet(names *[]string) set {
	if names == nil {
		return set{}
	}
	s := set{given: true, in: make(map[string]struct{}, len(*names))}
	for _, n := range *names {
		s.in[n] = struct{}{}
	}
	return s
}

func (s *set) has(name string) bool { _, ok := s.in[name]; return ok }

// roomSet is a pair of rooms and not_rooms.
type roomSet struct{ only, not set }

func newRoomSet(name string, only *[]string, not []string) (roomSet, error) {
	if err := checkSigil(name+"rooms", deref(only), '!', "room"); err != nil {
		return roomSet{}, err
	}
	if err := checkSigil(name+"not_rooms", not, '!', "room"); err != nil {
		return roomSet{}, err
	}
	return roomSet{newSet(only), newSet(&not)}, nil
}

func (s *roomSet) match(roomID string) bool {
	return (!s.only.given || s.only.has(roomID)) && !s.not.has(roomID)
}

func (s *roomSet) list() (rooms []string, ok bool) {
	for id := range s.only.in {
		if !s.not.has(id) {
			rooms = append(rooms, id)
		}
	}
	slices.Sort(rooms)
	return rooms, s.only.given
}

// patterns are names in which * stands for any characters.
type patterns struct {
	given bool
	exact map[string]struct{}
	globs [][]string // the pieces between the stars, at least two
}

func newPatterns(names *[]string) patterns {
	if names == nil {
		return patterns{}
	}
	p := patterns{given: true, exact: make(map[string]struct{})}
	for _, n := range *names {
		if strings.IndexByte(n, '*') < 0 {
			p.exact[n] = struct{}{}
			continue
		}
		pieces := strings.Split(n, "*")
		// "***" says no more than "*"; empty pieces in the middle would only cost time
		middle := slices.DeleteFunc(slices.Clone(pieces[1:len(pieces)-1]), func(s string) bool { return s == "" })
		p.globs = append(p.globs, append(append(pieces[:1:1], middle...), pieces[len(pieces)-1]))
	}
	return p
}

func (p *patterns) empty() bool { return len(p.exact) == 0 && len(p.globs) == 0 }

func (p *patterns) match(name string) bool {
	if _, ok := p.exact[name]; ok {
		return true
	}
	for _, pieces := range p.globs {
		if matchPieces(pieces, name) {
			return true
		}
	}
	return false
}

// matchPieces finds the pieces one after another; taking each at its first place is enough.
func matchPieces(pieces []string, name string) bool {
	rest, ok := strings.CutPrefix(name, pieces[0])
	if !ok {
		return false
	}
	last := pieces[len(pieces)-1]
	for _, piece := range pieces[1 : len(pieces)-1] {
		i := strings.Index(rest, piece)
		if i < 0 {
			return false
		}
		rest = rest[i+len(piece):]
	}
	return strings.HasSuffix(rest, last)
}

// Rooms lists the rooms the filter is limited to; ok is false where it is limited to none in particular.
func (f *EventFilter) Rooms() (rooms []string, ok bool) {
	if f == nil {
		return nil, false
	}
	return f.rooms.list()
}

// ExcludesRoom tells whether the filter names a room among those it does not want.
func (f *EventFilter) ExcludesRoom(roomID string) bool { return f != nil && f.rooms.not.has(roomID) }

// Senders lists whom the filter is limited to, nil for nobody in particular, and whom it leaves out.
func (f *EventFilter) Senders() (only, not []string) {
	if f == nil {
		return nil, nil
	}
	for s := range f.senders.in {
		only = append(only, s)
	}
	for s := range f.notSenders.in {
		not = append(not, s)
	}
	return only, not
}
