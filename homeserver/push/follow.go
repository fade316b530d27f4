package push

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// Run follows the log, decides whom to notify of what, and delivers it, until ctx ends. The decision is made on one process at
// a time; what it finds waits in the database, from where any process delivers.
func (p *Push) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.Store.RunFollower(ctx, "push", p.follow) })
	g.Go(func() error { return p.deliverAll(ctx) })
	if p.Emails != nil {
		g.Go(func() error { return p.Store.RunLeased(ctx, "push_emails", p.runEmails) })
	}
	return g.Wait()
}

// candidate is a user who may have to be told of an entry.
type candidate struct {
	user  id.UserID
	entry *store.Entry
	event *EventView // nil: only the count may have changed
	room  RoomView
}

// follow takes a part of the log. It may get the same entries again: what is queued already stays.
func (p *Push) follow(ctx context.Context, entries []store.Entry) error {
	any, err := p.users.load(ctx, p.Store)
	if err != nil || !any {
		return err
	}
	var list []candidate
	for i := range entries {
		e := &entries[i]
		var more []candidate
		switch e.Kind {
		case store.KindEvent:
			more, err = p.eventCandidates(ctx, e)
		case store.KindReceipt:
			more, err = p.receiptCandidates(ctx, e)
		}
		if isGone(err) {
			continue // the room was purged since; an error would bring the same entries again for ever
		}
		if err != nil {
			return err
		}
		list = append(list, more...)
	}
	if len(list) == 0 {
		return nil
	}
	return p.enqueue(ctx, list)
}

// isGone tells whether an error says that a room or event does not exist (any more).
func isGone(err error) bool {
	e := mxerr.As(err)
	return e != nil && e.Status == http.StatusNotFound
}

// eventCandidates finds the users with pushers who see the event.
func (p *Push) eventCandidates(ctx context.Context, e *store.Entry) ([]candidate, error) {
	users, err := p.RoomUsers(ctx, e.Room)
	if err != nil {
		return nil, fmt.Errorf("members of room %d: %w", e.Room, err)
	}
	users = p.users.among(users)
	ev, err := p.Event(ctx, e.Room, e.Ref)
	if err != nil {
		return nil, fmt.Errorf("event %d: %w", e.Ref, err)
	}
	if ev == nil {
		return nil, nil
	}
	if ev.Type == "m.room.member" && ev.StateKey != nil { // who is invited is no member yet
		target := id.UserID(*ev.StateKey)
		if f := FeaturesOf(ev.Type, ev.StateKey, ev.Content, nil); f.Flags&FlagInvite != 0 && len(p.users.among([]id.UserID{target})) == 1 {
			users = append(users, target)
		}
	}
	if len(users) == 0 {
		return nil, nil
	}
	room, err := p.Room(ctx, e.Room)
	if err != nil || room == nil {
		return nil, err
	}
	out := make([]candidate, 0, len(users))
	seen := make(map[id.UserID]bool, len(users))
	for _, u := range users {
		if string(u) != ev.Sender && !seen[u] {
			seen[u] = true
			out = append(out, candidate{u, e, ev, room})
		}
	}
	return out, nil
}

// receiptCandidates finds the users with pushers who read something.
func (p *Push) receiptCandidates(ctx context.Context, e *store.Entry) ([]candidate, error) {
	if p.ReceiptUsers == nil {
		return nil, nil
	}
	users, err := p.ReceiptUsers(ctx, e.Room, e.Pos)
	if err != nil {
		return nil, fmt.Errorf("receipts of room %d: %w", e.Room, err)
	}
	var out []candidate
	for _, u := range p.users.among(users) {
		out = append(out, candidate{user: u, entry: e})
	}
	return out, nil
}

// enqueue evaluates the rules and stores what is to be delivered.
func (p *Push) enqueue(ctx context.Context, list []candidate) error {
	pushers, counted, err := p.pushersOf(ctx, list)
	if err != nil {
		return err
	}
	var queue []store.Push
	kicked := make(map[int64]kick)
	now := time.Now().UnixMilli()
	for i := range list {
		c := &list[i]
		to := pushers[c.user]
		if c.event == nil {
			to = counted[c.user]
		}
		if len(to) == 0 {
			continue
		}
		push := store.Push{Pos: c.entry.Pos, Queued: now, Room: c.entry.Room, Tweaks: []byte("{}")}
		if c.event != nil {
			notify, err := p.decide(ctx, c, &push)
			if err != nil {
				return err
			}
			if !notify {
				continue
			}
		}
		for j := range to {
			push.Pusher = to[j].ID
			if to[j].Kind == kindEmail {
				if push.NID != 0 && p.Emails != nil {
					queue = append(queue, push)
				}
				continue
			}
			queue = append(queue, push)
			kicked[to[j].ID] = kick{host: gatewayHost(&to[j])}
		}
	}
	if len(queue) == 0 {
		return nil
	}
	claimed, err := p.queue(ctx, queue, kicked)
	if err != nil {
		return fmt.Errorf("queue notifications: %w", err)
	}
	at := time.Now()
	for pusher, c := range claimed {
		k := kicked[pusher]
		k.claimed, k.at = c, at
		kicked[pusher] = k
	}
	p.dispatch.kick(kicked)
	return nil
}

