package oa

import (
	"context"
	"fmt"

	"github.com/go-json-experiment/json"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
)

type object = map[string]any

func encode(v any) ([]byte, error) { return json.Marshal(v, json.Deterministic(true)) }

// alone lets one at a time look for a user's room in this process; the func it returns lets the next one.
func (o *OA) alone(user id.UserID) func() {
	for {
		o.mu.Lock()
		wait := o.making[user]
		if wait == nil {
			mine := make(chan struct{})
			o.making[user] = mine
			o.mu.Unlock()
			return func() {
				o.mu.Lock()
				delete(o.making, user)
				o.mu.Unlock()
				close(mine)
			}
		}
		o.mu.Unlock()
		<-wait
	}
}

// room gives the approvals room of a user, who is in it afterwards, and who writes in it. Only the loop that makes cards, which
// one process runs, calls it.
func (o *OA) room(ctx context.Context, user id.UserID) (id.RoomID, id.UserID, error) {
	service, err := o.d.Service(ctx)
	if err != nil {
		return "", "", err
	}
	if user == service {
		return "", "", mxerr.InvalidParam("the service account has no approvals room")
	}
	defer o.alone(user)()
	var roomID id.RoomID
	var states map[id.UserID]store.AccountState
	err = o.d.Store.Read(ctx, func(tx *store.Tx) (err error) {
		if roomID, err = tx.OARoom(user); err == nil {
			states, err = tx.AccountStates([]id.UserID{user})
		}
		return err
	})
	if err != nil {
		return "", "", err
	}
	if s, exists := states[user]; !exists || s.Deactivated {
		return "", "", mxerr.Forbidden("the account of " + string(user) + " cannot be used")
	}
	if roomID != "" {
		rm, err := o.d.Rooms.Room(ctx, roomID)
		if err == nil {
			return roomID, service, o.bringBack(ctx, rm, user, service)
		}
		if !mxerr.Is(err, "M_NOT_FOUND") {
			return "", "", err
		}
	}
	if roomID, err = o.makeRoom(ctx, user, service); err != nil {
		return "", "", err
	}
	rm, err := o.d.Rooms.Room(ctx, roomID)
	if err != nil {
		return "", "", err
	}
	return roomID, service, o.d.Store.Write(ctx, func(tx *store.Tx) error { return tx.SetOARoom(user, roomID, rm.NID()) })
}

// bringBack makes a user who left the room join it again: an approval has to reach its assignee.
func (o *OA) bringBack(ctx context.Context, rm *room.Room, user, service id.UserID) error {
	if rm.Membership(user) == room.MembershipJoin {
		return nil
	}
	drafts, err := o.entrance(ctx, user, service)
	if err != nil {
		return err
	}
	_, err = o.d.Rooms.SendAll(ctx, rm.ID(), drafts)
	return err
}

// entrance is the invitation of a user and the joining.
func (o *OA) entrance(ctx context.Context, user, service id.UserID) ([]room.Draft, error) {
	p, err := o.d.Profiles.Get(ctx, user)
	if err != nil {
		return nil, err
	}
	member := object{"membership": "join"}
	if p.DisplayName != "" {
		member["displayname"] = p.DisplayName
	}
	if p.AvatarURL != "" {
		member["avatar_url"] = p.AvatarURL
	}
	join, err := encode(member)
	key := string(user)
	return []room.Draft{
		{Type: "m.room.member", StateKey: &key, Content: []byte(`{"membership":"invite"}`), Sender: service},
		{Type: "m.room.member", StateKey: &key, Content: join, Sender: user},
	}, err
}

// makeRoom makes an approvals room: unencrypted, so that the company can keep what was decided, and nobody but the service account
// changes anything in it.
func (o *OA) makeRoom(ctx context.Context, user, service id.UserID) (id.RoomID, error) {
	v, _ := event.LookupVersion(event.DefaultVersion)
	create := object{"room_version": v.ID, "m.federate": false}
	if !v.ImplicitCreator {
		create["creator"] = service
	}
	createJSON, err := encode(create)
	if err != nil {
		return "", err
	}
	p, err := o.d.Profiles.Get(ctx, service)
	if err != nil {
		return "", err
	}
	levels := object{}
	if !v.PrivilegedCreators {
		levels[string(service)] = 100
	}
	var drafts []room.Draft
	for _, s := range []struct {
		evType, key string
		content     object
	}{
		{"m.room.member", string(service), object{"membership": "join", "displayname": p.DisplayName}},
		{"m.room.power_levels", "", object{"users": levels, "users_default": 0, "events_default": 0, "state_default": 100, "invite": 100, "kick": 100, "ban": 100, "redact": 100}},
		{"m.room.join_rules", "", object{"join_rule": "invite"}},
		{"m.room.history_visibility", "", object{"history_visibility": "shared"}},
		{"m.room.guest_access", "", object{"guest_access": "forbidden"}},
		{"m.room.name", "", object{"name": o.d.Config.RoomName}},
		{"m.room.topic", "", object{"topic": o.words.topic}},
	} {
		content, err := encode(s.content)
		if err != nil {
			return "", err
		}
		drafts = append(drafts, room.Draft{Type: s.evType, StateKey: &s.key, Content: content, Sender: service})
	}
	entrance, err := o.entrance(ctx, user, service)
	if err != nil {
		return "", err
	}
	roomID, err := o.d.Rooms.CreateRoom(ctx, v, service, createJSON, append(drafts, entrance...), room.RoomMeta{})
	if err != nil {
		return "", fmt.Errorf("make the approvals room of %s: %w", user, err)
	}
	return roomID, nil
}

// device is what transaction ids of the bot belong to.
const device = "oa"

// post writes into a room. The same txn gives the same event.
func (o *OA) post(ctx context.Context, roomID id.RoomID, service id.UserID, txn string, content object) (id.EventID, error) {
	b, err := encode(content)
	if err != nil {
		return "", err
	}
	return o.d.Rooms.Send(ctx, roomID, room.Draft{Type: "m.room.message", Content: b, Sender: service, Device: device, Txn: "oa/" + txn})
}
