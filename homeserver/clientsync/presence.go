package clientsync

import (
	"bytes"
	"sync"
	"sync/atomic"
	"time"

	"maunium.net/go/mautrix/id"
)

// The presence states, from the least to the most present: of several devices the most present one counts.
const (
	offline     presenceState = iota // "offline"
	unavailable                      // "unavailable"
	online                           // "online"
)

type presenceState int8

func (p presenceState) String() string {
	return [...]string{"offline", "unavailable", "online"}[p]
}

func parsePresence(s string) (presenceState, bool) {
	switch s {
	case "offline":
		return offline, true
	case "unavailable":
		return unavailable, true
	case "online":
		return online, true
	}
	return offline, false
}

const (
	deviceGone     = 30 * time.Second // without a sync a device counts as gone
	idleAfter      = 5 * time.Minute  // without activity an online user counts as unavailable
	activeFor      = time.Minute      // after activity a user counts as currently active
	remoteFor      = 150 * time.Second
	remoteRefresh  = time.Minute
	feedKept       = 256 // changes kept for one user; who misses more gets everything again
	publishAtOnce  = 100 // changed users handled in one round
	topicPresence  = "presence"
	presenceForget = 10 * time.Minute // an offline user without a status is forgotten after this time
)

// presence holds who is online: in memory, told to the other processes, never written to the log or the database but
// for the status message.
type presence struct {
	now  func() time.Time
	node string

	serial *atomic.Int64 // counts changes of typing and presence; the tokens of clients hold it

	mu      sync.Mutex
	users   map[id.UserID]*presenceUser
	changed map[id.UserID]bool // to be published; true where it is worth waking somebody
	renamed map[id.UserID]struct{}
}

type presenceUser struct {
	devices    map[id.DeviceID]*presenceDevice
	remote     map[string]remotePresence // by process
	lastActive time.Time
	status     string
	profile    []byte       // display name and avatar as members of a JSON object, since they were changed; nil before
	statusAt   int64        // milliseconds since 1970 of the status message's setting; 0 where that is not known; the latest holds
	shown      presenceView // what was published last
	toldAt     time.Time    // when the other processes were told last that the user is here; zero when they believe he is not
	feed       *presenceFeed
}

type presenceDevice struct {
	state presenceState
	seen  time.Time
	polls int // long polls under way
}

type remotePresence struct {
	state      presenceState
	lastActive time.Time
	until      time.Time
}

// presenceView is what others see.
type presenceView struct {
	state      presenceState
	active     bool // currently_active
	status     string
	lastActive time.Time
	profile    []byte // see presenceUser
}

// presenceFeed is what a syncing user is to be told of: pushed when it changes, so that a sync need not look for it.
type presenceFeed struct {
	floor int64 // complete after this serial
	items []feedItem
}

type feedItem struct {
	serial int64
	user   id.UserID
	urgent bool
}

func newPresence(node string, serial *atomic.Int64, now func() time.Time) *presence {
	return &presence{now: now, node: node, serial: serial, users: make(map[id.UserID]*presenceUser), changed: make(map[id.UserID]bool),
		renamed: make(map[id.UserID]struct{})}
}

func (p *presence) user(u id.UserID) *presenceUser {
	x := p.users[u]
	if x == nil {
		x = &presenceUser{}
		p.users[u] = x
	}
	return x
}

// begin notes that a device has called /sync; done must be called at its end.
func (p *presence) begin(u id.UserID, d id.DeviceID, state presenceState) {
	p.mu.Lock()
	defer p.mu.Unlock()
	x := p.user(u)
	if x.feed == nil {
		x.feed = &presenceFeed{floor: p.serial.Load()}
	}
	if x.devices == nil {
		x.devices = make(map[id.DeviceID]*presenceDevice, 1)
	}
	dev := x.devices[d]
	if dev == nil {
		dev = &presenceDevice{}
		x.devices[d] = dev
	}
	// coming online is activity; to go on polling is not
	if state == online && dev.state != online {
		x.lastActive = p.now()
	}
	dev.state = state
	dev.seen = p.now()
	dev.polls++
	p.note(u, x)
}

func (p *presence) done(u id.UserID, d id.DeviceID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if x := p.users[u]; x != nil && x.devices[d] != nil {
		x.devices[d].polls--
		x.devices[d].seen = p.now()
	}
}

// active notes that a user did something.
func (p *presence) active(u id.UserID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if x := p.users[u]; x != nil {
		x.lastActive = p.now()
		p.note(u, x)
	}
}

// set is PUT /presence/{userId}/status.
func (p *presence) set(u id.UserID, d id.DeviceID, state presenceState, status *string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	x := p.user(u)
	if x.devices == nil {
		x.devices = make(map[id.DeviceID]*presenceDevice, 1)
	}
	dev := x.devices[d]
	if dev == nil {
		dev = &presenceDevice{}
		x.devices[d] = dev
	}
	dev.state, dev.seen = state, p.now()
	if state == online {
		x.lastActive = p.now()
	}
	if status != nil {
		// later than what it replaces, whatever the clock of the process where that was set
		x.status, x.statusAt = *status, max(p.now().UnixMilli(), x.statusAt+1)
	}
	p.note(u, x)
}