// queue stores notifications. Unless there is much to deliver already, it takes the right to deliver them in the same
// transaction, which saves each pusher one of its own.
func (p *Push) queue(ctx context.Context, queue []store.Push, pushers map[int64]kick) (claimed map[int64]*store.Claimed, err error) {
	ids := slices.Sorted(maps.Keys(pushers))
	claim := p.dispatch.idle(len(ids))
	err = p.Store.Write(ctx, func(tx *store.Tx) error {
		claimed = nil
		if err := tx.QueuePushes(queue); err != nil || !claim {
			return err
		}
		now, err := tx.Now()
		if err != nil {
			return err
		}
		claimed, err = tx.ClaimPushers(ids, now, now+claimTime.Milliseconds(), now-giveUpAfter.Milliseconds(), claimPushes)
		return err
	})
	return claimed, err
}

// pushersOf reads the pushers of the candidates: all, and for mere counts those that were told of a count.
func (p *Push) pushersOf(ctx context.Context, list []candidate) (all, counted map[id.UserID][]store.Pusher, err error) {
	told, read := make(map[string]bool), make(map[string]bool)
	for i := range list {
		if list[i].event != nil {
			told[string(list[i].user)] = true
		} else {
			read[string(list[i].user)] = true
		}
	}
	users, readers := slices.Collect(maps.Keys(told)), slices.Collect(maps.Keys(read))
	err = p.Store.Read(ctx, func(tx *store.Tx) error {
		found, err := tx.PushersOf(users)
		if err != nil {
			return err
		}
		all = byUser(found)
		if len(readers) == 0 {
			return nil
		}
		if found, err = tx.PushersWithCount(readers); err != nil {
			return err
		}
		counted = byUser(found)
		return nil
	})
	return all, counted, err
}

func byUser(list []store.Pusher) map[id.UserID][]store.Pusher {
	m := make(map[id.UserID][]store.Pusher)
	for _, p := range list {
		m[p.User] = append(m[p.User], p)
	}
	return m
}

// decide evaluates the user's rules on the event.
func (p *Push) decide(ctx context.Context, c *candidate, out *store.Push) (bool, error) {
	rules, err := p.Rules(ctx, c.user)
	if err != nil {
		return false, err
	}
	sender := id.UserID(c.event.Sender)
	var thread ThreadState
	if rules.Compiled.NeedsThread() {
		if thread, err = p.ThreadState(ctx, c.entry.Room, c.event.Thread, c.user); err != nil {
			return false, err
		}
	}
	actions := rules.Compiled.Evaluate(c.event, &RoomContext{
		UserID:          string(c.user),
		RoomID:          c.event.RoomID,
		DisplayName:     c.room.DisplayName(c.user),
		MemberCount:     c.room.MemberCount(),
		SenderLevel:     c.room.PowerLevel(sender),
		RoomNotifyLevel: c.room.NotificationLevel("room"),
		NotifyLevel:     c.room.NotificationLevel,
		Thread:          thread,
	})
	if !actions.Notify {
		return false, nil
	}
	if p.Ignores != nil {
		ignored, err := p.Ignores(ctx, c.user, sender)
		if err != nil || ignored {
			return false, err
		}
	}
	out.NID = c.entry.Ref
	// What sounds, stands out or cannot be read here must wake the device; the rest may wait for its next chance.
	out.High = actions.Highlight || actions.Sound() != "" || classOf(c.event.Type) == ClassEncrypted
	out.Tweaks, err = actions.Tweaks()
	return true, err
}

// pusherUsers is the set of users with pushers: everyone else costs the follower a look into a map.
type pusherUsers struct {
	mu     sync.Mutex
	loaded bool
	set    map[string]bool
	dirty  map[string]bool // changed since they were read
}

func (s *pusherUsers) changed(user string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dirty == nil {
		s.dirty = make(map[string]bool)
	}
	s.dirty[user] = true
}

func (s *pusherUsers) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.loaded = false
}

// among gives those of the users who have pushers, in a new slice.
func (s *pusherUsers) among(users []id.UserID) (out []id.UserID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, u := range users {
		if s.set[string(u)] {
			out = append(out, u)
		}
	}
	return out
}

// load brings the set up to date and tells whether there is anybody.
func (s *pusherUsers) load(ctx context.Context, st *store.Store) (any bool, err error) {
	s.mu.Lock()
	all := !s.loaded
	s.loaded = true // a reset from here on shows
	var dirty []string
	for u := range s.dirty {
		dirty = append(dirty, u)
	}
	s.dirty = nil
	s.mu.Unlock()
	if !all && dirty == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.set) > 0, nil
	}
	var have []string
	err = st.Read(ctx, func(tx *store.Tx) error {
		have = have[:0]
		if all {
			var err error
			have, err = tx.UsersWithPushers()
			return err
		}
		list, err := tx.PushersOf(dirty)
		for _, p := range list {
			have = append(have, string(p.User))
		}
		return err
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.loaded = false
		return false, fmt.Errorf("users with pushers: %w", err)
	}
	if all || s.set == nil {
		s.set = make(map[string]bool, len(have))
	}
	for _, u := range dirty {
		delete(s.set, u)
	}
	for _, u := range have {
		s.set[u] = true
	}
	return len(s.set) > 0, nil
}
