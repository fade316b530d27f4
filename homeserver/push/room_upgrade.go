package push

import (
	"bytes"
	"context"
	"slices"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/store"
)

// CopyRoomRule gives a user the push rules for a room that the user had for the one it replaces: the room's own rule,
// and the override by which clients mute a room. Rules that are there already stay.
// Spec: client-server API, "Room Upgrades", server behaviour: the user's notification settings move along.
func (p *Push) CopyRoomRule(ctx context.Context, user id.UserID, from, to id.RoomID) error {
	has := false
	err := p.Store.Read(ctx, func(tx *store.Tx) error {
		b, _, err := tx.PushRules(user)
		if err != nil {
			return err
		}
		d, err := ParseDelta(b)
		if err != nil {
			return err
		}
		has = d.index(Room, string(from)) >= 0 || d.index(Override, string(from)) >= 0
		return nil
	})
	if err != nil || !has {
		return err
	}
	return p.Store.Write(ctx, func(tx *store.Tx) error {
		return tx.UpdatePushRules(user, func(b []byte) ([]byte, error) {
			d, err := ParseDelta(b)
			if err != nil {
				return nil, err
			}
			if err := d.copyRoom(string(from), string(to)); err != nil {
				return nil, err
			}
			return d.Encode()
		})
	})
}

// copyRoom adds the rules of one room for another.
func (d *Delta) copyRoom(from, to string) error {
	for _, k := range []Kind{Room, Override} {
		at := d.index(k, from)
		if at < 0 || d.index(k, to) >= 0 || d.count() >= maxRules {
			continue
		}
		rule := d.Rules[k][at]
		rule.ID = to
		rule.Conditions = slices.Clone(rule.Conditions)
		for i := range rule.Conditions {
			c, err := rule.Conditions[i].forRoom(from, to)
			if err != nil {
				return err
			}
			rule.Conditions[i] = c
		}
		d.Rules[k] = slices.Insert(d.Rules[k], at, rule)
	}
	return nil
}

// forRoom is the condition with one room in the place of another.
func (c Condition) forRoom(from, to string) (Condition, error) {
	if c.Key != "room_id" || c.Pattern != from {
		return c, nil
	}
	// ids hold nothing that JSON escapes; the quotes keep longer ids apart
	quote := func(s string) []byte {
		b, _ := jsontext.AppendQuote(nil, s) // stored ids are valid UTF-8
		return b
	}
	var out Condition
	err := json.Unmarshal(bytes.ReplaceAll(c.raw, quote(from), quote(to)), &out)
	return out, err
}