// view works out what others see of a user.
func (p *presence) view(x *presenceUser) presenceView {
	now := p.now()
	v := presenceView{status: x.status, lastActive: x.lastActive, profile: x.profile}
	for d, dev := range x.devices {
		if dev.polls == 0 && now.Sub(dev.seen) > deviceGone {
			delete(x.devices, d)
			continue
		}
		v.state = max(v.state, dev.state)
	}
	for node, r := range x.remote {
		if r.until.Before(now) {
			delete(x.remote, node)
			continue
		}
		v.state = max(v.state, r.state)
		if r.lastActive.After(v.lastActive) {
			v.lastActive = r.lastActive
		}
	}
	if v.state == online && now.Sub(v.lastActive) > idleAfter {
		v.state = unavailable
	}
	v.active = v.state == online && now.Sub(v.lastActive) < activeFor
	return v
}

// note looks whether what others see has changed, and remembers to publish it.
func (p *presence) note(u id.UserID, x *presenceUser) {
	v := p.view(x)
	if v.state == x.shown.state && v.active == x.shown.active && v.status == x.shown.status {
		x.shown.lastActive = v.lastActive
		return
	}
	// currently_active alone comes with the next response: every message changes it for its sender
	p.changed[u] = p.changed[u] || v.state != x.shown.state || v.status != x.shown.status
	x.shown = v
}

// rename notes that a user's profile has changed. Of users who were not seen since the start their rooms tell.
func (p *presence) rename(u id.UserID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.users[u] != nil {
		p.renamed[u] = struct{}{}
	}
}

// takeRenamed gives some of those whose profiles have changed.
func (p *presence) takeRenamed() (out []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for u := range p.renamed {
		out = append(out, string(u))
		delete(p.renamed, u)
		if len(out) == publishAtOnce {
			break
		}
	}
	return out
}

// setProfile takes in what a user is called now, to be published.
func (p *presence) setProfile(u id.UserID, profile []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if x := p.users[u]; x != nil && !bytes.Equal(x.profile, profile) {
		x.profile, p.changed[u] = profile, true
	}
}

// tick ends what has run out.
func (p *presence) tick() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	for u, x := range p.users {
		p.note(u, x)
		if x.shown.state == offline && len(x.devices) == 0 {
			x.feed = nil
			if x.status == "" && now.Sub(x.lastActive) > presenceForget {
				if _, waits := p.changed[u]; !waits {
					delete(p.users, u)
				}
			}
		}
	}
}

// take gives some of the users whose changes were not published yet, and whether these are urgent.
func (p *presence) take() (out []id.UserID, urgent []bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for u, now := range p.changed {
		out, urgent = append(out, u), append(urgent, now)
		delete(p.changed, u)
		if len(out) == publishAtOnce {
			break
		}
	}
	return out, urgent
}

// publish puts the change of one user into the feeds of others. It tells who has a feed.
func (p *presence) publish(u id.UserID, urgent bool, to map[id.UserID]struct{}) []id.UserID {
	p.mu.Lock()
	defer p.mu.Unlock()
	x := p.users[u]
	if x == nil {
		return nil
	}
	var out []id.UserID
	// whichever is shorter: those who share rooms, or those who sync here
	add := func(o id.UserID, ox *presenceUser) {
		if ox == nil || ox.feed == nil {
			return
		}
		f := ox.feed
		if len(f.items) >= feedKept {
			f.floor = f.items[feedKept/2].serial
			f.items = append(f.items[:0], f.items[feedKept/2+1:]...)
		}
		f.items = append(f.items, feedItem{p.serial.Add(1), u, urgent})
		out = append(out, o)
	}
	if len(to) < len(p.users) {
		for o := range to {
			add(o, p.users[o])
		}
	} else {
		for o, ox := range p.users {
			if _, ok := to[o]; ok {
				add(o, ox)
			}
		}
	}
	return out
}

// since gives the users whose presence changed for a user after a serial of a process; all is true where everyone's has
// to be told, urgent where it should not wait.
func (p *presence) since(u id.UserID, node string, serial int64) (changed []id.UserID, urgent, all bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	x := p.users[u]
	if x == nil || x.feed == nil || node != p.node || serial < x.feed.floor {
		return nil, true, true
	}
	f := x.feed
	for i := len(f.items) - 1; i >= 0 && f.items[i].serial > serial; i-- {
		changed = append(changed, f.items[i].user)
		urgent = urgent || f.items[i].urgent
	}
	return changed, urgent, false
}

// get gives what others see of a user; known is false for users who were not seen since the start.
func (p *presence) get(u id.UserID) (v presenceView, known bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	x := p.users[u]
	if x == nil {
		return presenceView{}, false
	}
	return p.view(x), true
}

// present lists those of the given users who are not offline.
func (p *presence) present(of map[id.UserID]struct{}) []id.UserID {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []id.UserID
	if len(of) < len(p.users) {
		for u := range of {
			if x := p.users[u]; x != nil && (x.shown.state != offline || x.shown.status != "") {
				out = append(out, u)
			}
		}
		return out
	}
	for u, x := range p.users {
		if _, ok := of[u]; ok && (x.shown.state != offline || x.shown.status != "") {
			out = append(out, u)
		}
	}
	return out
}

// setStatus takes in a stored status message.
func (p *presence) setStatus(u id.UserID, status string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	x := p.user(u)
	x.status, x.shown.status = status, status
}
