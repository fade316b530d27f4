package room

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/http"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// Draft is an event that a user wants to send.
type Draft struct {
	Type     string
	StateKey *string    // nil: not a state event
	Content  []byte     // a JSON object
	Redacts  id.EventID // for m.room.redaction: what to redact, in every room version
	Sender   id.UserID
	Device   id.DeviceID
	Txn      string // "" for none; else scope and transaction id, for example "send/m.room.message/" + txnID
	TS       int64  // origin_server_ts in milliseconds since 1970; 0 means now
}

// RoomMeta is what a new room has beside its events.
type RoomMeta struct {
	Published bool           // stands in the public room directory
	Aliases   []id.RoomAlias // claimed with the room: a taken one refuses the whole creation with M_ROOM_IN_USE
	Preset    string         // that the creator chose, "" for none; Deps.NewRoom looks at it
}

// newRoom is a room in the making.
type newRoom struct {
	version *event.Version
	creator id.UserID
	roomID  id.RoomID // drawn before version 12; after, it is known with the create event
	meta    RoomMeta
}

// txnHash is the number under which a request's transaction id is unique. Users of application services may have no device.
func txnHash(d *Draft, room int64) int64 {
	if d.Txn == "" {
		return 0
	}
	h := sha256.New()
	for _, s := range []string{string(d.Sender), string(d.Device), d.Txn} {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(s)))
		h.Write(n[:])
		h.Write([]byte(s))
	}
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(room))
	h.Write(n[:])
	k := int64(binary.BigEndian.Uint64(h.Sum(nil)))
	if k == 0 {
		return 1
	}
	return k
}

// Send authorises, builds and commits an event, and returns when this process has applied it. A repeated transaction id
// of the same device gives the first event's id.
func (rs *Rooms) Send(ctx context.Context, roomID id.RoomID, d Draft) (id.EventID, error) {
	ids, err := rs.SendAll(ctx, roomID, []Draft{d})
	if err != nil {
		return "", err
	}
	return ids[0], nil
}

// SendAll commits several events of one room: all of them or none.
func (rs *Rooms) SendAll(ctx context.Context, roomID id.RoomID, drafts []Draft) ([]id.EventID, error) {
	return rs.SendWith(ctx, roomID, drafts, nil)
}

// SendWith is SendAll with more that is written in the same transaction. also may run more than once.
func (rs *Rooms) SendWith(ctx context.Context, roomID id.RoomID, drafts []Draft, also func(tx *store.Tx) error) ([]id.EventID, error) {
	ids, err := rs.sendAll(ctx, roomID, drafts, also)
	if err == nil || !rs.mayBeBehind(err) {
		return ids, err
	}
	// memory that lags behind other processes may allow, since the commit checks it; before it denies it catches up
	if e := rs.d.Store.CatchUp(ctx); e != nil {
		return nil, fmt.Errorf("catch up before a denial (%v): %w", err, e) // nobody knows whether it is denied
	}
	return rs.sendAll(ctx, roomID, drafts, also)
}

func (rs *Rooms) mayBeBehind(err error) bool {
	e := mxerr.As(err)
	return e != nil && !rs.d.Store.SQLite() && (e.Status == http.StatusForbidden || e.Status == http.StatusNotFound)
}

func (rs *Rooms) sendAll(ctx context.Context, roomID id.RoomID, drafts []Draft, also func(tx *store.Tx) error) ([]id.EventID, error) {
	r, err := rs.Room(ctx, roomID)
	if err != nil {
		return nil, err
	}
	u := &unit{room: r, drafts: drafts, also: also, rides: rs.d.Store.Rides(ctx)}
	if err := rs.prepare(ctx, u); err != nil {
		return nil, err
	}
	if u.policy, err = rs.policyOf(ctx, r); err != nil {
		return nil, err
	}
	if u.policy != nil {
		return rs.submitSigned(ctx, u)
	}
	return rs.submit(ctx, u)
}

