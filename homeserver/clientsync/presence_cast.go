package clientsync

import (
	"fmt"
	"time"

	"github.com/go-json-experiment/json"
	"maunium.net/go/mautrix/id"
)

// presenceCast is what processes tell each other of one user.
type presenceCast struct {
	User   id.UserID `json:"u"`
	State  string    `json:"p"`
	Active int64     `json:"a"` // milliseconds since the last activity
	Status string    `json:"m,omitempty"`
	Set    int64     `json:"s,omitempty"` // milliseconds since 1970 of the status message's setting
}

type presenceCasts struct {
	Node  string         `json:"n"`
	Users []presenceCast `json:"c"`
}

// castBytes is how much of a notification the users of one message may fill.
const castBytes = 6000

// casts gives messages about the given users, and about those online here of whom the others have not heard for some
// time.
func (p *presence) casts(users []id.UserID) (out []presenceCasts) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	c := presenceCasts{Node: p.node}
	size := 0
	add := func(u id.UserID, x *presenceUser) {
		state := offline
		for _, dev := range x.devices {
			state = max(state, dev.state)
		}
		x.toldAt = now
		if state == offline {
			x.toldAt = time.Time{}
		}
		c.Users = append(c.Users, presenceCast{u, state.String(), now.Sub(x.lastActive).Milliseconds(), x.status, x.statusAt})
		if size += len(u) + len(x.status) + 60; size > castBytes {
			out = append(out, c)
			c, size = presenceCasts{Node: p.node}, 0
		}
	}
	for _, u := range users {
		// of a user of another process, that process tells
		if x := p.users[u]; x != nil && (len(x.devices) > 0 || !x.toldAt.IsZero()) {
			add(u, x)
		}
	}
	for u, x := range p.users {
		if len(x.devices) > 0 && now.Sub(x.toldAt) > remoteRefresh {
			add(u, x)
		}
	}
	if len(c.Users) > 0 {
		out = append(out, c)
	}
	return out
}

// receive takes in what another process tells.
func (p *presence) receive(payload string) error {
	var c presenceCasts
	if err := json.Unmarshal([]byte(payload), &c); err != nil {
		return fmt.Errorf("presence of another node: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.Node == p.node {
		return nil
	}
	now := p.now()
	for _, m := range c.Users {
		x := p.user(m.User)
		// a process where another device of the user is online tells of it too, perhaps before it has heard of the status
		if m.Set > x.statusAt {
			x.status, x.statusAt = m.Status, m.Set
		}
		state, _ := parsePresence(m.State)
		if state == offline {
			delete(x.remote, c.Node)
		} else {
			if x.remote == nil {
				x.remote = make(map[string]remotePresence, 1)
			}
			x.remote[c.Node] = remotePresence{state, now.Add(-time.Duration(m.Active) * time.Millisecond), now.Add(remoteFor)}
		}
		p.note(m.User, x)
	}
	return nil
}
