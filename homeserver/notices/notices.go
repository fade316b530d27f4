// Package notices tells users something in the server's name: each in a room of their own, in which they only read, and to which
// they are invited.
// Spec: client-server API, "Server Notices".
package notices

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
)

// Deps is what Notices works with.
type Deps struct {
	Store    *store.Store
	Rooms    *room.Rooms
	Data     *account.Data
	Profiles *account.Profiles
	Logger   *slog.Logger
	// Service gives the account that the server writes as.
	Service  func(ctx context.Context) (id.UserID, error)
	RoomName string // of the rooms; "Server notices" if empty
	// Join puts users into their rooms at once, in the place of inviting them.
	Join bool
}

// Notices writes to users.
type Notices struct {
	Deps
	mu     sync.Mutex
	making map[id.UserID]chan struct{} // rooms in the making
}

// New makes Notices.
func New(d Deps) *Notices {
	if d.RoomName == "" {
		d.RoomName = "Server notices"
	}
	if d.Logger == nil {
		d.Logger = slog.Default()
	}
	return &Notices{Deps: d, making: map[id.UserID]chan struct{}{}}
}

// device is what transaction ids of notices belong to.
const device = "notices"

// Send sends an event into a user's room of notices, which is made where it is missing, and returns the event's id. The
// same txn gives the same event; "" sends anew each time.
func (n *Notices) Send(ctx context.Context, user id.UserID, evType string, stateKey *string, content []byte, txn string) (id.EventID, error) {
	roomID, service, err := n.Room(ctx, user)
	if err != nil {
		return "", err
	}
	d := room.Draft{Type: evType, StateKey: stateKey, Content: content, Sender: service}
	if txn != "" {
		d.Device, d.Txn = device, "notice/"+txn
	}
	return n.Rooms.Send(ctx, roomID, d)
}

// Text sends a message of plain text and, if html is not "", of HTML.
func (n *Notices) Text(ctx context.Context, user id.UserID, text, html, txn string) (id.EventID, error) {
	content, err := json.Marshal(struct {
		MsgType string `json:"msgtype"`
		Body    string `json:"body"`
		Format  string `json:"format,omitzero"`
		HTML    string `json:"formatted_body,omitzero"`
	}{"m.text", text, format(html), html})
	if err != nil {
		return "", err
	}
	return n.Send(ctx, user, "m.room.message", nil, content, txn)
}

func format(html string) string {
	if html == "" {
		return ""
	}
	return "org.matrix.custom.html"
}

// Room gives a user's room of notices and who writes in it. The user is invited to it or in it afterwards, also one who had left.
func (n *Notices) Room(ctx context.Context, user id.UserID) (id.RoomID, id.UserID, error) {
	service, err := n.Service(ctx)
	if err != nil {
		return "", "", err
	}
	if user == service {
		return "", "", mxerr.InvalidParam("the server does not write notices to itself")
	}
	defer n.alone(user)()
	var roomID id.RoomID
	var known bool
	err = n.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
		roomID, known, err = tx.NoticeRoom(user)
		return err
	})
	if err != nil {
		return "", "", err
	}
	if known {
		rm, err := n.Rooms.Room(ctx, roomID)
		if err == nil {
			return roomID, service, n.bringBack(ctx, rm, user, service)
		}
		if !mxerr.Is(err, "M_NOT_FOUND") {
			return "", "", err
		}
	}
	made, err := n.make(ctx, user, service)
	if err != nil {
		return "", "", err
	}
	var won bool
	err = n.Store.Write(ctx, func(tx *store.Tx) (err error) {
		won, err = tx.SetNoticeRoom(user, made, roomID, time.Now().UnixMilli())
		return err
	})
	if err != nil {
		return "", "", err
	}
	if won {
		if err := n.Data.SetTag(ctx, user, made, "m.server_notice", []byte(`{}`)); err != nil {
			n.Logger.Warn("a room of notices has no tag", "user_id", user, "error", err)
		}
		return made, service, nil
	}
	// Another process was quicker: its room counts, and this one goes.
	rm, err := n.Rooms.Room(ctx, made)
	if err == nil {
		if _, _, err = n.Rooms.RemoveMembers(ctx, rm); err == nil {
			err = n.Rooms.Purge(ctx, rm.NID())
		}
	}
	if err != nil {
		n.Logger.Warn("a room of notices that was made twice stays", "room_id", made, "error", err)
	}
	err = n.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
		roomID, _, err = tx.NoticeRoom(user)
		return err
	})
	return roomID, service, err
}

