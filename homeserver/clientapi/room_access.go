package clientapi

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// access is what a user may read of a room.
type access struct {
	room  *room.Room
	until int64 // ord of the event by which the user left; 0 for those who see the room as it is now
}

// notInRoom is the answer to those who may not look into a room. A room that does not exist gives the same one, so that
// nobody can try out room ids.
func notInRoom() error {
	return mxerr.Forbidden("you are not in this room, or there is no such room on this server")
}

// hideRoom makes an unknown room look like one that the user is not in.
func hideRoom(err error) error {
	if mxerr.Is(err, "M_NOT_FOUND") {
		return notInRoom()
	}
	return err
}

// noFederation is the answer for rooms of other servers.
func noFederation(what string) error {
	return mxerr.NotFound(what + " is not known here: this server does not talk to other servers")
}

// readable finds out what a user may read of a room: members see it as it is, and so does everybody while it is
// world-readable; those who left see it as it was when they left. Anyone else gets 403.
// Spec: client-server API, "Getting events for a room", "Room Previews".
func (a *API) readable(ctx context.Context, roomID id.RoomID, user id.UserID) (*access, error) {
	r, err := a.Rooms.Room(ctx, roomID)
	if err != nil {
		return nil, hideRoom(err)
	}
	joined, err := a.fresh(ctx, func() bool { return r.Membership(user) == room.MembershipJoin })
	if err != nil {
		return nil, err
	}
	if joined {
		return &access{room: r}, nil
	}
	// Those who left see no less than those who never came.
	if r.HistoryVisibility() == "world_readable" {
		return &access{room: r}, nil
	}
	if r.Membership(user) != room.MembershipNone {
		left, err := a.leftAt(ctx, r, user)
		if err != nil {
			return nil, err
		}
		if left != 0 {
			return &access{room: r, until: left}, nil
		}
	}
	return nil, notInRoom()
}

// leftAt is the ord of the event that ended a user's last stay in a room, 0 when the user never was in it or has
// forgotten it.
func (a *API) leftAt(ctx context.Context, r *room.Room, user id.UserID) (int64, error) {
	forgotten, err := a.hasForgotten(ctx, r, user)
	if err != nil || forgotten {
		return 0, err
	}
	history, err := a.Rooms.MembershipHistory(ctx, r, user)
	if err != nil {
		return 0, err
	}
	var left int64
	in := false
	for _, c := range history {
		switch {
		case c.Membership == room.MembershipJoin:
			in = true
		case in:
			in, left = false, c.Ord
		}
	}
	return left, nil
}

func (a *API) hasForgotten(ctx context.Context, r *room.Room, user id.UserID) (bool, error) {
	u, err := a.Rooms.User(ctx, user)
	if err != nil {
		return false, err
	}
	forgotten := false
	u.EachRoom(func(ur *room.UserRoom) {
		if ur.Room.NID() == r.NID() {
			forgotten = ur.Forgotten
		}
	})
	return forgotten, nil
}

// memberOf finds a room that the user is in.
func (a *API) memberOf(ctx context.Context, roomID id.RoomID, user id.UserID) (*room.Room, error) {
	r, err := a.Rooms.Room(ctx, roomID)
	if err != nil {
		return nil, hideRoom(err)
	}
	joined, err := a.fresh(ctx, func() bool { return r.Membership(user) == room.MembershipJoin })
	if err != nil {
		return nil, err
	}
	if !joined {
		return nil, notInRoom()
	}
	return r, nil
}

// fresh tells whether a condition on what is in memory holds. Memory that lags behind other processes may allow, but
// before it denies it catches up.
func (a *API) fresh(ctx context.Context, holds func() bool) (bool, error) {
	if holds() {
		return true, nil
	}
	if a.Store.SQLite() {
		return false, nil // there are no other processes
	}
	if err := a.Store.CatchUp(ctx); err != nil {
		return false, err
	}
	return holds(), nil
}

// resolve finds the room that a room id or an alias in the path means. Rooms of other servers are 404 with a sentence
// that says why.
func (a *API) resolve(ctx context.Context, roomIDOrAlias string) (*room.Room, error) {
	switch {
	case strings.HasPrefix(roomIDOrAlias, "!"):
		r, err := a.Rooms.Room(ctx, id.RoomID(roomIDOrAlias))
		if mxerr.Is(err, "M_NOT_FOUND") {
			return nil, noFederation("the room " + printable(roomIDOrAlias))
		}
		return r, err
	case strings.HasPrefix(roomIDOrAlias, "#"):
		if err := checkAlias(roomIDOrAlias); err != nil {
			return nil, err
		}
		nid, err := a.aliasRoom(ctx, roomIDOrAlias)
		if mxerr.Is(err, "M_NOT_FOUND") && a.queriedAlias(ctx, roomIDOrAlias) {
			nid, err = a.aliasRoom(ctx, roomIDOrAlias)
		}
		if err != nil {
			return nil, err
		}
		return a.Rooms.RoomByNID(ctx, nid)
	}
	return nil, mxerr.InvalidParam("a room id begins with ! and an alias with #")
}

