// Package clientapi answers the client-server API: one file per module of the specification, one table of routes in each.
package clientapi

import (
	"context"
	"log/slog"

	"maunium.net/go/mautrix/id"

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

	// CopyPushRule copies a user's push rule for a room to the room that replaces it; nil: there are no push rules.
	CopyPushRule func(ctx context.Context, user id.UserID, from, to id.RoomID) error
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
		a.createRoomRoutes(),
		a.membershipRoutes(),
		a.stateRoutes(),
		a.sendRoutes(),
		a.timelineRoutes(),
		a.aliasRoutes(),
		a.directoryRoutes(),
		a.summaryRoutes(),
		a.peekRoutes(),
		a.reportRoutes(),
		a.emailRoutes(),
		a.adminRoutes(),
		a.openIDRoutes(),
		a.mutualRoomRoutes(),
		a.oldSyncRoutes(),
	} {
		all = append(all, t...)
	}
	return all
}
