package event

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
)

// The single levels of m.room.power_levels.
const (
	levelBan = iota
	levelEventsDefault
	levelInvite
	levelKick
	levelRedact
	levelStateDefault
	levelUsersDefault
	levelCount
)

var levelNames = [levelCount]string{"ban", "events_default", "invite", "kick", "redact", "state_default", "users_default"}

// levelDefaults hold where the event does not name a level, or where there is no event.
// Spec: client-server API, m.room.power_levels.
var levelDefaults = [levelCount]int64{levelBan: 50, levelKick: 50, levelRedact: 50, levelStateDefault: 50}

// roomNotificationDefault is the level for @room where notifications.room is not set.
const roomNotificationDefault = 50

// PowerLevels is what m.room.power_levels says, with defaults for what it leaves out. It is immutable.
type PowerLevels struct {
	levels        [levelCount]int64
	set           [levelCount]bool // present in the event
	users         map[id.UserID]int64
	events        map[string]int64
	notifications map[string]int64

	infinite []id.UserID // v12: creators, whom no level reaches
	owner    id.UserID   // before v12, in a room without the event: the creator, who has 100
}

// parsedPowerLevels is what an m.room.power_levels event caches: its content alone, and the same joined with the room's creators.
type parsedPowerLevels struct {
	own    *PowerLevels
	err    error
	create *Event
	joined *PowerLevels
}

// PowerLevels gives the parsed content of an m.room.power_levels event, without what m.room.create adds (see PowerLevelsOf). The error
// is M_FORBIDDEN where a value is none that the room version accepts; such values count as absent in the levels given back with it.
// For events of other types it gives the defaults.
func (e *Event) PowerLevels() (*PowerLevels, error) {
	if p := e.powerLevels.Load(); p != nil {
		return p.own, p.err
	}
	p := &parsedPowerLevels{}
	if e.evType == typePowerLevels {
		p.own, p.err = e.version.ParsePowerLevels(e.content)
	} else {
		p.own = &PowerLevels{levels: levelDefaults}
	}
	e.powerLevels.CompareAndSwap(nil, p)
	return p.own, p.err
}

// PowerLevelsOf gives the levels that hold in a room state, from m.room.power_levels and m.room.create. It is cached on the events.
func PowerLevelsOf(state State) *PowerLevels {
	return NewPowerLevels(state.Get(typePowerLevels, ""), state.Get(typeCreate, ""))
}

// NewPowerLevels gives the levels that hold under an m.room.power_levels event, or without one (nil), in the room of an m.room.create.
func NewPowerLevels(levels, create *Event) *PowerLevels {
	if levels == nil {
		if create == nil {
			return &PowerLevels{levels: levelDefaults}
		}
		// The create event has no levels of its own, so its cache is free for those of a room without the event.
		if p := create.powerLevels.Load(); p != nil && p.joined != nil {
			return p.joined
		}
		own, _ := create.PowerLevels()
		joined := own.withCreators(create, false)
		create.powerLevels.Store(&parsedPowerLevels{own: own, create: create, joined: joined})
		return joined
	}
	if p := levels.powerLevels.Load(); p != nil && p.joined != nil && p.create == create {
		return p.joined
	}
	own, err := levels.PowerLevels()
	joined := own.withCreators(create, true)
	levels.powerLevels.Store(&parsedPowerLevels{own: own, err: err, create: create, joined: joined})
	return joined
}

// withCreators joins levels with what the room's m.room.create says of power.
func (p *PowerLevels) withCreators(create *Event, fromEvent bool) *PowerLevels {
	if create == nil || len(create.creators) == 0 {
		return p
	}
	c := *p
	switch {
	case create.version.PrivilegedCreators:
		c.infinite = create.creators
	case !fromEvent:
		c.owner = create.creators[0]
	default:
		return p
	}
	return &c
}

// ParsePowerLevels reads the content of m.room.power_levels. What it cannot read counts as absent and makes the error, M_FORBIDDEN.
// Spec: room version 10 auth rules 9.1 to 9.3; room version 1, "m.room.power_levels events accept values as strings" and "floats".
func (v *Version) ParsePowerLevels(content []byte) (*PowerLevels, error) {
	js, err := canonicalObject(content, v.StrictJSON, "content")
	if err != nil {
		return &PowerLevels{levels: levelDefaults}, err
	}
	return v.readPowerLevels(js)
}

