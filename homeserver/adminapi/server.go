package adminapi

import (
	"crypto/rand"
	"math"
	"net/http"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

func (a *API) tokenRoutes() []web.Route {
	const tokens = v1 + "/registration_tokens"
	return []web.Route{
		{Pattern: "GET " + tokens, Handler: a.tokens},
		{Pattern: "POST " + tokens + "/new", Rate: web.RateSend, Handler: a.newToken},
		{Pattern: "GET " + tokens + "/{token}", Handler: a.token},
		{Pattern: "PUT " + tokens + "/{token}", Rate: web.RateSend, Handler: a.putToken},
		{Pattern: "DELETE " + tokens + "/{token}", Rate: web.RateSend, Handler: a.deleteToken},
	}
}

func (a *API) serverRoutes() []web.Route {
	routes := []web.Route{
		{Pattern: "GET " + v1 + "/event_reports", Handler: a.reports},
		{Pattern: "GET " + v1 + "/event_reports/{reportId}", Handler: a.report},
		{Pattern: "DELETE " + v1 + "/event_reports/{reportId}", Rate: web.RateSend, Handler: a.deleteReport},
		{Pattern: "GET " + v1 + "/user_reports", Handler: a.userReports},
		{Pattern: "GET " + v1 + "/user_reports/{reportId}", Handler: a.userReport},
		{Pattern: "DELETE " + v1 + "/user_reports/{reportId}", Rate: web.RateSend, Handler: a.deleteUserReport},
		{Pattern: "GET " + v1 + "/statistics/users/media", Handler: a.mediaStatistics},
		{Pattern: "GET " + v1 + "/statistics/database/rooms", Handler: a.largestRooms},
		{Pattern: "GET " + v1 + "/federation/destinations", Handler: a.destinations},
		{Pattern: "GET " + v1 + "/background_updates/status", Handler: a.backgroundUpdates},
		{Pattern: "GET " + v1 + "/scheduled_tasks", Handler: a.scheduledTasks},
	}
	if a.Notice != nil {
		routes = append(routes,
			web.Route{Pattern: "POST " + v1 + "/send_server_notice", Rate: web.RateSend, Handler: a.sendNotice},
			web.Route{Pattern: "PUT " + v1 + "/send_server_notice/{txnId}", Rate: web.RateSend, Handler: a.sendNotice})
	}
	return routes
}

// serverVersion handles GET /_synapse/admin/v1/server_version.
func (a *API) serverVersion(w http.ResponseWriter, _ *http.Request) error {
	return web.WriteJSON(w, map[string]string{"server_version": a.Version})
}

type tokenJSON struct {
	Token       string `json:"token"`
	UsesAllowed *int64 `json:"uses_allowed"`
	Pending     int64  `json:"pending"`
	Completed   int64  `json:"completed"`
	Expires     *int64 `json:"expiry_time"`
}

func newTokenJSON(t store.RegistrationToken) tokenJSON {
	return tokenJSON{t.Token, t.UsesAllowed, t.Pending, t.Completed, t.Expires}
}

// tokens handles GET /_synapse/admin/v1/registration_tokens.
func (a *API) tokens(w http.ResponseWriter, r *http.Request) error {
	valid, err := optionalBool(r, "valid")
	if err != nil {
		return err
	}
	var list []store.RegistrationToken
	err = a.Store.ReadOne(r.Context(), func(tx *store.Tx) (err error) {
		list, err = tx.RegistrationTokens(valid, a.nowMS())
		return err
	})
	if err != nil {
		return err
	}
	out := make([]tokenJSON, 0, len(list))
	for _, t := range list {
		out = append(out, newTokenJSON(t))
	}
	return web.WriteJSON(w, map[string]any{"registration_tokens": out})
}

type tokenRequest struct {
	Token       *string        `json:"token"`
	Length      *int           `json:"length"`
	UsesAllowed jsontext.Value `json:"uses_allowed"`
	Expires     jsontext.Value `json:"expiry_time"`
}

// number reads a member that is a number, null or absent.
func number(name string, v jsontext.Value) (n *int64, given bool, err error) {
	switch {
	case v == nil:
		return nil, false, nil
	case v.Kind() == 'n':
		return nil, true, nil
	}
	if err := json.Unmarshal(v, &n); err != nil || n == nil || *n < 0 {
		return nil, true, mxerr.InvalidParam("'" + name + "' must be an integer of at least 0, or null")
	}
	return n, true, nil
}

// newToken handles POST /_synapse/admin/v1/registration_tokens/new.
func (a *API) newToken(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSON[tokenRequest](r)
	if err != nil {
		return err
	}
	n := account.NewRegistrationToken{}
	switch {
	case req.Token != nil && *req.Token == "":
		return mxerr.InvalidParam("a registration token must not be empty")
	case req.Token != nil:
		n.Token = *req.Token
	default:
		length := 16
		if req.Length != nil {
			length = *req.Length
		}
		if length < 1 || length > 64 {
			return mxerr.InvalidParam("'length' must be from 1 to 64")
		}
		n.Token = rand.Text() + rand.Text() + rand.Text()
		n.Token = n.Token[:length]
	}
	if n.UsesAllowed, _, err = number("uses_allowed", req.UsesAllowed); err != nil {
		return err
	}
	expires, _, err := number("expiry_time", req.Expires)
	if err != nil {
		return err
	}
	if expires != nil {
		n.Expires = timeOf(*expires)
	}
	t, err := a.Accounts.CreateRegistrationToken(r.Context(), n)
	if err != nil {
		return err
	}
	return web.WriteJSON(w, newTokenJSON(t))
}

var errNoToken = mxerr.NotFound("there is no such registration token")

// token handles GET /_synapse/admin/v1/registration_tokens/{token}.
func (a *API) token(w http.ResponseWriter, r *http.Request) error {
	var t store.RegistrationToken
	var ok bool
	err := a.Store.ReadOne(r.Context(), func(tx *store.Tx) (err error) {
		t, ok, err = tx.RegistrationToken(web.PathParam(r, "token"))
		return err
	})
	if err != nil {
		return err
	}
	if !ok {
		return errNoToken
	}
	return web.WriteJSON(w, newTokenJSON(t))
}

// putToken handles PUT /_synapse/admin/v1/registration_tokens/{token}.
func (a *API) putToken(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSON[tokenRequest](r)
	if err != nil {
		return err
	}
	uses, setUses, err := number("uses_allowed", req.UsesAllowed)
	if err != nil {
		return err
	}
	expires, setExpires, err := number("expiry_time", req.Expires)
	if err != nil {
		return err
	}
	if expires != nil && *expires < a.nowMS() {
		return mxerr.InvalidParam("'expiry_time' is in the past")
	}
	var t store.RegistrationToken
	err = a.Store.Write(r.Context(), func(tx *store.Tx) error {
		var ok bool
		var err error
		if t, ok, err = tx.RegistrationToken(web.PathParam(r, "token")); err != nil {
			return err
		}
		if !ok {
			return errNoToken
		}
		if setUses {
			t.UsesAllowed = uses
		}
		if setExpires {
			t.Expires = expires
		}
		_, err = tx.UpdateRegistrationToken(t)
		return err
	})
	if err != nil {
		return err
	}
	return web.WriteJSON(w, newTokenJSON(t))
}

// deleteToken handles DELETE /_synapse/admin/v1/registration_tokens/{token}.
func (a *API) deleteToken(w http.ResponseWriter, r *http.Request) error {
	err := a.Store.Write(r.Context(), func(tx *store.Tx) error {
		ok, err := tx.DeleteRegistrationToken(web.PathParam(r, "token"))
		if err == nil && !ok {
			err = errNoToken
		}
		return err
	})
	if err != nil {
		return err
	}
	return empty(w)
}

type reportJSON struct {
	ID       int64          `json:"id"`
	Received int64          `json:"received_ts"`
	Room     string         `json:"room_id"`
	Name     *string        `json:"name"`
	Event    string         `json:"event_id"`
	User     string         `json:"user_id"`
	Reason   *string        `json:"reason"`
	Score    *int64         `json:"score"`
	Sender   string         `json:"sender"`
	Alias    *string        `json:"canonical_alias"`
	JSON     jsontext.Value `json:"event_json,omitzero"`
}

func (a *API) reportJSON(r *http.Request, rep store.Report, body bool) (reportJSON, error) {
	ctx := r.Context()
	out := reportJSON{ID: rep.ID, Received: rep.Created, Room: rep.Room, Event: rep.Event, User: rep.Reporter, Reason: optional(rep.Reason), Sender: rep.User}
	rm, err := a.Rooms.Room(ctx, id.RoomID(rep.Room))
	if mxerr.Is(err, "M_NOT_FOUND") {
		return out, nil // the room is gone
	}
	if err != nil {
		return out, err
	}
	out.Name, out.Alias = optional(rm.Name()), optional(rm.CanonicalAlias())
	if !body {
		return out, nil
	}
	e, err := a.Rooms.EventByID(ctx, id.EventID(rep.Event))
	if err != nil || e == nil {
		return out, err
	}
	out.JSON, err = a.Rooms.AppendEvent(ctx, nil, rm, e, a.reader(r))
	return out, err
}

// reports handles GET /_synapse/admin/v1/event_reports.
func (a *API) reports(w http.ResponseWriter, r *http.Request) error {
	q := store.ReportQuery{RoomID: web.QueryString(r, "room_id"), SenderUserID: web.QueryString(r, "event_sender_user_id")}
	return a.listReports(w, r, "event_reports", q, func(rep store.Report) (any, error) { return a.reportJSON(r, rep, false) })
}

// listReports answers with a page of reports under a name.
func (a *API) listReports(w http.ResponseWriter, r *http.Request, name string, q store.ReportQuery, show func(store.Report) (any, error)) error {
	from, limit, err := page(r, 100)
	if err != nil {
		return err
	}
	if q.Backwards, err = dir(r, "b"); err != nil {
		return err
	}
	q.UserID, q.From, q.Limit = web.QueryString(r, "user_id"), int64(from), int64(limit)
	var list []store.Report
	var total int64
	err = a.Store.Read(r.Context(), func(tx *store.Tx) (err error) {
		list, total, err = tx.ListReports(q)
		return err
	})
	if err != nil {
		return err
	}
	reports := make([]any, len(list))
	for i, rep := range list {
		if reports[i], err = show(rep); err != nil {
			return err
		}
	}
	out := map[string]any{name: reports, "total": total}
	if next := q.From + int64(len(reports)); next < total {
		out["next_token"] = next
	}
	return web.WriteJSON(w, out)
}

// report handles GET /_synapse/admin/v1/event_reports/{reportId}.
func (a *API) report(w http.ResponseWriter, r *http.Request) error {
	rep, err := a.reportOf(r, aboutEvent)
	if err != nil {
		return err
	}
	if err := a.audited(r, "admin.room.read", rep.Room, map[string]any{"event_id": rep.Event, "report": rep.ID}); err != nil {
		return err
	}
	out, err := a.reportJSON(r, rep, true)
	if err != nil {
		return err
	}
	return web.WriteJSON(w, out)
}

// deleteReport handles DELETE /_synapse/admin/v1/event_reports/{reportId}.
func (a *API) deleteReport(w http.ResponseWriter, r *http.Request) error {
	return a.dropReport(w, r, aboutEvent)
}

// mediaStatistics handles GET /_synapse/admin/v1/statistics/users/media.
func (a *API) mediaStatistics(w http.ResponseWriter, r *http.Request) error {
	order := web.QueryString(r, "order_by")
	switch order {
	case "", "user_id", "displayname", "media_length", "media_count":
	default:
		return mxerr.InvalidParam("the statistics cannot be ordered by what 'order_by' names")
	}
	backwards, err := dir(r, "f")
	if err != nil {
		return err
	}
	from, limit, err := page(r, 100)
	if err != nil {
		return err
	}
	since, err := web.QueryInt(r, "from_ts", 0, 0, math.MaxInt)
	if err != nil {
		return err
	}
	until, err := web.QueryInt(r, "until_ts", math.MaxInt, 0, math.MaxInt)
	if err != nil {
		return err
	}
	if until <= since {
		return mxerr.InvalidParam("query parameter 'until_ts' must be later than 'from_ts'")
	}
	if term, given := web.QueryLookup(r, "search_term"); given && strings.TrimSpace(term) == "" {
		return mxerr.InvalidParam("query parameter 'search_term' must not be empty")
	}
	var list []store.MediaUse
	var total int64
	err = a.Store.Read(r.Context(), func(tx *store.Tx) (err error) {
		list, total, err = tx.MediaStatistics(web.QueryString(r, "search_term"), int64(since), int64(until), order, backwards, int64(from), int64(limit))
		return err
	})
	if err != nil {
		return err
	}
	users := make([]map[string]any, 0, len(list))
	for _, u := range list {
		users = append(users, map[string]any{"user_id": u.User, "displayname": u.DisplayName, "media_count": u.Count, "media_length": u.Size})
	}
	out := map[string]any{"users": users, "total": total}
	if next := int64(from) + int64(len(users)); next < total {
		out["next_token"] = next
	}
	return web.WriteJSON(w, out)
}

// largestRooms handles GET /_synapse/admin/v1/statistics/database/rooms.
func (a *API) largestRooms(w http.ResponseWriter, r *http.Request) error {
	const top = 10
	rooms := []map[string]any{}
	err := a.Store.ReadOne(r.Context(), func(tx *store.Tx) error {
		return tx.LargestRooms(top, func(roomID string, size int64) {
			rooms = append(rooms, map[string]any{"room_id": roomID, "estimated_size": size})
		})
	})
	if err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]any{"rooms": rooms})
}

