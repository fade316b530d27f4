// Package clientapi answers the client-server API: one file per module of the specification, one table of routes in each.
package clientapi

import (
	"log/slog"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// Deps is what the endpoints work with.
type Deps struct {
	ServerName string
	PublicURL  string
	Store      *store.Store
	Accounts   *account.Accounts
	Rooms      *room.Rooms
	Limits     *web.Limiter // nil: no rate limits
	Logger     *slog.Logger

	UserDataDeps
}

// API holds the handlers.
type API struct{ Deps }

// New makes the API.
func New(d Deps) *API { return &API{d} }

// Routes is the table of all routes of the package.
func (a *API) Routes() []web.Route {
	var all []web.Route
	for _, t := range [][]web.Route{
		a.serverRoutes(),
		a.loginRoutes(),
		a.registerRoutes(),
		a.accountRoutes(),
		a.deviceRoutes(),
		a.keyRoutes(),
		a.crossSigningRoutes(),
		a.keyBackupRoutes(),
		a.toDeviceRoutes(),
		a.accountDataRoutes(),
		a.tagRoutes(),
		a.profileRoutes(),
		a.filterRoutes(),
		a.voipRoutes(),
		a.thirdPartyRoutes(),
	} {
		all = append(all, t...)
	}
	return all
}
