package account

import (
	"context"
	"fmt"
	"net/http"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/filter"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

const (
	ignoredUserList  = "m.ignored_user_list"
	invitePermission = "m.invite_permission_config"
	tagType          = "m.tag"

	maxCachedIgnored = 50_000 // users
	maxCachedBlocks  = 50_000 // users
	maxCachedFilters = 10_000
)

// DataDeps is what Data works with.
type DataDeps struct {
	Store *store.Store
}

// Data reads and writes what clients keep on the server: account data with tags and ignored users, and filters.
type Data struct {
	DataDeps
	ignored *logCache[id.UserID, map[id.UserID]struct{}]
	blocks  *logCache[id.UserID, bool]
	filters *logCache[filterKey, *filter.Filter]
}

// NewData makes Data.
func NewData(d DataDeps) *Data {
	return &Data{
		DataDeps: d,
		ignored:  newLogCache[id.UserID, map[id.UserID]struct{}](maxCachedIgnored),
		blocks:   newLogCache[id.UserID, bool](maxCachedBlocks),
		filters:  newLogCache[filterKey, *filter.Filter](maxCachedFilters),
	}
}

// Listener keeps what is cached true to the log.
func (d *Data) Listener() store.Listener {
	return store.Listener{Apply: func(entries []store.Entry) {
		for i := range entries {
			switch e := &entries[i]; {
			case e.Kind == store.KindReset:
				d.ignored.clear()
				d.blocks.clear()
			case e.Kind == store.KindAccountData && e.Key == ignoredUserList && e.Room == 0:
				d.ignored.drop(id.UserID(e.User))
			case e.Kind == store.KindAccountData && e.Key == invitePermission && e.Room == 0:
				d.blocks.drop(id.UserID(e.User))
			}
		}
	}}
}

// CheckAccountDataType refuses types that clients may not set: 405 M_BAD_JSON for those that the server manages,
// M_INVALID_PARAM for names that are too long. Spec: client-server API, "Client Config", server behaviour.
func CheckAccountDataType(dataType string) error {
	if dataType == "m.fully_read" || dataType == "m.push_rules" {
		return mxerr.New(http.StatusMethodNotAllowed, "M_BAD_JSON", dataType+" is managed by the server and has endpoints of its own")
	}
	if len(dataType) > maxIdentifier {
		return mxerr.InvalidParam(fmt.Sprintf("a type of account data may have at most %d bytes", maxIdentifier))
	}
	return nil
}

// SetAccountData stores account data that belongs to no room. content is a JSON object.
func (d *Data) SetAccountData(ctx context.Context, user id.UserID, dataType string, content []byte) error {
	return d.Store.Write(ctx, func(tx *store.Tx) error { return tx.SetAccountData(user, 0, dataType, content) })
}

// SetRoomAccountData stores account data for a room, which is named by its number. content is a JSON object.
func (d *Data) SetRoomAccountData(ctx context.Context, user id.UserID, room int64, dataType string, content []byte) error {
	return d.Store.Write(ctx, func(tx *store.Tx) error { return tx.SetAccountData(user, room, dataType, content) })
}

// SetAccountDataByRoomID is SetRoomAccountData for a room's id. Errors: M_INVALID_PARAM for what is no room id,
// M_NOT_FOUND for a room that is not known here.
func (d *Data) SetAccountDataByRoomID(ctx context.Context, user id.UserID, roomID id.RoomID, dataType string, content []byte) error {
	return d.Store.Write(ctx, func(tx *store.Tx) error {
		room, err := roomNumber(tx, roomID)
		if err != nil {
			return err
		}
		return tx.SetAccountData(user, room, dataType, content)
	})
}

func roomNumber(tx *store.Tx, roomID id.RoomID) (int64, error) {
	if len(roomID) < 2 || roomID[0] != '!' || len(roomID) > maxIdentifier {
		return 0, mxerr.InvalidParam(fmt.Sprintf("%q is not a room id", string(roomID)))
	}
	room, found, err := tx.RoomByID(string(roomID))
	if err == nil && !found {
		err = mxerr.NotFound("this server knows no room of this id")
	}
	return room.NID, err
}

var errNoAccountData = mxerr.NotFound("there is no account data of this type")

// AccountData reads account data of a user: of a room, or of none where roomID is "". Errors: M_NOT_FOUND, M_INVALID_PARAM.
func (d *Data) AccountData(ctx context.Context, user id.UserID, roomID id.RoomID, dataType string) ([]byte, error) {
	var content []byte
	err := d.Store.Read(ctx, func(tx *store.Tx) error {
		var room int64
		var err error
		if roomID != "" {
			if room, err = roomNumber(tx, roomID); err != nil {
				return err
			}
		}
		body, err := tx.AccountData(user, room, dataType)
		if err == nil && body == nil {
			err = errNoAccountData
		}
		content = body
		return err
	})
	return content, err
}

// AccountDataSince reads the account data of a user that changed last after since and not after upto, of all rooms and of
// none, in the order of the changes. What changed again after upto is left for the next look.
func (d *Data) AccountDataSince(ctx context.Context, user id.UserID, since, upto int64) ([]store.AccountData, error) {
	var out []store.AccountData
	err := d.Store.Read(ctx, func(tx *store.Tx) error {
		var err error
		out, err = tx.AccountDataSince(user, since, upto)
		return err
	})
	return out, err
}

// Ignored tells whom a user ignores. The result is shared: it must not be changed.
// Spec: client-server API, "Ignoring Users".
func (d *Data) Ignored(ctx context.Context, user id.UserID) (map[id.UserID]struct{}, error) {
	return d.ignored.get(ctx, user, func(ctx context.Context) (map[id.UserID]struct{}, error) {
		var out map[id.UserID]struct{}
		err := d.Store.Read(ctx, func(tx *store.Tx) error {
			body, err := tx.AccountData(user, 0, ignoredUserList)
			out = parseIgnored(user, body)
			return err
		})
		return out, err
	})
}

// BlocksInvites tells whether a user accepts no invitations, as far as this process has heard.
// Spec: client-server API, "Invite permission".
func (d *Data) BlocksInvites(ctx context.Context, user id.UserID) (bool, error) {
	return d.blocks.get(ctx, user, func(ctx context.Context) (bool, error) {
		config, err := d.AccountData(ctx, user, "", invitePermission)
		if mxerr.Is(err, "M_NOT_FOUND") {
			return false, nil
		}
		return gjson.GetBytes(config, "default_action").Str == "block", err
	})
}

// parseIgnored reads m.ignored_user_list. Clients write it unchecked: what has another shape ignores nobody. Nobody
// ignores themselves, which would hide their own messages from them.
func parseIgnored(user id.UserID, body []byte) map[id.UserID]struct{} {
	list := gjson.GetBytes(body, "ignored_users")
	if !list.IsObject() {
		return nil
	}
	out := map[id.UserID]struct{}{}
	list.ForEach(func(key, _ gjson.Result) bool {
		if other := id.UserID(key.String()); other != user {
			out[other] = struct{}{}
		}
		return true
	})
	return out
}
