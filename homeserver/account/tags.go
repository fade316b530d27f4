package account

import (
	"context"
	"fmt"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// maxTags bounds the tags of one room, in bytes of their JSON.
const maxTags = 64 << 10

// tagsContent is the content of m.tag. Spec: client-server API, "Room Tagging".
type tagsContent struct {
	Tags map[string]jsontext.Value `json:"tags"`
}

func parseTags(body []byte) map[string]jsontext.Value {
	var c tagsContent
	// m.tag can be written as account data of any shape: what is no tags object counts as none.
	if body == nil || json.Unmarshal(body, &c) != nil || c.Tags == nil {
		return map[string]jsontext.Value{}
	}
	return c.Tags
}

// Tags reads the tags of a user's room. Errors: M_INVALID_PARAM, M_NOT_FOUND for a room that is not known here.
func (d *Data) Tags(ctx context.Context, user id.UserID, roomID id.RoomID) (map[string]jsontext.Value, error) {
	var out map[string]jsontext.Value
	err := d.Store.Read(ctx, func(tx *store.Tx) error {
		room, err := roomNumber(tx, roomID)
		if err != nil {
			return err
		}
		body, err := tx.AccountData(user, room, tagType)
		out = parseTags(body)
		return err
	})
	return out, err
}

// SetTag gives a room a tag; content is a JSON object. Errors: M_INVALID_PARAM, M_NOT_FOUND for a room that is not known
// here, M_TOO_LARGE.
func (d *Data) SetTag(ctx context.Context, user id.UserID, roomID id.RoomID, tag string, content []byte) error {
	if len(tag) > maxIdentifier {
		return mxerr.InvalidParam(fmt.Sprintf("a tag's name may have at most %d bytes", maxIdentifier))
	}
	return d.changeTags(ctx, user, roomID, func(tags map[string]jsontext.Value) bool {
		tags[tag] = content
		return true
	})
}

// DeleteTag takes a tag off a room, if it is there.
func (d *Data) DeleteTag(ctx context.Context, user id.UserID, roomID id.RoomID, tag string) error {
	return d.changeTags(ctx, user, roomID, func(tags map[string]jsontext.Value) bool {
		_, there := tags[tag]
		delete(tags, tag)
		return there
	})
}

func (d *Data) changeTags(ctx context.Context, user id.UserID, roomID id.RoomID, change func(map[string]jsontext.Value) bool) error {
	return d.Store.Write(ctx, func(tx *store.Tx) error {
		room, err := roomNumber(tx, roomID)
		if err != nil {
			return err
		}
		// Tags of one room are one value: two clients of a user change it one after the other.
		if _, _, err := tx.LockUser(user); err != nil {
			return err
		}
		body, err := tx.AccountData(user, room, tagType)
		if err != nil {
			return err
		}
		tags := parseTags(body)
		if !change(tags) {
			return nil
		}
		if body, err = json.Marshal(tagsContent{tags}, json.Deterministic(true)); err != nil {
			return fmt.Errorf("build m.tag: %w", err)
		}
		if len(body) > maxTags {
			return mxerr.TooLarge(fmt.Sprintf("the tags of a room may have at most %d bytes", maxTags))
		}
		return tx.SetAccountData(user, room, tagType, body)
	})
}
