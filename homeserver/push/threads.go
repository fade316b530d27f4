package push

import (
	"context"
	"fmt"
	"sync"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/store"
)

// Names of MSC4306, which no version of the specification has yet.
const (
	threadCondition      = "io.element.msc4306.thread_subscription"
	ruleUnsubscribed     = ".io.element.msc4306.rule.unsubscribed_thread"
	ruleSubscribed       = ".io.element.msc4306.rule.subscribed_thread"
	cachedThreads        = 100_000 // threads of which it is known who follows them
	cachedThreadsMembers = 500_000 // and their followers together
)

// ThreadState is how a user stands to the thread of an event.
type ThreadState uint8

// The states. Conditions on threads hold for no event that is outside of threads.
const (
	NoThread ThreadState = iota
	ThreadSubscribed
	ThreadUnsubscribed
)

func threadState(subscribed bool) ThreadState {
	if subscribed {
		return ThreadSubscribed
	}
	return ThreadUnsubscribed
}

// threadRules are the predefined rules on threads: messages in those that the user does not follow are silent, those in threads that
// the user follows notify whatever the room's own rule says. Mentions and keywords come before both.
func threadRules() []Rule {
	rule := func(id string, subscribed bool, actions ...Action) Rule {
		raw := object("kind", threadCondition)
		return Rule{ID: id, Default: true, Enabled: true, Actions: append([]Action{}, actions...), Conditions: []Condition{{
			Kind: threadCondition, Subscribed: &subscribed, raw: fmt.Appendf(raw[:len(raw)-1], `,"subscribed":%t}`, subscribed),
		}}}
	}
	return []Rule{rule(ruleUnsubscribed, false), rule(ruleSubscribed, true, Action{}, Action{Tweak: "sound", Value: quote("default")})}
}

// withThreads is Ruleset with the rules on threads.
func (d *Delta) withThreads(userID string) *Ruleset {
	rs := d.Ruleset(userID)
	rs.PostContent = threadRules()
	d.adjust(rs.PostContent)
	return rs
}

// ThreadState tells how a user stands to a thread of a room; root is "" for events outside of threads.
func (p *Push) ThreadState(ctx context.Context, room int64, root string, user id.UserID) (ThreadState, error) {
	if root == "" || !p.Config.ThreadSubscriptions {
		return NoThread, nil
	}
	followers, version, ok := p.threads.get(room, root)
	if !ok {
		err := p.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
			followers, err = tx.ThreadSubscribers(room, id.EventID(root))
			return err
		})
		if err != nil {
			return NoThread, fmt.Errorf("who follows thread %s: %w", root, err)
		}
		p.threads.put(room, root, followers, version)
	}
	_, subscribed := followers[user]
	return threadState(subscribed), nil
}

// threadCache holds who follows threads, so that a message in one costs one query and not one for each member of the room.
type threadCache struct {
	mu      sync.Mutex
	version int64 // counts what was forgotten; what was read before is not kept
	threads int
	members int
	rooms   map[int64]map[string]map[id.UserID]struct{}
}

func (c *threadCache) get(room int64, root string) (followers map[id.UserID]struct{}, version int64, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	followers, ok = c.rooms[room][root]
	return followers, c.version, ok
}

func (c *threadCache) put(room int64, root string, followers map[id.UserID]struct{}, version int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.rooms[room][root]; known || c.version != version {
		return
	}
	if c.rooms == nil || c.threads >= cachedThreads || c.members+len(followers) > cachedThreadsMembers {
		c.rooms, c.threads, c.members = make(map[int64]map[string]map[id.UserID]struct{}), 0, 0
	}
	if c.rooms[room] == nil {
		c.rooms[room] = make(map[string]map[id.UserID]struct{})
	}
	c.rooms[room][root] = followers
	c.threads++
	c.members += len(followers)
}

// drop forgets the threads of a room: somebody began or ceased to follow one.
func (c *threadCache) drop(room int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.version++
	for _, followers := range c.rooms[room] {
		c.threads--
		c.members -= len(followers)
	}
	delete(c.rooms, room)
}

func (c *threadCache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.version++
	c.rooms, c.threads, c.members = nil, 0, 0
}
