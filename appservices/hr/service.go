package hr

import (
	"context"
	"slices"

	"github.com/go-json-experiment/json"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
)

// serviceDevice is under what name the service account's transactions are told apart.
const serviceDevice = "MOOTHALLHR"

func encode(v any) []byte {
	b, err := json.Marshal(v, json.Deterministic(true))
	if err != nil {
		return []byte(`{}`) // text and lists of text always marshal
	}
	return b
}

func state(sender id.UserID, evType, stateKey string, v any) room.Draft {
	return room.Draft{Type: evType, StateKey: &stateKey, Content: encode(v), Sender: sender}
}

// post sends a message of the service account, once for each key in a room.
func (h *HR) post(ctx context.Context, roomID id.RoomID, key string, content []byte) (id.EventID, error) {
	service, err := h.d.Groups.Service(ctx)
	if err != nil {
		return "", err
	}
	return h.d.Rooms.Send(ctx, roomID, room.Draft{Type: "m.room.message", Content: content, Sender: service, Device: serviceDevice, Txn: "hr/" + key})
}

// serviceRoom is the room in which the service account writes to a person. Who left it is put into it again.
func (h *HR) serviceRoom(ctx context.Context, user id.UserID) (id.RoomID, error) {
	service, err := h.d.Groups.Service(ctx)
	if err != nil {
		return "", err
	}
	var roomID id.RoomID
	var profiles map[id.UserID]store.Profile
	var states map[id.UserID]store.AccountState
	err = h.d.Store.Read(ctx, func(tx *store.Tx) error {
		var err error
		if roomID, err = tx.ServiceRoom(user); err != nil {
			return err
		}
		if states, err = tx.AccountStates([]id.UserID{user}); err != nil {
			return err
		}
		profiles, err = tx.Profiles([]string{string(user), string(service)})
		return err
	})
	if err != nil {
		return "", err
	}
	if s, exists := states[user]; !exists || s.Deactivated || s.Locked {
		return "", mxerr.Forbidden("the account of " + string(user) + " cannot be used")
	}
	profile := func(u id.UserID, content object) object {
		if p := profiles[u]; p.DisplayName != nil {
			content["displayname"] = *p.DisplayName
		}
		if p := profiles[u]; p.AvatarURL != nil {
			content["avatar_url"] = *p.AvatarURL
		}
		return content
	}
	join := state(user, "m.room.member", string(user), profile(user, object{
		"membership": "join", "is_direct": true, "join_authorised_via_users_server": service,
	}))
	if roomID != "" {
		rm, err := h.d.Rooms.Room(ctx, roomID)
		if err == nil && rm.Membership(user) == room.MembershipJoin {
			return roomID, nil
		}
		if err == nil {
			if _, err = h.d.Rooms.Send(ctx, roomID, join); err == nil {
				return roomID, nil
			}
		}
		if e := mxerr.As(err); e == nil || e.Status >= 500 {
			return "", err
		}
	}
	v, _ := event.LookupVersion(event.DefaultVersion)
	create := object{"room_version": v.ID}
	if !v.ImplicitCreator {
		create["creator"] = service
	}
	levels := object{"users": object{}, "invite": 100, "state_default": 100, "kick": 100, "ban": 100}
	if !v.PrivilegedCreators {
		levels["users"] = object{string(service): 100}
	}
	roomID, err = h.d.Rooms.CreateRoom(ctx, v, service, encode(create), []room.Draft{
		state(service, "m.room.member", string(service), profile(service, object{"membership": "join"})),
		state(service, "m.room.power_levels", "", levels),
		state(service, "m.room.join_rules", "", object{"join_rule": "restricted", "allow": []string{}}),
		state(service, "m.room.history_visibility", "", object{"history_visibility": "shared"}),
		state(service, "m.room.guest_access", "", object{"guest_access": "forbidden"}),
		join,
	}, room.RoomMeta{})
	if err != nil {
		return "", err
	}
	if err := h.d.Store.Write(ctx, func(tx *store.Tx) error { return tx.SetServiceRoom(user, roomID) }); err != nil {
		return "", err
	}
	return roomID, h.markDirect(ctx, user, service, roomID)
}

// markDirect lists a room among a user's direct chats. Spec: client-server API, "Direct Messaging".
func (h *HR) markDirect(ctx context.Context, user, service id.UserID, roomID id.RoomID) error {
	old, err := h.d.Data.AccountData(ctx, user, "", "m.direct")
	if err != nil && !mxerr.Is(err, "M_NOT_FOUND") {
		return err
	}
	direct := map[string]any{}
	if len(old) > 0 {
		if err := json.Unmarshal(old, &direct); err != nil {
			return nil // the client wrote something else there: it is left alone
		}
	}
	list, _ := direct[string(service)].([]any)
	if slices.Contains(list, any(string(roomID))) {
		return nil
	}
	direct[string(service)] = append(list, string(roomID))
	return h.d.Data.SetAccountData(ctx, user, "m.direct", encode(direct))
}
