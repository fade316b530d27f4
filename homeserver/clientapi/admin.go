package clientapi

import (
	"context"
	"net/http"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/web"
)

// adminRoutes are the endpoints of the specification for administrators.
// Spec: client-server API, "Server Administration".
func (a *API) adminRoutes() []web.Route {
	const (
		lock    = " /_matrix/client/v1/admin/lock/{userId}"
		suspend = " /_matrix/client/v1/admin/suspend/{userId}"
	)
	return []web.Route{
		{Pattern: "GET /_matrix/client/v3/admin/whois/{userId}", Auth: web.User, Rate: web.RateRead, Handler: a.whois},
		{Pattern: "GET" + lock, Auth: web.Admin, Rate: web.RateRead, Handler: a.isLocked},
		{Pattern: "PUT" + lock, Auth: web.Admin, Rate: web.RateSend, Handler: a.setLocked},
		{Pattern: "GET" + suspend, Auth: web.Admin, Rate: web.RateRead, Handler: a.isSuspended},
		{Pattern: "PUT" + suspend, Auth: web.Admin, Rate: web.RateSend, Handler: a.setSuspended},
	}
}

// moderated is the account in the path, if an administrator may look at it and moderate it. Who asks was checked before,
// so that nobody else learns which accounts there are.
func (a *API) moderated(r *http.Request) (account.User, error) {
	user, err := a.localAccount(r.Context(), id.UserID(web.PathParam(r, "userId")))
	if err == nil && user.Admin && user.ID != web.Requester(r).UserID {
		err = mxerr.Forbidden("this account is that of another administrator")
	}
	return user, err
}

// localAccount reads an account that can be used. Errors: M_INVALID_PARAM for users of other servers, M_NOT_FOUND.
func (a *API) localAccount(ctx context.Context, user id.UserID) (account.User, error) {
	if !strings.HasPrefix(string(user), "@") || !strings.HasSuffix(string(user), ":"+a.ServerName) {
		return account.User{}, mxerr.InvalidParam("this user does not belong to this server")
	}
	u, err := a.Accounts.User(ctx, user)
	if err == nil && u.Deactivated {
		err = mxerr.NotFound("there is no such user on this server")
	}
	return u, err
}

// moderate changes an account unless it is the requester's own.
func (a *API) moderate(r *http.Request, on bool, change func(ctx context.Context, user id.UserID, on bool) error) error {
	u, err := a.moderated(r)
	if err != nil {
		return err
	}
	if u.ID == web.Requester(r).UserID {
		return mxerr.Forbidden("this is your own account")
	}
	return change(r.Context(), u.ID, on)
}

type lockedJSON struct {
	Locked *bool `json:"locked"`
}

// isLocked handles GET /_matrix/client/v1/admin/lock/{userId}.
func (a *API) isLocked(w http.ResponseWriter, r *http.Request) error {
	u, err := a.moderated(r)
	if err != nil {
		return err
	}
	return web.WriteJSON(w, lockedJSON{&u.Locked})
}

// setLocked handles PUT /_matrix/client/v1/admin/lock/{userId}.
func (a *API) setLocked(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSON[lockedJSON](r)
	switch {
	case err != nil:
		return err
	case req.Locked == nil:
		return mxerr.MissingParam("'locked' is required")
	}
	if err := a.moderate(r, *req.Locked, a.Accounts.Lock); err != nil {
		return err
	}
	return web.WriteJSON(w, req)
}

type suspendedJSON struct {
	Suspended *bool `json:"suspended"`
}

// isSuspended handles GET /_matrix/client/v1/admin/suspend/{userId}.
func (a *API) isSuspended(w http.ResponseWriter, r *http.Request) error {
	u, err := a.moderated(r)
	if err != nil {
		return err
	}
	return web.WriteJSON(w, suspendedJSON{&u.Suspended})
}

// setSuspended handles PUT /_matrix/client/v1/admin/suspend/{userId}.
func (a *API) setSuspended(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSON[suspendedJSON](r)
	switch {
	case err != nil:
		return err
	case req.Suspended == nil:
		return mxerr.MissingParam("'suspended' is required")
	}
	if err := a.moderate(r, *req.Suspended, a.Accounts.Suspend); err != nil {
		return err
	}
	return web.WriteJSON(w, req)
}

type whoisConnection struct {
	IP        string `json:"ip,omitempty"`
	LastSeen  int64  `json:"last_seen,omitempty"`
	UserAgent string `json:"user_agent,omitempty"`
}

type whoisSession struct {
	Connections []whoisConnection `json:"connections"`
}

type whoisDevice struct {
	Sessions []whoisSession `json:"sessions"`
}

// whois handles GET /_matrix/client/v3/admin/whois/{userId}: for administrators, and for everybody about themselves. A
// device has one session, of which the last connection is known.
func (a *API) whois(w http.ResponseWriter, r *http.Request) error {
	who, user := web.Requester(r), id.UserID(web.PathParam(r, "userId"))
	if !who.Admin && user != who.UserID {
		return mxerr.Forbidden("only administrators may look at others")
	}
	if _, err := a.localAccount(r.Context(), user); err != nil {
		return err
	}
	devices, err := a.Accounts.Devices(r.Context(), user)
	if err != nil {
		return err
	}
	out := make(map[id.DeviceID]whoisDevice, len(devices))
	for _, d := range devices {
		s := whoisSession{Connections: []whoisConnection{}}
		if d.LastSeen != 0 {
			s.Connections = append(s.Connections, whoisConnection{IP: d.LastIP, LastSeen: d.LastSeen, UserAgent: d.LastAgent})
		}
		out[d.ID] = whoisDevice{Sessions: []whoisSession{s}}
	}
	return web.WriteJSON(w, map[string]any{"user_id": user, "devices": out})
}
