package clientsync

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/room"
)

// slidingRoom is a room of the user that a list may hold.
type slidingRoom struct {
	ur     *room.UserRoom // shared, not to be changed
	at     int64          // position of the last activity that the user may know of
	fact   *roomFact
	made   string // the room's type
	window int32  // place in the window, from 1; 0: it is not in the window
	listed bool   // lists may hold it; subscriptions may ask for any
}

var slidingRooms = sync.Pool{New: func() any { return new([]slidingRoom) }}

// windowRoom is a room that a list's range or a subscription covers.
type windowRoom struct {
	ur         *room.UserRoom
	at         int64
	config     *roomConfig
	lists      []string
	subscribed bool
}

// gather makes the candidates.
// Spec: MSC4186, "Lists".
func (b *slider) gather(user *room.User) error {
	b.cands = (*b.candBuf)[:0]
	var left []*room.UserRoom
	var invites []int64
	user.EachRoom(func(r *room.UserRoom) {
		c := slidingRoom{ur: r, at: r.Pos, listed: true}
		switch r.Membership {
		case room.MembershipJoin:
			c.at = r.Room.LastPos()
		case room.MembershipInvite:
			invites = append(invites, r.MemberNID)
		case room.MembershipKnock:
		default:
			if r.Forgotten {
				return
			}
			left = append(left, r)
		}
		b.cands = append(b.cands, c)
	})
	*b.candBuf = b.cands
	if err := b.s.facts.howLeft(b.ctx, b.req.user, left); err != nil {
		return err
	}
	unwanted, err := b.unwantedInvites(invites)
	if err != nil {
		return err
	}
	kept := b.cands[:0]
	for i := range b.cands {
		c := b.cands[i]
		switch c.ur.Membership {
		case room.MembershipInvite:
			if _, skip := unwanted[c.ur.MemberNID]; skip {
				continue
			}
		case room.MembershipLeave, room.MembershipBan:
			c.listed = b.listsLeft(c.ur)
		}
		kept = append(kept, c)
	}
	b.cands = kept
	return nil
}

// listsLeft tells whether lists hold a room that the user is no longer in: one that another put the user out of, and one
// that the client has to be told about, because it was told of the room before.
func (b *slider) listsLeft(ur *room.UserRoom) bool {
	if kind, ok := b.s.facts.left.GetIfPresent(ur.MemberNID); ok && kind == leftOther {
		return true
	}
	sent := b.conn.rooms[ur.Room.NID()]
	if sent == nil {
		return false
	}
	return b.in.wire.keepsLeft || ur.Pos > b.toldUpTo(sent)
}

// toldUpTo is the position up to which the client was told of a room.
func (b *slider) toldUpTo(sent *roomSent) int64 {
	if sent.upto != 0 {
		return sent.upto
	}
	return b.req.since.pos
}

// unwantedInvites finds the invitations that ignored users sent, or all where the user blocks them.
// Spec: client-server API, "Ignoring Users", "Invite permission".
func (b *slider) unwantedInvites(nids []int64) (map[int64]struct{}, error) {
	if len(nids) == 0 {
		return nil, nil
	}
	blocked, err := b.s.d.Data.BlocksInvites(b.ctx, b.req.user)
	if err != nil || len(b.ignored) == 0 && !blocked {
		return nil, err
	}
	events, err := b.s.d.Rooms.EventsByNID(b.ctx, nids)
	if err != nil {
		return nil, err
	}
	out := make(map[int64]struct{})
	for _, e := range events {
		if _, skip := b.ignored[e.PDU.Sender()]; skip || blocked {
			out[e.NID] = struct{}{}
		}
	}
	return out, nil
}

// choose fills the window from the lists and the subscriptions, and counts the lists.
func (b *slider) choose() error {
	if len(b.in.lists) > 0 {
		if err := b.prepareFilters(); err != nil {
			return err
		}
	}
	b.counts = make([]int, len(b.in.lists))
	for i := range b.in.lists {
		l := &b.in.lists[i]
		chosen, err := b.filtered(l.filters)
		if err != nil {
			return err
		}
		b.counts[i] = len(chosen)
		if l.ranges == nil {
			for _, n := range chosen {
				b.show(n, l.config, l.name)
			}
			b.order = append(b.order, chosen)
			continue
		}
		end := int64(0)
		for _, x := range l.ranges {
			end = max(end, x[1]+1)
		}
		b.sortTop(chosen, end)
		b.order = append(b.order, chosen)
		for n := range min(end, int64(len(chosen))) {
			if slices.ContainsFunc(l.ranges, func(x [2]int64) bool { return x[0] <= n && n <= x[1] }) {
				b.show(chosen[n], l.config, l.name)
			}
		}
	}
	return b.subscribe()
}

// prepareFilters loads what the filters need to know of the candidates.
func (b *slider) prepareFilters() error {
	var facts, types bool
	for i := range b.in.lists {
		if f := b.in.lists[i].filters; f != nil {
			facts = facts || f.Encrypted != nil || f.NameLike != nil
			types = types || f.RoomTypes != nil || f.NotRoomTypes != nil
		}
	}
	if facts {
		if err := b.s.facts.of(b.ctx, b.cands); err != nil {
			return err
		}
	}
	if types {
		return b.s.facts.types(b.ctx, b.cands)
	}
	return nil
}

// show puts a candidate into the window.
func (b *slider) show(n int32, config *roomConfig, list string) {
	c := &b.cands[n]
	if c.window == 0 {
		b.window = append(b.window, windowRoom{ur: c.ur, at: c.at, config: config})
		c.window = int32(len(b.window))
	}
	w := &b.window[c.window-1]
	if list == "" {
		w.subscribed = true
	} else if len(w.lists) == 0 || w.lists[len(w.lists)-1] != list {
		w.lists = append(w.lists, list)
	}
	w.config = b.combine(w.config, config)
}

