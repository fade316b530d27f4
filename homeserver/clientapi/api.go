// Package clientapi answers the client-server API: one file per module of the specification, one table of routes in each.
package clientapi

import (
	"context"
	"log/slog"
	"sync"

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

	// Delay schedules an event to be sent after a delay in milliseconds and returns the id to put it off by; nil: events are
	// sent at once only.
	Delay func(ctx context.Context, roomID id.RoomID, d room.Draft, delay int64) (string, error)
	// Search finds messages by their texts; nil: search is switched off.
	Search SearchFunc
	// SSO is sign-in in the browser; nil: there is none.
	SSO *SSODeps

	// ThreadSubscriptions tells clients that there are push rules on the threads that users follow.
	ThreadSubscriptions bool

	// AppServices are the application services; nil: there are none.
	AppServices *AppServiceDeps

	// CopyPushRule copies a user's push rule for a room to the room that replaces it; nil: there are no push rules.
	CopyPushRule func(ctx context.Context, user id.UserID, from, to id.RoomID) error
}

// API holds the handlers.
type API struct {
	Deps
	predecessors sync.Map // room number to the id of the room that was upgraded to it, "" for none
}

// New makes the API.
func New(d Deps) *API { return &API{Deps: d} }

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
		a.dehydratedRoutes(),
		a.accountDataRoutes(),
		a.tagRoutes(),
		a.profileRoutes(),
		a.filterRoutes(),
		a.voipRoutes(),
		a.createRoomRoutes(),
		a.membershipRoutes(),
		a.stateRoutes(),
		a.sendRoutes(),
		a.timelineRoutes(),
		a.searchRoutes(),
		a.aliasRoutes(),
		a.directoryRoutes(),
		a.appServiceRoutes(),
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