// readPowerLevels is ParsePowerLevels for canonical content.
func (v *Version) readPowerLevels(content []byte) (*PowerLevels, error) {
	p := &PowerLevels{levels: levelDefaults}
	var problem error
	complain := func(format string, args ...any) {
		if problem == nil {
			problem = mxerr.Forbidden("m.room.power_levels: " + fmt.Sprintf(format, args...))
		}
	}
	readMap := func(name string, value []byte, put func(key string, n int64)) {
		if !isObject(value) {
			complain("%s must be an object", name)
			return
		}
		for key, raw := range members(value) {
			if n, ok := v.powerLevel(raw); ok {
				put(unescape(key), n)
			} else {
				complain("the level of %.100s in %s must be an integer", key, name)
			}
		}
	}
	for key, value := range members(content) {
		switch string(key) {
		case "users":
			p.users = make(map[id.UserID]int64)
			readMap("users", value, func(k string, n int64) {
				if !ValidUserID(id.UserID(k)) {
					complain("users holds %.100q, which is no user id", k)
				}
				p.users[id.UserID(k)] = n
			})
		case "events":
			p.events = make(map[string]int64)
			readMap("events", value, func(k string, n int64) { p.events[k] = n })
		case "notifications":
			p.notifications = make(map[string]int64)
			readMap("notifications", value, func(k string, n int64) { p.notifications[k] = n })
		default:
			i := slices.Index(levelNames[:], string(key))
			if i < 0 {
				continue
			}
			if n, ok := v.powerLevel(value); ok {
				p.levels[i], p.set[i] = n, true
			} else {
				complain("%s must be an integer", key)
			}
		}
	}
	return p, problem
}

// powerLevel reads one level as the room version spells levels.
func (v *Version) powerLevel(raw []byte) (int64, bool) {
	if n, ok := integer(raw); ok {
		return n, true
	}
	if v.IntegerPowerLevels {
		return 0, false
	}
	if s, ok := str(raw); ok {
		// ParseInt also takes the sign and the leading zeros that the specification allows.
		n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
		return n, err == nil
	}
	if !v.FloatPowerLevels || len(raw) == 0 || raw[0] != '-' && (raw[0] < '0' || raw[0] > '9') {
		return 0, false
	}
	f, err := strconv.ParseFloat(string(raw), 64)
	if err != nil {
		return 0, false
	}
	switch f = math.Trunc(f); {
	case f >= math.MaxInt64:
		return math.MaxInt64, true
	case f <= math.MinInt64:
		return math.MinInt64, true
	}
	return int64(f), true
}

// User is the power level of a user; math.MaxInt64 stands for the infinite one of version 12 creators.
func (p *PowerLevels) User(u id.UserID) int64 {
	if len(p.infinite) > 0 && slices.Contains(p.infinite, u) {
		return math.MaxInt64
	}
	if n, ok := p.users[u]; ok {
		return n
	}
	if p.owner != "" && p.owner == u {
		return 100
	}
	return p.levels[levelUsersDefault]
}

// Event is the level needed to send an event of a type. Spec: server-server API, "Required Power Level".
func (p *PowerLevels) Event(evType string, isState bool) int64 {
	if n, ok := p.events[evType]; ok {
		return n
	}
	if isState {
		return p.levels[levelStateDefault]
	}
	return p.levels[levelEventsDefault]
}

// Invite is the level needed to invite.
func (p *PowerLevels) Invite() int64 { return p.levels[levelInvite] }

// Kick is the level needed to remove others.
func (p *PowerLevels) Kick() int64 { return p.levels[levelKick] }

// Ban is the level needed to ban.
func (p *PowerLevels) Ban() int64 { return p.levels[levelBan] }

// Redact is the level needed to redact the events of others.
func (p *PowerLevels) Redact() int64 { return p.levels[levelRedact] }

// StateDefault is the level for state events of types that have none of their own.
func (p *PowerLevels) StateDefault() int64 { return p.levels[levelStateDefault] }

// EventsDefault is the level for message events of types that have none of their own.
func (p *PowerLevels) EventsDefault() int64 { return p.levels[levelEventsDefault] }

// UsersDefault is the level of users who have none of their own.
func (p *PowerLevels) UsersDefault() int64 { return p.levels[levelUsersDefault] }

// NotificationRoom is the level needed to notify the whole room.
func (p *PowerLevels) NotificationRoom() int64 { return p.Notification("room") }

// Notification is the level needed for a kind of notification, 50 where the event does not say.
func (p *PowerLevels) Notification(key string) int64 {
	if n, ok := p.notifications[key]; ok {
		return n
	}
	return roomNotificationDefault
}
