package clientapi

import (
	"context"
	"net/http"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

const typeGuestAccess = "m.room.guest_access"

// registerGuest makes a guest: an account without a password that may do little.
// Spec: client-server API, "Guest Access" and POST /register.
func (a *API) registerGuest(w http.ResponseWriter, r *http.Request) error {
	if !a.Accounts.Config.Registration.Guests {
		return mxerr.New(http.StatusForbidden, "M_GUEST_ACCESS_FORBIDDEN", "this server has no guest accounts")
	}
	// Spec: everything but the device's name is ignored.
	req, err := web.ReadOptionalJSON[struct {
		DeviceName *string `json:"initial_device_display_name"`
	}](r)
	if err != nil {
		return err
	}
	u, err := a.Accounts.CreateUser(r.Context(), account.NewUser{Localpart: account.SpareLocalpart(), Guest: true})
	if err != nil {
		return err
	}
	return a.signIn(w, r, u.ID, account.SignIn{Way: account.WayRegistration, DeviceDisplayName: req.DeviceName})
}

// guestOf finds the guest that wants to become a full user, by its access token; "" where the request comes from none.
// Spec: client-server API, "Guest Access", guest_access_token.
func (a *API) guestOf(ctx context.Context, req registerRequest) (id.UserID, error) {
	if req.GuestToken == "" {
		return "", nil
	}
	who, err := a.Accounts.Authenticate(ctx, req.GuestToken)
	if err != nil {
		return "", err
	}
	if !who.Guest {
		return "", mxerr.Forbidden("'guest_access_token' is not the token of a guest")
	}
	if req.Username == nil || string(a.Accounts.UserID(*req.Username)) != string(who.UserID) {
		return "", mxerr.InvalidParam("'username' must be the guest's own when 'guest_access_token' is given")
	}
	return who.UserID, nil
}

// EventSent does what follows from an event that another part of the server sent for a user.
func (a *API) EventSent(ctx context.Context, roomID id.RoomID, eventType string) {
	if eventType != typeGuestAccess {
		return
	}
	rm, err := a.Rooms.Room(ctx, roomID)
	if err != nil {
		a.Logger.Error("guests stay in a room that lets none in", "room_id", roomID, "error", err)
		return
	}
	a.guestsOut(ctx, rm, eventType)
}

// guestsOut makes the guests leave a room that does not let guests in any more, after a state event of that type was sent or
// redacted.
// Spec: client-server API, "Guest Access", server behaviour.
func (a *API) guestsOut(ctx context.Context, rm *room.Room, changed string) {
	if changed != typeGuestAccess || rm.GuestsMayJoin() {
		return
	}
	ctx = context.WithoutCancel(ctx)
	var members []string
	for _, u := range rm.Joined() {
		members = append(members, string(u))
	}
	var guests []id.UserID
	err := a.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
		guests, err = tx.GuestsAmong(members)
		return err
	})
	for _, u := range guests {
		if err != nil {
			break
		}
		key := string(u)
		_, err = a.Rooms.Send(ctx, rm.ID(), room.Draft{Type: typeMember, StateKey: &key, Content: []byte(`{"membership":"leave"}`), Sender: u})
	}
	if err != nil {
		a.Logger.Error("guests stay in a room that lets none in", "room_id", rm.ID(), "error", err)
	}
}