// alone lets one at a time look for a user's room in this process; the func it returns lets the next one.
func (n *Notices) alone(user id.UserID) func() {
	for {
		n.mu.Lock()
		wait := n.making[user]
		if wait == nil {
			mine := make(chan struct{})
			n.making[user] = mine
			n.mu.Unlock()
			return func() {
				n.mu.Lock()
				delete(n.making, user)
				n.mu.Unlock()
				close(mine)
			}
		}
		n.mu.Unlock()
		<-wait
	}
}

// bringBack opens the room anew to a user who left it.
func (n *Notices) bringBack(ctx context.Context, rm *room.Room, user, service id.UserID) error {
	at := rm.Membership(user)
	if at == room.MembershipJoin || at == room.MembershipInvite && !n.Join {
		return nil
	}
	drafts, err := n.entrance(ctx, user, service)
	if err != nil {
		return err
	}
	if at == room.MembershipInvite {
		drafts = drafts[1:]
	}
	_, err = n.Rooms.SendAll(ctx, rm.ID(), drafts)
	return err
}

// entrance is the invitation of a user and, where users are put into their rooms, the joining.
// Spec: client-server API, "Server Notices", server behaviour.
func (n *Notices) entrance(ctx context.Context, user, service id.UserID) ([]room.Draft, error) {
	key := string(user)
	invite := room.Draft{Type: "m.room.member", StateKey: &key, Content: []byte(`{"membership":"invite"}`), Sender: service}
	if !n.Join {
		return []room.Draft{invite}, nil
	}
	p, err := n.Profiles.Get(ctx, user)
	if err != nil {
		return nil, err
	}
	join, err := json.Marshal(struct {
		Membership  string `json:"membership"`
		DisplayName string `json:"displayname,omitzero"`
		AvatarURL   string `json:"avatar_url,omitzero"`
	}{"join", p.DisplayName, p.AvatarURL})
	if err != nil {
		return nil, err
	}
	return []room.Draft{invite, {Type: "m.room.member", StateKey: &key, Content: join, Sender: user}}, nil
}

// make makes a room of notices, with its reader invited or in it.
func (n *Notices) make(ctx context.Context, user, service id.UserID) (id.RoomID, error) {
	v, _ := event.LookupVersion(event.DefaultVersion)
	create, err := json.Marshal(map[string]any{"room_version": v.ID, "m.federate": false}, json.Deterministic(true))
	if err != nil {
		return "", err
	}
	p, err := n.Profiles.Get(ctx, service)
	if err != nil {
		return "", err
	}
	levels := map[string]int64{string(user): -10}
	if !v.PrivilegedCreators {
		levels[string(service)] = 100
	}
	var drafts []room.Draft
	for _, s := range []struct {
		evType, key string
		content     any
	}{
		{"m.room.member", string(service), map[string]string{"membership": "join", "displayname": p.DisplayName}},
		{"m.room.power_levels", "", map[string]any{"users": levels, "users_default": -10, "events_default": 0, "state_default": 100, "invite": 100, "kick": 100, "ban": 100, "redact": 100}},
		{"m.room.join_rules", "", map[string]string{"join_rule": "invite"}},
		{"m.room.history_visibility", "", map[string]string{"history_visibility": "shared"}},
		{"m.room.guest_access", "", map[string]string{"guest_access": "forbidden"}},
		{"m.room.name", "", map[string]string{"name": n.RoomName}},
	} {
		content, err := json.Marshal(s.content, json.Deterministic(true))
		if err != nil {
			return "", err
		}
		drafts = append(drafts, room.Draft{Type: s.evType, StateKey: &s.key, Content: content, Sender: service})
	}
	entrance, err := n.entrance(ctx, user, service)
	if err != nil {
		return "", err
	}
	roomID, err := n.Rooms.CreateRoom(ctx, v, service, create, append(drafts, entrance...), room.RoomMeta{})
	if err != nil {
		return "", fmt.Errorf("make a room of notices for %s: %w", user, err)
	}
	return roomID, nil
}