// destinations handles GET /_synapse/admin/v1/federation/destinations: there is no federation yet, so there are none.
func (a *API) destinations(w http.ResponseWriter, _ *http.Request) error {
	return web.WriteJSON(w, map[string]any{"destinations": []string{}, "total": 0})
}

// backgroundUpdates handles GET /_synapse/admin/v1/background_updates/status: migrations run before the server answers.
func (a *API) backgroundUpdates(w http.ResponseWriter, _ *http.Request) error {
	return web.WriteJSON(w, map[string]any{"enabled": true, "current_updates": struct{}{}})
}

// sendNotice handles POST /_synapse/admin/v1/send_server_notice and PUT …/{txnId}.
func (a *API) sendNotice(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSON[struct {
		UserID   id.UserID      `json:"user_id"`
		Type     string         `json:"type"`
		StateKey *string        `json:"state_key"`
		Content  jsontext.Value `json:"content"`
	}](r)
	if err != nil {
		return err
	}
	switch {
	case req.UserID == "":
		return mxerr.MissingParam("'user_id' is required")
	case req.Content.Kind() != '{':
		return mxerr.BadJSON("'content' must be an object")
	case !a.local(req.UserID):
		return mxerr.New(http.StatusBadRequest, "M_UNKNOWN", "server notices go to users of this server")
	}
	if req.Type == "" {
		req.Type = "m.room.message"
	}
	if _, err := a.Accounts.User(r.Context(), req.UserID); err != nil {
		return err
	}
	txn := ""
	if t := web.PathParam(r, "txnId"); t != "" {
		txn = string(web.Requester(r).UserID) + " " + t
	}
	if err := a.audited(r, "admin.notice.sent", string(req.UserID), nil); err != nil {
		return err
	}
	eventID, err := a.Notice(r.Context(), req.UserID, req.Type, req.StateKey, req.Content, txn)
	if err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]id.EventID{"event_id": eventID})
}
