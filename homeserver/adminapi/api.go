// Package adminapi answers the administration API that Synapse has under /_synapse/admin, as far as tools that were written
// for it call it: users, devices, rooms and their deletion, media, registration tokens, reports, statistics. Registration
// by shared secret is in package clientapi.
package adminapi

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// Deps is what the endpoints work with.
type Deps struct {
	ServerName string
	Version    string // of the program
	Store      *store.Store
	Accounts   *account.Accounts
	Profiles   *account.Profiles
	Rooms      *room.Rooms
	Audit      *audit.Log
	Logger     *slog.Logger

	// DropContents removes contents that no file has any more, by SHA-256.
	DropContents func(ctx context.Context, hashes [][]byte) error
	// Notice sends a server notice and returns its event id; nil: there is nobody to send it.
	Notice func(ctx context.Context, user id.UserID, evType string, stateKey *string, content []byte, txn string) (id.EventID, error)
	// Now is the time; nil: time.Now.
	Now func() time.Time
}

// API holds the handlers and runs the deletion of rooms.
type API struct {
	Deps
	kick    chan struct{} // a deletion was asked for
	purges  purges
	redacts redacts
}

// New makes the API.
func New(d Deps) *API {
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Logger == nil {
		d.Logger = slog.Default()
	}
	return &API{Deps: d, kick: make(chan struct{}, 1), purges: purges{byID: map[string]*purge{}}, redacts: redacts{byID: map[string]*redaction{}}}
}

const (
	v1 = "/_synapse/admin/v1"
	v2 = "/_synapse/admin/v2"
	v3 = "/_synapse/admin/v3"
)

// Routes is the table of all routes of the package.
func (a *API) Routes() []web.Route {
	var all []web.Route
	for _, t := range [][]web.Route{a.userRoutes(), a.deviceRoutes(), a.roomRoutes(), a.deletionRoutes(), a.mediaRoutes(), a.tokenRoutes(), a.limitRoutes(), a.serverRoutes()} {
		all = append(all, t...)
	}
	for i := range all {
		all[i].Auth = web.Admin
		if all[i].Rate == web.RateNone {
			all[i].Rate = web.RateRead
		}
	}
	// tools ask for the version before they sign in; GET /_matrix/federation/v1/version tells it too
	return append(all, web.Route{Pattern: "GET " + v1 + "/server_version", Rate: web.RateRead, Handler: a.serverVersion})
}

// audited notes an act of an administrator; where it cannot be noted the act does not happen.
func (a *API) audited(r *http.Request, action, target string, details map[string]any) error {
	return a.Audit.Record(r.Context(), audit.Entry{Action: action, Target: target, Result: audit.OK, Details: details})
}

func (a *API) nowMS() int64 { return a.Now().UnixMilli() }

// empty is the answer of endpoints that have nothing to tell.
func empty(w http.ResponseWriter) error { return web.WriteJSON(w, struct{}{}) }

// userPath is the {userId} of the path: a user of this server.
func (a *API) userPath(r *http.Request) (id.UserID, error) {
	user := id.UserID(web.PathParam(r, "userId"))
	if !strings.HasPrefix(string(user), "@") || !strings.Contains(string(user), ":") {
		return "", mxerr.InvalidParam("this is no user id: those look like @name:" + a.ServerName)
	}
	if !a.local(user) {
		return "", mxerr.New(http.StatusBadRequest, "M_UNKNOWN", "only users of this server can be looked up")
	}
	return user, nil
}

// account reads the account in the path.
func (a *API) account(r *http.Request) (account.User, error) {
	user, err := a.userPath(r)
	if err != nil {
		return account.User{}, err
	}
	return a.Accounts.User(r.Context(), user)
}

func (a *API) local(user id.UserID) bool { return strings.HasSuffix(string(user), ":"+a.ServerName) }

// findRoom finds a room by id or alias.
func (a *API) findRoom(ctx context.Context, name string) (*room.Room, error) {
	if !strings.HasPrefix(name, "#") {
		if err := checkRoomID(name); err != nil {
			return nil, err
		}
		return a.Rooms.Room(ctx, id.RoomID(name))
	}
	var alias store.Alias
	var ok bool
	err := a.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
		alias, ok, err = tx.AliasByName(name)
		return err
	})
	if err == nil && !ok {
		err = mxerr.NotFound("this server knows no room alias of this name")
	}
	if err != nil {
		return nil, err
	}
	return a.Rooms.RoomByNID(ctx, alias.Room)
}

func checkRoomID(s string) error {
	if !strings.HasPrefix(s, "!") || len(s) < 2 || len(s) > 255 || strings.IndexByte(s, 0) >= 0 {
		return mxerr.InvalidParam("this is no room id: those begin with !")
	}
	if _, server, ok := strings.Cut(s, ":"); ok && !event.ValidServerName(server) {
		return mxerr.InvalidParam("this is no room id: its server name is none")
	}
	return nil
}

// page reads the parameters "from" and "limit".
func page(r *http.Request, def int) (from, limit int, err error) {
	const most = 1 << 31
	if from, err = web.QueryInt(r, "from", 0, 0, most); err != nil {
		return 0, 0, err
	}
	limit, err = web.QueryInt(r, "limit", def, 0, most)
	return from, limit, err
}

// dir reads the parameter "dir": f or b.
func dir(r *http.Request, def string) (backwards bool, err error) {
	s := web.QueryString(r, "dir")
	if s == "" {
		s = def
	}
	if s != "f" && s != "b" {
		return false, mxerr.InvalidParam("query parameter 'dir' must be f (forward) or b (backward)")
	}
	return s == "b", nil
}

// optionalBool reads a parameter that may be absent.
func optionalBool(r *http.Request, name string) (*bool, error) {
	if web.QueryString(r, name) == "" {
		return nil, nil
	}
	b, err := web.QueryBool(r, name, false)
	return &b, err
}