// submit hands a unit to the committer and waits for its end.
func (rs *Rooms) submit(ctx context.Context, u *unit) ([]id.EventID, error) {
	u.done = make(chan struct{})
	if err := rs.queue.put(u); err != nil {
		return nil, err
	}
	select {
	case <-u.done:
		if u.rides {
			store.Alight()
		}
		return u.ids, u.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// prepare fills in what a unit needs, so that the committer reads no database: times, hashes of transaction ids, bodies
// of the state that authorises the drafts, targets of redactions.
func (rs *Rooms) prepare(ctx context.Context, u *unit) error {
	now := rs.d.Now().UnixMilli()
	u.txnKey = make([]int64, len(u.drafts))
	u.features = make([][]byte, len(u.drafts))
	var nids []int64
	for i := range u.drafts {
		d := &u.drafts[i]
		if d.TS == 0 {
			d.TS = now
		}
		if rs.d.Features != nil {
			u.features[i] = rs.d.Features(d.Type, d.StateKey, d.Content, func(parent string) []byte {
				// a parent that cannot be read makes the event count to the main timeline
				if e, err := rs.EventByID(ctx, id.EventID(parent)); err == nil && e != nil {
					return e.Features
				}
				return nil
			})
		}
		if u.room == nil {
			continue
		}
		if rs.d.Check != nil {
			if err := rs.d.Check(ctx, u.room, d); err != nil {
				return err
			}
		}
		u.txnKey[i] = txnHash(d, u.room.nid)
		v := u.room.Version()
		if d.Type == "m.room.redaction" {
			if err := rs.prepareRedaction(ctx, u, v, d); err != nil {
				return err
			}
		}
		h, done := u.room.view()
		if h.blocked && d.enters() {
			done()
			return errBlocked
		}
		for _, t := range v.AuthTypes(d.Type, d.StateKey, d.Sender, d.Content) {
			if nid, e := h.stateNID(rs, t); e == nil && nid != 0 {
				nids = append(nids, nid)
			}
		}
		done()
	}
	if len(nids) == 0 {
		return nil
	}
	evs, err := rs.EventsByNID(ctx, nids)
	if err != nil {
		return err
	}
	u.bodies = make(map[int64]*event.Event, len(evs))
	for _, e := range evs {
		u.bodies[e.NID] = e.PDU
	}
	return nil
}

// newRoomID draws a room id for room versions before 12.
func (rs *Rooms) newRoomID() id.RoomID {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	var raw [18]byte
	_, _ = rand.Read(raw[:]) // crypto/rand never fails on supported systems
	out := make([]byte, len(raw))
	for i, b := range raw {
		out[i] = letters[int(b)%len(letters)]
	}
	return id.RoomID("!" + string(out) + ":" + rs.d.ServerName)
}

// CreateRoom makes a room as one unit: m.room.create with this content, then the other drafts.
func (rs *Rooms) CreateRoom(ctx context.Context, v *event.Version, creator id.UserID, create []byte, rest []Draft, meta RoomMeta) (id.RoomID, error) {
	empty := ""
	c := &newRoom{version: v, creator: creator, meta: meta}
	if !v.RoomIDIsCreateHash {
		c.roomID = rs.newRoomID()
	}
	drafts := make([]Draft, 0, 1+len(rest))
	drafts = append(drafts, Draft{Type: "m.room.create", StateKey: &empty, Content: create, Sender: creator})
	drafts = append(drafts, rest...)
	var made func(context.Context, id.RoomID)
	if rs.d.NewRoom != nil {
		var err error
		if drafts, made, err = rs.d.NewRoom(ctx, creator, drafts, meta); err != nil {
			return "", err
		}
	}
	u := &unit{create: c, drafts: drafts, rides: rs.d.Store.Rides(ctx)}
	if err := rs.prepare(ctx, u); err != nil {
		return "", err
	}
	if _, err := rs.submit(ctx, u); err != nil {
		return "", err
	}
	if made != nil {
		made(context.WithoutCancel(ctx), c.roomID)
	}
	return c.roomID, nil
}

// prepareRedaction finds the target and puts its id where the room version wants it.
func (rs *Rooms) prepareRedaction(ctx context.Context, u *unit, v *event.Version, d *Draft) error {
	target := d.Redacts
	if v.ModernRedaction {
		if target == "" {
			target = id.EventID(gjson.GetBytes(d.Content, "redacts").Str)
		} else {
			content, err := withRedacts(d.Content, target)
			if err != nil {
				return err
			}
			d.Content, d.Redacts = content, ""
		}
	}
	if target == "" {
		return nil
	}
	e, err := rs.EventByID(ctx, target)
	if err != nil || e == nil {
		return err
	}
	if u.target == nil {
		u.target = map[id.EventID]*Event{}
	}
	u.target[target] = e
	return nil
}

// withRedacts writes the target into the content, where room versions from 11 on have it.
func withRedacts(content []byte, target id.EventID) ([]byte, error) {
	var m map[string]jsontext.Value
	if err := json.Unmarshal(content, &m); err != nil {
		return nil, mxerr.BadJSON("the content of a redaction must be a JSON object")
	}
	if m == nil {
		m = map[string]jsontext.Value{}
	}
	m["redacts"] = event.AppendCanonicalString(nil, string(target))
	return json.Marshal(m)
}

// restTime is how long a room or a user stays in memory without use.
const restTime = 30 * time.Minute

// dropResting frees rooms and users that nobody has used for a while.
func (rs *Rooms) dropResting() {
	limit := time.Now().Add(-restTime).Unix()
	rs.mu.RLock()
	rooms := make([]*Room, 0, len(rs.byNID))
	for _, r := range rs.byNID {
		rooms = append(rooms, r)
	}
	users := make([]*User, 0, 64)
	for _, u := range rs.users {
		if u.active.Load() != nil {
			users = append(users, u)
		}
	}
	rs.mu.RUnlock()
	for _, u := range users {
		u.drop(limit)
	}
	for _, r := range rooms {
		if r.used.Load() > limit {
			continue
		}
		r.mu.Lock()
		busy := r.hot == nil || r.loading != nil
		if !busy {
			for u, m := range r.hot.members {
				if m.membership == MembershipJoin && u.Watched() {
					busy = true
					break
				}
			}
		}
		if !busy {
			r.hot = nil
		}
		r.mu.Unlock()
	}
}