// combine makes the configuration that asks for what either of two asks for.
// Spec: MSC4186, "Combining room configs".
func (b *slider) combine(x, y *roomConfig) *roomConfig {
	if x == y {
		return x
	}
	key := [2]*roomConfig{x, y}
	if c := b.combined[key]; c != nil {
		return c
	}
	c := &roomConfig{limit: max(x.limit, y.limit), asked: slices.Concat(x.asked, y.asked), places: slices.Concat(x.places, y.places)}
	slices.Sort(c.places)
	c.places = slices.Compact(c.places)
	c.settle()
	if b.combined == nil {
		b.combined = make(map[[2]*roomConfig]*roomConfig)
	}
	b.combined[key] = c
	return c
}

// settle finds out whether members are sent as they are needed: not where all are sent anyway.
func (c *roomConfig) settle() {
	c.lazy = slices.ContainsFunc(c.asked, func(q *stateRequest) bool { return q.Lazy }) && !slices.ContainsFunc(c.asked, (*stateRequest).allMembers)
}

// subscribe adds the rooms that the client subscribed to, as far as the user may see them: those that the user is in,
// is invited to, or has been in.
// Spec: MSC4186, "Subscriptions".
func (b *slider) subscribe() error {
	if len(b.in.subs) == 0 {
		return nil
	}
	for n := range b.cands {
		c := &b.cands[n]
		config := b.in.subs[c.ur.Room.ID()]
		if config == nil {
			continue
		}
		if !c.listed {
			been, err := b.s.facts.everJoined(b.ctx, c.ur.Room, b.req.user)
			if err != nil {
				return err
			}
			if !been {
				continue
			}
		}
		b.show(int32(n), config, "")
	}
	return nil
}

// filtered gives the candidates that the filters of a list let through.
func (b *slider) filtered(f *slidingFilters) ([]int32, error) {
	out := make([]int32, 0, len(b.cands))
	if f == nil {
		for n := range b.cands {
			if b.cands[n].listed {
				out = append(out, int32(n))
			}
		}
		return out, nil
	}
	var spaces map[id.RoomID]struct{}
	if f.Spaces != nil {
		var err error
		if spaces, err = b.spaceRooms(b.ctx, *f.Spaces); err != nil {
			return nil, err
		}
	}
	like := ""
	if f.NameLike != nil {
		like = strings.ToLower(*f.NameLike)
	}
	invited := f.wantsInvited()
	for n := range b.cands {
		c := &b.cands[n]
		if !c.listed ||
			(invited != nil && (c.ur.Membership == room.MembershipInvite) != *invited) ||
			(f.Encrypted != nil && c.fact.encrypted != *f.Encrypted) ||
			(f.RoomTypes != nil && !hasType(*f.RoomTypes, c.made)) ||
			(f.NotRoomTypes != nil && hasType(*f.NotRoomTypes, c.made)) ||
			(like != "" && !strings.Contains(strings.ToLower(c.fact.name), like)) {
			continue
		}
		if f.DM != nil {
			if _, dm := b.mine.direct[c.ur.Room.ID()]; dm != *f.DM {
				continue
			}
		}
		if f.Spaces != nil {
			if _, in := spaces[c.ur.Room.ID()]; !in {
				continue
			}
		}
		if f.Tags != nil || f.NotTags != nil {
			tags := b.mine.tags[c.ur.Room.NID()]
			if (f.Tags != nil && !common(tags, *f.Tags)) || (f.NotTags != nil && common(tags, *f.NotTags)) {
				continue
			}
		}
		out = append(out, int32(n))
	}
	return out, nil
}

// hasType tells whether a room type is among some; null stands for rooms without one.
func hasType(types []*string, roomType string) bool {
	return slices.ContainsFunc(types, func(t *string) bool {
		return (t == nil && roomType == "") || (t != nil && *t == roomType && roomType != "")
	})
}

func common(a, b []string) bool {
	return slices.ContainsFunc(a, func(x string) bool { return slices.Contains(b, x) })
}

// spaceRooms gives the rooms of those spaces that the user is joined to.
func (b *slider) spaceRooms(ctx context.Context, names []string) (map[id.RoomID]struct{}, error) {
	var spaces []*room.Room
	for n := range b.cands {
		ur := b.cands[n].ur
		if ur.Membership == room.MembershipJoin && slices.Contains(names, string(ur.Room.ID())) {
			spaces = append(spaces, ur.Room)
		}
	}
	return b.s.facts.children(ctx, spaces)
}

const sortedWhole = 1000 // rooms of a list that are put in order although all of them are shown

// sortTop brings the most active rooms to the front of a list, in order, as many as end says. The order of the others
// is not wanted, and neither is that of very many of which all are shown.
func (b *slider) sortTop(list []int32, end int64) {
	order := func(x, y int32) int { return cmp.Compare(b.cands[y].at, b.cands[x].at) }
	if end >= int64(len(list)) {
		if len(list) <= sortedWhole {
			slices.SortFunc(list, order)
		}
		return
	}
	k := int(end)
	// quickselect: everything before k is at least as active as what follows
	for lo, hi := 0, len(list)-1; lo < hi; {
		pivot := b.cands[list[lo+(hi-lo)/2]].at
		i, j := lo, hi
		for i <= j {
			for b.cands[list[i]].at > pivot {
				i++
			}
			for b.cands[list[j]].at < pivot {
				j--
			}
			if i <= j {
				list[i], list[j] = list[j], list[i]
				i++
				j--
			}
		}
		switch {
		case k <= j:
			hi = j
		case k >= i:
			lo = i
		default:
			lo = hi
		}
	}
	slices.SortFunc(list[:k], order)
}