// aliasRoom gives the number of the room that an alias points to.
func (a *API) aliasRoom(ctx context.Context, alias string) (int64, error) {
	if !a.localName(alias) {
		return 0, noFederation("the alias " + printable(alias))
	}
	var found store.Alias
	var ok bool
	err := a.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
		found, ok, err = tx.AliasByName(alias)
		return err
	})
	if err != nil {
		return 0, err
	}
	if !ok {
		return 0, mxerr.NotFound("there is no room alias " + printable(alias))
	}
	return found.Room, nil
}

// localName tells whether an identifier ends in this server's name.
func (a *API) localName(identifier string) bool {
	_, server, ok := strings.Cut(identifier, ":")
	return ok && server == a.ServerName
}

// printable shortens what a client sent for use in a message.
func printable(s string) string {
	const most = 100
	if len(s) > most {
		s = s[:most] + "…"
	}
	return fmt.Sprintf("%q", s)
}

// reader says for whom a response's events are rendered.
func (a *API) reader(ctx context.Context, who *web.Identity, acc *access) (*room.Reader, error) {
	ignored, err := a.Data.Ignored(ctx, who.UserID)
	if err != nil {
		return nil, err
	}
	visibility, err := a.Rooms.Visibility(ctx, acc.room, who.UserID)
	if err != nil {
		return nil, err
	}
	return &room.Reader{
		User: who.UserID, Device: who.DeviceID, NowMS: time.Now().UnixMilli(), Bundles: true,
		Ignored: ignored, Visibility: visibility, Until: acc.until,
	}, nil
}

// plainReader is a reader for state, which has neither aggregations nor ignored senders.
func plainReader(who *web.Identity, acc *access) *room.Reader {
	return &room.Reader{User: who.UserID, Device: who.DeviceID, NowMS: time.Now().UnixMilli(), Until: acc.until}
}

// shows tells whether a reader gets an event in a timeline. Events of ignored users are left out, their state events
// stay. Spec: client-server API, "Ignoring Users", server behaviour.
func shows(rd *room.Reader, e *room.Event) bool {
	if rd.Until != 0 && e.Ord > rd.Until || rd.Visibility != nil && !rd.Visibility.Allows(e.Ord) {
		return false
	}
	if _, ignored := rd.Ignored[e.PDU.Sender()]; ignored {
		_, isState := e.PDU.StateKey()
		return isState
	}
	return true
}

// end is the ord behind the last event that the user may see.
func (acc *access) end() int64 {
	if acc.until != 0 {
		return acc.until + 1
	}
	return math.MaxInt64
}

// visibleEvent finds an event of a room that the reader may see; 404 otherwise.
func (a *API) visibleEvent(ctx context.Context, acc *access, rd *room.Reader, eventID id.EventID) (*room.Event, error) {
	e, err := a.Rooms.EventByID(ctx, eventID)
	if err != nil {
		return nil, err
	}
	if e == nil || e.Room != acc.room.NID() || e.Status != store.StatusAccepted || rd.Until != 0 && e.Ord > rd.Until || !rd.Visibility.Allows(e.Ord) {
		return nil, eventNotFound()
	}
	return e, nil
}

func eventNotFound() error {
	return mxerr.NotFound("there is no such event in this room, or you may not see it")
}

// direction reads the parameter dir.
func direction(r *http.Request, def string) (backwards bool, err error) {
	dir := web.QueryString(r, "dir")
	if dir == "" {
		dir = def
	}
	switch dir {
	case "b":
		return true, nil
	case "f":
		return false, nil
	case "":
		return false, mxerr.MissingParam("query parameter 'dir' is missing: f is forwards, b is backwards")
	}
	return false, mxerr.InvalidParam("query parameter 'dir' must be f (forwards) or b (backwards)")
}

// pageToken reads a pagination token from the query; ok is false where there is none. A process that lags behind the
// one that gave the token out catches up.
func (a *API) pageToken(r *http.Request, name string) (t room.Token, ok bool, err error) {
	s := web.QueryString(r, name)
	if s == "" {
		return 0, false, nil
	}
	if t, err = room.ParseToken(s); err == nil && int64(t) > a.Store.Applied() && !a.Store.SQLite() {
		err = a.Store.CatchUp(r.Context())
	}
	return t, err == nil, err
}
