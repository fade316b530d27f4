package clientapi

import (
	"context"
	"slices"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
)

// copySettings carries a user's settings from a room to the one that replaces it: tags, the mark of a direct chat, and
// the push rule for the room.
func (a *API) copySettings(ctx context.Context, user id.UserID, from, to *room.Room) error {
	err := a.Store.Write(ctx, func(tx *store.Tx) error {
		tags, err := tx.AccountData(user, from.NID(), "m.tag")
		if err != nil {
			return err
		}
		there, err := tx.AccountData(user, to.NID(), "m.tag")
		if err != nil {
			return err
		}
		if tags != nil && there == nil {
			if err := tx.SetAccountData(user, to.NID(), "m.tag", tags); err != nil {
				return err
			}
		}
		direct, err := tx.AccountData(user, 0, "m.direct")
		if err != nil || direct == nil {
			return err
		}
		changed, err := withDirect(direct, from.ID(), to.ID())
		if err != nil || changed == nil {
			return err
		}
		return tx.SetAccountData(user, 0, "m.direct", changed)
	})
	if err != nil || a.CopyPushRule == nil {
		return err
	}
	return a.CopyPushRule(ctx, user, from.ID(), to.ID())
}

// withDirect adds a room to m.direct wherever the room that it replaces is listed; nil where nothing changes.
func withDirect(content []byte, from, to id.RoomID) ([]byte, error) {
	var rooms map[id.UserID]jsontext.Value
	if err := json.Unmarshal(content, &rooms); err != nil {
		return nil, nil // clients write it unchecked
	}
	changed := false
	for user, value := range rooms {
		var list []id.RoomID
		if json.Unmarshal(value, &list) != nil || !slices.Contains(list, from) || slices.Contains(list, to) {
			continue
		}
		b, err := json.Marshal(append(list, to))
		if err != nil {
			return nil, err
		}
		rooms[user], changed = b, true
	}
	if !changed {
		return nil, nil
	}
	return json.Marshal(rooms, json.Deterministic(true))
}
