package clientapi

import (
	"context"
	"net/http"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// loginAppService is how application services register and sign in their users.
// Spec: client-server API, "Appservice Login"; application service API, "Server admin style permissions".
const loginAppService = "m.login.application_service"

// AppServiceDeps are the application services.
type AppServiceDeps struct {
	// Any tells whether there are services.
	Any func() bool
	// Of names the service whose token a request carries, "" for none.
	Of func(r *http.Request) string
	// UserAllowed tells whether a service may register and sign in a user. Errors: M_EXCLUSIVE.
	UserAllowed func(service string, user id.UserID) error
	// AliasAllowed tells whether a service, or anybody else (""), may make or delete an alias. Errors: M_EXCLUSIVE.
	AliasAllowed func(alias, service string) error
	// QueryUser and QueryAlias ask the services that claim a name to make what it names, and tell whether one did.
	QueryUser  func(ctx context.Context, user id.UserID) bool
	QueryAlias func(ctx context.Context, alias string) bool
}

// appServiceRoutes are the endpoints of application services that are about rooms.
func (a *API) appServiceRoutes() []web.Route {
	return []web.Route{
		{Pattern: "PUT /_matrix/client/v3/directory/list/appservice/{networkId}/{roomId}", Auth: web.AppService, Rate: web.RateSend, Handler: a.putNetworkVisibility},
	}
}

// serviceOf names the service whose token a request to a public endpoint carries. Errors: M_MISSING_TOKEN,
// M_UNKNOWN_TOKEN, M_FORBIDDEN where the token is none of a service.
func (a *API) serviceOf(r *http.Request) (string, error) {
	if web.AccessToken(r) == "" {
		return "", mxerr.MissingToken()
	}
	if a.AppServices != nil {
		if service := a.AppServices.Of(r); service != "" {
			return service, nil
		}
	}
	if _, err := a.Accounts.Authenticate(r.Context(), web.AccessToken(r)); err != nil {
		return "", err
	}
	return "", mxerr.Forbidden("the access token is none of an application service")
}

// registerByService handles POST /register of type m.login.application_service.
func (a *API) registerByService(w http.ResponseWriter, r *http.Request, req registerRequest) error {
	service, err := a.serviceOf(r)
	if err != nil {
		return err
	}
	if req.Username == nil {
		return mxerr.MissingParam("'username' is required")
	}
	if err := account.ValidateDeviceID(req.DeviceID); err != nil {
		return err
	}
	localpart, err := a.Accounts.Localpart(*req.Username)
	if err != nil {
		return err
	}
	user := a.Accounts.UserID(localpart)
	if err := a.AppServices.UserAllowed(service, user); err != nil {
		return err
	}
	if _, err := a.Accounts.CreateUser(r.Context(), account.NewUser{Localpart: localpart, AppService: service, Unreserved: true}); err != nil {
		return err
	}
	if is(req.InhibitLogin) {
		return web.WriteJSON(w, loginResponse{UserID: user, HomeServer: user.Homeserver()})
	}
	return a.signIn(w, r, user, account.SignIn{
		Way: account.WayAppService, Device: req.DeviceID, DeviceDisplayName: req.DeviceName, Refreshable: is(req.RefreshTokens),
	})
}

// serviceLogin finds the user whom a service signs in.
func (a *API) serviceLogin(r *http.Request, req loginRequest, in *account.SignIn) (id.UserID, error) {
	service, err := a.serviceOf(r)
	if err != nil {
		return "", err
	}
	name, err := a.loginName(r.Context(), req.Identifier, req.User)
	if err != nil {
		return "", err
	}
	localpart, err := a.Accounts.Localpart(name)
	if err != nil {
		return "", mxerr.Forbidden("there is no such user")
	}
	user := a.Accounts.UserID(localpart)
	if err := a.AppServices.UserAllowed(service, user); err != nil {
		return "", err
	}
	in.Way = account.WayAppService
	known, err := a.Accounts.Exists(r.Context(), user)
	if err == nil && !known {
		err = mxerr.Forbidden("the application service has not registered this user")
	}
	return user, err
}

// putServiceDevice handles PUT /devices/{deviceId} of a service, which makes devices that are not there.
// Spec: application service API, "Device management".
func (a *API) putServiceDevice(w http.ResponseWriter, r *http.Request, user id.UserID, device id.DeviceID, name *string) error {
	made, err := a.Accounts.PutDevice(r.Context(), user, device, name)
	if err != nil {
		return err
	}
	status := http.StatusOK
	if made {
		status = http.StatusCreated
	}
	return web.WriteJSONStatus(w, status, struct{}{})
}

// aliasAllowed refuses aliases that belong to a service.
func (a *API) aliasAllowed(who *web.Identity, alias string) error {
	if a.AppServices == nil {
		return nil
	}
	return a.AppServices.AliasAllowed(alias, who.AppService)
}

// queriedAlias tells whether a service made the room of an alias that nobody knew.
// Spec: application service API, "Querying".
func (a *API) queriedAlias(ctx context.Context, alias string) bool {
	return a.AppServices != nil && a.localName(alias) && a.AppServices.QueryAlias(ctx, alias)
}

// queriedUser tells whether a service made a user that nobody knew.
func (a *API) queriedUser(ctx context.Context, user id.UserID) bool {
	return a.AppServices != nil && a.localName(string(user)) && event.ValidUserID(user) && a.AppServices.QueryUser(ctx, user)
}

// profileOf reads a profile, which a service may have to make first.
func (a *API) profileOf(ctx context.Context, user id.UserID) (account.Profile, error) {
	p, err := a.Profiles.Get(ctx, user)
	if mxerr.Is(err, "M_NOT_FOUND") && a.queriedUser(ctx, user) {
		p, err = a.Profiles.Get(ctx, user)
	}
	return p, err
}

// putNetworkVisibility handles PUT /directory/list/appservice/{networkId}/{roomId}: whether a room stands in the directory
// of a service's network. Spec: application service API, "Publishing rooms".
func (a *API) putNetworkVisibility(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	req, err := web.ReadJSON[visibilityBody](r)
	if err != nil {
		return err
	}
	if req.Visibility != "public" && req.Visibility != "private" {
		return mxerr.BadJSON("'visibility' must be public or private")
	}
	network := web.PathParam(r, "networkId")
	if network == "" || len(network) > 255 {
		return mxerr.InvalidParam("the network's id must have 1 to 255 bytes")
	}
	rm, err := a.Rooms.Room(ctx, id.RoomID(web.PathParam(r, "roomId")))
	if err != nil {
		return err
	}
	who := web.Requester(r)
	// A service lists rooms that its user is in: it has no say over those of others.
	in, err := a.fresh(ctx, func() bool { return rm.Membership(who.UserID) == room.MembershipJoin })
	if err != nil {
		return err
	}
	if !in {
		return mxerr.Forbidden("the application service's user is not in this room")
	}
	err = a.Store.Write(ctx, func(tx *store.Tx) error {
		return tx.SetNetworkRoom(who.AppService, network, rm.NID(), req.Visibility == "public")
	})
	if err != nil {
		return err
	}
	return web.WriteJSON(w, struct{}{})
}
