package adminapi

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

func (a *API) userRoutes() []web.Route {
	const user1, user2 = v1 + "/users/{userId}", v2 + "/users/{userId}"
	return []web.Route{
		{Pattern: "GET " + v2 + "/users", Handler: a.listUsersV2},
		{Pattern: "GET " + v3 + "/users", Handler: a.listUsersV3},
		{Pattern: "GET " + user2, Handler: a.user},
		{Pattern: "PUT " + user2, Rate: web.RateSend, Handler: a.putUser},
		{Pattern: "GET " + v1 + "/whois/{userId}", Handler: a.whois},
		{Pattern: "POST " + v1 + "/deactivate/{userId}", Rate: web.RateSend, Handler: a.deactivate},
		{Pattern: "PUT " + v1 + "/suspend/{userId}", Rate: web.RateSend, Handler: a.suspend},
		{Pattern: "POST " + v1 + "/reset_password/{userId}", Rate: web.RateSend, Handler: a.resetPassword},
		{Pattern: "GET " + user1 + "/admin", Handler: a.isAdmin},
		{Pattern: "PUT " + user1 + "/admin", Rate: web.RateSend, Handler: a.setAdmin},
		{Pattern: "GET " + user1 + "/joined_rooms", Handler: a.joinedRooms},
		{Pattern: "GET " + user1 + "/memberships", Handler: a.memberships},
		{Pattern: "GET " + user1 + "/accountdata", Handler: a.accountData},
		{Pattern: "GET " + user1 + "/pushers", Handler: a.pushers},
		{Pattern: "POST " + user1 + "/login", Rate: web.RateSend, Handler: a.loginAs},
		{Pattern: "GET " + v1 + "/username_available", Handler: a.usernameAvailable},
		{Pattern: "GET " + v1 + "/threepid/{medium}/users/{address}", Handler: a.userByThreepid},
		{Pattern: "GET " + v1 + "/auth_providers/{provider}/users/{externalId}", Handler: a.userByExternalID},
		{Pattern: "POST " + v1 + "/user/{userId}/redact", Rate: web.RateSend, Handler: a.redactUser},
		{Pattern: "GET " + v1 + "/user/redact_status/{redactId}", Handler: a.redactStatus},
	}
}

type listedUser struct {
	Name         id.UserID `json:"name"`
	UserType     *string   `json:"user_type"`
	IsGuest      bool      `json:"is_guest"`
	Admin        bool      `json:"admin"`
	Deactivated  bool      `json:"deactivated"`
	Erased       bool      `json:"erased"`
	ShadowBanned bool      `json:"shadow_banned"`
	Locked       bool      `json:"locked"`
	Suspended    bool      `json:"suspended"`
	DisplayName  *string   `json:"displayname"`
	AvatarURL    *string   `json:"avatar_url"`
	Created      int64     `json:"creation_ts"` // ms
	LastSeen     *int64    `json:"last_seen_ts"`
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// listUsersV2 handles GET /_synapse/admin/v2/users, where deactivated=true adds those who are.
func (a *API) listUsersV2(w http.ResponseWriter, r *http.Request) error {
	all, err := web.QueryBool(r, "deactivated", false)
	if err != nil {
		return err
	}
	no := false
	if all {
		return a.listUsers(w, r, nil)
	}
	return a.listUsers(w, r, &no)
}

// listUsersV3 handles GET /_synapse/admin/v3/users, where deactivated asks for the one or the other.
func (a *API) listUsersV3(w http.ResponseWriter, r *http.Request) error {
	deactivated, err := optionalBool(r, "deactivated")
	if err != nil {
		return err
	}
	return a.listUsers(w, r, deactivated)
}

func (a *API) listUsers(w http.ResponseWriter, r *http.Request, deactivated *bool) error {
	q := store.UserQuery{Name: web.QueryString(r, "name"), UserID: web.QueryString(r, "user_id"), Deactivated: deactivated, Order: web.QueryString(r, "order_by")}
	if q.Order != "" && !store.UserOrder(q.Order) {
		return mxerr.InvalidParam("users cannot be ordered by what 'order_by' names")
	}
	from, limit, err := page(r, 100)
	if err != nil {
		return err
	}
	q.From, q.Limit = int64(from), int64(limit)
	if q.Guests, err = web.QueryBool(r, "guests", true); err != nil {
		return err
	}
	if q.Backwards, err = dir(r, "f"); err != nil {
		return err
	}
	if q.Admins, err = optionalBool(r, "admins"); err != nil {
		return err
	}
	locked, err := web.QueryBool(r, "locked", false)
	if err != nil {
		return err
	}
	if !locked {
		q.Locked = &locked
	}
	q.NotTypes = web.QueryStrings(r, "not_user_type")
	var found []store.ListedUser
	var total int64
	err = a.Store.Read(r.Context(), func(tx *store.Tx) (err error) {
		found, total, err = tx.ListUsers(q)
		return err
	})
	if err != nil {
		return err
	}
	users := make([]listedUser, 0, len(found))
	for _, u := range found {
		users = append(users, listedUser{
			Name: u.ID, UserType: optional(u.Type), IsGuest: u.Guest, Admin: u.Admin, Deactivated: u.Deactivated, Erased: u.Erased, Locked: u.Locked,
			Suspended: u.Suspended, DisplayName: u.DisplayName, AvatarURL: u.AvatarURL, Created: u.Created, LastSeen: u.LastSeen,
		})
	}
	out := map[string]any{"users": users, "total": total}
	if next := q.From + int64(len(users)); next < total && len(users) > 0 {
		out["next_token"] = strconv.FormatInt(next, 10)
	}
	return web.WriteJSON(w, out)
}

type threepid struct {
	Medium    string `json:"medium"`
	Address   string `json:"address"`
	Added     int64  `json:"added_at,omitzero"`
	Validated int64  `json:"validated_at,omitzero"`
}

type externalID struct {
	AuthProvider string `json:"auth_provider"`
	ExternalID   string `json:"external_id"`
}

type userDetail struct {
	Name         id.UserID    `json:"name"`
	DisplayName  *string      `json:"displayname"`
	AvatarURL    *string      `json:"avatar_url"`
	Threepids    []threepid   `json:"threepids"`
	ExternalIDs  []externalID `json:"external_ids"`
	IsGuest      bool         `json:"is_guest"`
	Admin        bool         `json:"admin"`
	Deactivated  bool         `json:"deactivated"`
	Erased       bool         `json:"erased"`
	Locked       bool         `json:"locked"`
	Suspended    bool         `json:"suspended"`
	ShadowBanned bool         `json:"shadow_banned"`
	UserType     *string      `json:"user_type"`
	AppService   *string      `json:"appservice_id"`
	Created      int64        `json:"creation_ts"` // seconds
	LastSeen     *int64       `json:"last_seen_ts"`
	Consent      *string      `json:"consent_version"`
	ConsentTS    *int64       `json:"consent_ts"`
	NoticeSent   *string      `json:"consent_server_notice_sent"`
}

// user handles GET /_synapse/admin/v2/users/{userId}.
func (a *API) user(w http.ResponseWriter, r *http.Request) error {
	u, err := a.account(r)
	if err != nil {
		return err
	}
	return a.writeUser(w, r, u, http.StatusOK)
}

func (a *API) writeUser(w http.ResponseWriter, r *http.Request, u account.User, status int) error {
	ctx := r.Context()
	out := userDetail{
		Name: u.ID, Threepids: []threepid{}, ExternalIDs: []externalID{}, IsGuest: u.Guest, Admin: u.Admin, Deactivated: u.Deactivated, Erased: u.Erased,
		Locked: u.Locked, Suspended: u.Suspended, UserType: optional(u.Type), AppService: optional(u.AppService), Created: u.Created / 1000,
	}
	var p store.Profile
	var devices []store.Device
	var addresses []store.Threepid
	var elsewhere []store.ExternalID
	err := a.Store.Read(ctx, func(tx *store.Tx) (err error) {
		if p, err = tx.Profile(u.ID); err != nil {
			return err
		}
		if addresses, err = tx.Threepids(u.ID); err != nil {
			return err
		}
		if elsewhere, err = tx.ExternalIDs(u.ID); err != nil {
			return err
		}
		devices, err = tx.Devices(u.ID)
		return err
	})
	if err != nil {
		return err
	}
	for _, e := range elsewhere {
		out.ExternalIDs = append(out.ExternalIDs, externalID{AuthProvider: e.Source, ExternalID: e.ID})
	}
	out.DisplayName, out.AvatarURL = p.DisplayName, p.AvatarURL
	for _, t := range addresses {
		out.Threepids = append(out.Threepids, threepid{t.Medium, t.Address, t.Added, t.Validated})
	}
	for _, d := range devices {
		if d.LastSeen != 0 && (out.LastSeen == nil || d.LastSeen > *out.LastSeen) {
			out.LastSeen = &d.LastSeen
		}
	}
	return web.WriteJSONStatus(w, status, out)
}

// putUserRequest changes an account or makes one. Members that are absent change nothing.
type putUserRequest struct {
	Password      *string        `json:"password"`
	LogoutDevices *bool          `json:"logout_devices"`
	DisplayName   *string        `json:"displayname"`
	AvatarURL     *string        `json:"avatar_url"`
	Threepids     *[]threepid    `json:"threepids"`
	Admin         *bool          `json:"admin"`
	Deactivated   *bool          `json:"deactivated"`
	Locked        *bool          `json:"locked"`
	UserType      jsontext.Value `json:"user_type"` // a string or null
}

// userType reads the member user_type; given is false where it is absent.
func (q *putUserRequest) userType() (s string, given bool, err error) {
	switch {
	case q.UserType == nil:
		return "", false, nil
	case q.UserType.Kind() == 'n':
		return "", true, nil
	}
	if err := json.Unmarshal(q.UserType, &s); err != nil || s != "bot" && s != "support" {
		return "", false, mxerr.New(http.StatusBadRequest, "M_UNKNOWN", "'user_type' must be bot, support or null")
	}
	return s, true, nil
}

// putUser handles PUT /_synapse/admin/v2/users/{userId}: 201 for a new account, 200 for one that was changed.
func (a *API) putUser(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	req, err := web.ReadJSON[putUserRequest](r)
	if err != nil {
		return err
	}
	user, err := a.userPath(r)
	if err != nil {
		return err
	}
	userType, setType, err := req.userType()
	if err != nil {
		return err
	}
	if req.Deactivated != nil && *req.Deactivated && req.Locked != nil && *req.Locked {
		return mxerr.New(http.StatusBadRequest, "M_UNKNOWN", "an account is either deactivated or locked")
	}
	u, err := a.Accounts.User(ctx, user)
	status := http.StatusOK
	switch {
	case mxerr.Is(err, "M_NOT_FOUND"):
		if u, err = a.makeUser(r, user, &req, userType); err != nil {
			return err
		}
		status = http.StatusCreated
	case err != nil:
		return err
	default:
		if err := a.checkOwn(r, u, &req); err != nil {
			return err
		}
		if err := a.reactivate(r, &u, &req); err != nil {
			return err
		}
		if err := a.changeCredentials(r, u, &req); err != nil {
			return err
		}
		if setType && userType != u.Type {
			err := a.Store.Write(ctx, func(tx *store.Tx) error { _, err := tx.SetUserType(user, userType); return err })
			if err != nil {
				return err
			}
		}
	}
	if err := a.changeProfile(ctx, user, &req, status == http.StatusCreated); err != nil {
		return err
	}
	if err := a.changeThreepids(r, user, &req); err != nil {
		return err
	}
	if req.Deactivated != nil && *req.Deactivated && !u.Deactivated {
		if err := a.Accounts.Deactivate(ctx, user, false); err != nil {
			return err
		}
	}
	if u, err = a.Accounts.User(ctx, user); err != nil {
		return err
	}
	return a.writeUser(w, r, u, status)
}

// checkOwn keeps administrators from shutting themselves out.
func (a *API) checkOwn(r *http.Request, u account.User, req *putUserRequest) error {
	if web.Requester(r).UserID != u.ID {
		return nil
	}
	switch {
	case req.Admin != nil && !*req.Admin:
		return mxerr.New(http.StatusBadRequest, "M_UNKNOWN", "you may not demote yourself")
	case req.Locked != nil && *req.Locked, req.Deactivated != nil && *req.Deactivated:
		return mxerr.New(http.StatusBadRequest, "M_UNKNOWN", "you may not lock or deactivate your own account here")
	}
	return nil
}

func (a *API) makeUser(r *http.Request, user id.UserID, req *putUserRequest, userType string) (account.User, error) {
	if err := a.audited(r, "admin.user.created", string(user), nil); err != nil {
		return account.User{}, err
	}
	n := account.NewUser{Localpart: strings.TrimSuffix(strings.TrimPrefix(string(user), "@"), ":"+a.ServerName), Type: userType, Unreserved: true}
	if req.Password != nil {
		n.Password = *req.Password
	}
	if req.DisplayName != nil {
		n.DisplayName = *req.DisplayName
	}
	n.Admin = req.Admin != nil && *req.Admin
	u, err := a.Accounts.CreateUser(r.Context(), n)
	if err != nil {
		return u, err
	}
	if req.Locked != nil && *req.Locked {
		err = a.Accounts.Lock(r.Context(), user, true)
	}
	return u, err
}

// reactivate gives a deactivated account back.
func (a *API) reactivate(r *http.Request, u *account.User, req *putUserRequest) error {
	if !u.Deactivated || req.Deactivated == nil || *req.Deactivated {
		return nil
	}
	if err := a.audited(r, "admin.user.reactivated", string(u.ID), nil); err != nil {
		return err
	}
	err := a.Store.Write(r.Context(), func(tx *store.Tx) error {
		if _, err := tx.ReactivateUser(u.ID); err != nil {
			return err
		}
		_, err := tx.Announce(store.Entry{Kind: store.KindUser, User: string(u.ID)})
		return err
	})
	u.Deactivated = err != nil
	return err
}

func (a *API) changeCredentials(r *http.Request, u account.User, req *putUserRequest) error {
	ctx := r.Context()
	if req.Password != nil && !u.Deactivated {
		if err := a.setPassword(r, u.ID, *req.Password, req.LogoutDevices == nil || *req.LogoutDevices); err != nil {
			return err
		}
	}
	if req.Admin != nil && *req.Admin != u.Admin {
		if err := a.Accounts.SetAdmin(ctx, u.ID, *req.Admin); err != nil {
			return err
		}
	}
	if req.Locked != nil && *req.Locked != u.Locked {
		return a.Accounts.Lock(ctx, u.ID, *req.Locked)
	}
	return nil
}

func (a *API) changeProfile(ctx context.Context, user id.UserID, req *putUserRequest, made bool) error {
	for _, f := range []struct {
		name string
		v    *string
		skip bool
	}{{"displayname", req.DisplayName, made}, {"avatar_url", req.AvatarURL, false}} {
		if f.v == nil || f.skip {
			continue
		}
		if *f.v == "" {
			if err := a.Profiles.Delete(ctx, user, f.name); err != nil {
				return err
			}
			continue
		}
		v, err := json.Marshal(*f.v)
		if err != nil {
			return err
		}
		if err := a.Profiles.Set(ctx, user, f.name, v); err != nil {
			return err
		}
	}
	return nil
}

// changeThreepids makes an account's addresses what the request says, as proved by the administrator's word.
func (a *API) changeThreepids(r *http.Request, user id.UserID, req *putUserRequest) error {
	if req.Threepids == nil {
		return nil
	}
	want := *req.Threepids
	for i, t := range want {
		switch t.Medium {
		case "email":
			address, err := account.CanonicalEmail(t.Address)
			if err != nil {
				return err
			}
			want[i].Address = address
		case "msisdn":
		default:
			return mxerr.InvalidParam("an address's medium is email or msisdn")
		}
	}
	if err := a.audited(r, "admin.user.addresses", string(user), map[string]any{"count": len(want)}); err != nil {
		return err
	}
	now := a.nowMS()
	return a.Store.Write(r.Context(), func(tx *store.Tx) error {
		have, err := tx.Threepids(user)
		if err != nil {
			return err
		}
		for _, h := range have {
			if !slices.ContainsFunc(want, func(t threepid) bool { return t.Medium == h.Medium && t.Address == h.Address }) {
				if _, err := tx.DeleteThreepid(user, h.Medium, h.Address); err != nil {
					return err
				}
			}
		}
		for _, t := range want {
			owner, taken, err := tx.ThreepidUser(t.Medium, t.Address)
			switch {
			case err != nil:
				return err
			case taken && owner != user:
				return mxerr.New(http.StatusBadRequest, "M_THREEPID_IN_USE", "the address "+t.Address+" belongs to another account")
			case taken:
				continue
			}
			if _, err := tx.InsertThreepid(store.Threepid{User: user, Medium: t.Medium, Address: t.Address, Validated: now, Added: now}); err != nil {
				return err
			}
		}
		return nil
	})
}

// whois handles GET /_synapse/admin/v1/whois/{userId}.
func (a *API) whois(w http.ResponseWriter, r *http.Request) error {
	u, err := a.account(r)
	if err != nil {
		return err
	}
	devices, err := a.Accounts.Devices(r.Context(), u.ID)
	if err != nil {
		return err
	}
	out := map[id.DeviceID]any{}
	for _, d := range devices {
		connections := []map[string]any{}
		if d.LastSeen != 0 {
			connections = append(connections, map[string]any{"ip": d.LastIP, "last_seen": d.LastSeen, "user_agent": d.LastAgent})
		}
		out[d.ID] = map[string]any{"sessions": []map[string]any{{"connections": connections}}}
	}
	return web.WriteJSON(w, map[string]any{"user_id": u.ID, "devices": out})
}

// deactivate handles POST /_synapse/admin/v1/deactivate/{userId}.
func (a *API) deactivate(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadOptionalJSON[struct {
		Erase bool `json:"erase"`
	}](r)
	if err != nil {
		return err
	}
	u, err := a.account(r)
	if err != nil {
		return err
	}
	if err := a.Accounts.Deactivate(r.Context(), u.ID, req.Erase); err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]string{"id_server_unbind_result": "success"})
}

// suspend handles PUT /_synapse/admin/v1/suspend/{userId}.
func (a *API) suspend(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSON[struct {
		Suspend *bool `json:"suspend"`
	}](r)
	if err != nil {
		return err
	}
	if req.Suspend == nil {
		return mxerr.MissingParam("'suspend' is required")
	}
	u, err := a.account(r)
	if err != nil {
		return err
	}
	if u.ID == web.Requester(r).UserID {
		return mxerr.Forbidden("this is your own account")
	}
	if err := a.Accounts.Suspend(r.Context(), u.ID, *req.Suspend); err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]bool{"user_" + string(u.ID) + "_suspended": *req.Suspend})
}

// resetPassword handles POST /_synapse/admin/v1/reset_password/{userId}.
func (a *API) resetPassword(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSON[struct {
		Password      *string `json:"new_password"`
		LogoutDevices *bool   `json:"logout_devices"`
	}](r)
	if err != nil {
		return err
	}
	if req.Password == nil {
		return mxerr.MissingParam("'new_password' is required")
	}
	u, err := a.account(r)
	if err != nil {
		return err
	}
	if err := a.setPassword(r, u.ID, *req.Password, req.LogoutDevices == nil || *req.LogoutDevices); err != nil {
		return err
	}
	return empty(w)
}

func (a *API) setPassword(r *http.Request, user id.UserID, password string, logout bool) error {
	if err := a.Accounts.ValidatePassword(password); err != nil {
		return err
	}
	var ending *account.Ending
	if logout {
		ending = &account.Ending{}
		if who := web.Requester(r); who.UserID == user {
			ending.Keep = who.DeviceID
		}
	}
	return a.Accounts.SetPassword(r.Context(), user, password, ending)
}

// isAdmin handles GET /_synapse/admin/v1/users/{userId}/admin.
func (a *API) isAdmin(w http.ResponseWriter, r *http.Request) error {
	u, err := a.account(r)
	if err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]bool{"admin": u.Admin})
}

// setAdmin handles PUT /_synapse/admin/v1/users/{userId}/admin.
func (a *API) setAdmin(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSON[struct {
		Admin *bool `json:"admin"`
	}](r)
	if err != nil {
		return err
	}
	if req.Admin == nil {
		return mxerr.MissingParam("'admin' is required")
	}
	u, err := a.account(r)
	if err != nil {
		return err
	}
	if u.ID == web.Requester(r).UserID && !*req.Admin {
		return mxerr.New(http.StatusBadRequest, "M_UNKNOWN", "you may not demote yourself")
	}
	if err := a.Accounts.SetAdmin(r.Context(), u.ID, *req.Admin); err != nil {
		return err
	}
	return empty(w)
}

// joinedRooms handles GET /_synapse/admin/v1/users/{userId}/joined_rooms.
func (a *API) joinedRooms(w http.ResponseWriter, r *http.Request) error {
	rooms := []string{}
	err := a.eachMembership(r, func(roomID, membership string) {
		if membership == "join" {
			rooms = append(rooms, roomID)
		}
	})
	if err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]any{"joined_rooms": rooms, "total": len(rooms)})
}

// memberships handles GET /_synapse/admin/v1/users/{userId}/memberships.
func (a *API) memberships(w http.ResponseWriter, r *http.Request) error {
	out := map[string]string{}
	if err := a.eachMembership(r, func(roomID, membership string) { out[roomID] = membership }); err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]any{"memberships": out})
}

// accountData handles GET /_synapse/admin/v1/users/{userId}/accountdata.
func (a *API) accountData(w http.ResponseWriter, r *http.Request) error {
	u, err := a.account(r)
	if err != nil {
		return err
	}
	if err := a.audited(r, "admin.user.account_data.read", string(u.ID), nil); err != nil {
		return err
	}
	global, rooms := map[string]jsontext.Value{}, map[string]map[string]jsontext.Value{}
	err = a.Store.Read(r.Context(), func(tx *store.Tx) error {
		return tx.UserAccountData(u.ID, func(roomID, dataType string, body []byte) {
			if roomID == "" {
				global[dataType] = body
				return
			}
			if rooms[roomID] == nil {
				rooms[roomID] = map[string]jsontext.Value{}
			}
			rooms[roomID][dataType] = body
		})
	})
	if err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]any{"account_data": map[string]any{"global": global, "rooms": rooms}})
}

// pushers handles GET /_synapse/admin/v1/users/{userId}/pushers.
func (a *API) pushers(w http.ResponseWriter, r *http.Request) error {
	u, err := a.account(r)
	if err != nil {
		return err
	}
	var list []store.Pusher
	err = a.Store.ReadOne(r.Context(), func(tx *store.Tx) (err error) {
		list, err = tx.Pushers(u.ID)
		return err
	})
	if err != nil {
		return err
	}
	out := make([]map[string]any, 0, len(list))
	for _, p := range list {
		out = append(out, map[string]any{
			"app_display_name": p.AppName, "app_id": p.AppID, "data": jsontext.Value(p.Data), "device_display_name": p.DeviceName, "kind": p.Kind,
			"lang": p.Lang, "profile_tag": p.ProfileTag, "pushkey": p.Pushkey,
		})
	}
	return web.WriteJSON(w, map[string]any{"pushers": out, "total": len(out)})
}

func (a *API) eachMembership(r *http.Request, fn func(roomID, membership string)) error {
	user, err := a.userPath(r)
	if err != nil {
		return err
	}
	return a.Store.ReadOne(r.Context(), func(tx *store.Tx) error {
		return tx.UserMemberships(user, func(roomID string, m int64) { fn(roomID, room.Membership(m).String()) })
	})
}

// loginAs handles POST /_synapse/admin/v1/users/{userId}/login: a token by which the administrator acts as the user. It
// belongs to a device of its own.
func (a *API) loginAs(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadOptionalJSON[struct {
		Until *int64 `json:"valid_until_ms"`
	}](r)
	if err != nil {
		return err
	}
	u, err := a.account(r)
	if err != nil {
		return err
	}
	if u.ID == web.Requester(r).UserID {
		return mxerr.New(http.StatusBadRequest, "M_UNKNOWN", "you cannot use the admin API to sign in as yourself")
	}
	if req.Until != nil && *req.Until <= a.nowMS() {
		return mxerr.InvalidParam("'valid_until_ms' is in the past")
	}
	if err := a.audited(r, "admin.user.impersonated", string(u.ID), nil); err != nil {
		return err
	}
	name := "Administrator"
	device, tokens, err := a.Accounts.SignIn(r.Context(), u.ID, account.SignIn{DeviceDisplayName: &name, Way: account.WayAdmin})
	if err != nil {
		return err
	}
	if req.Until != nil {
		err = a.Accounts.ExpireSession(r.Context(), u.ID, device, time.UnixMilli(*req.Until))
		if err != nil {
			return err
		}
	}
	return web.WriteJSON(w, map[string]string{"access_token": tokens.AccessToken})
}

// usernameAvailable handles GET /_synapse/admin/v1/username_available.
func (a *API) usernameAvailable(w http.ResponseWriter, r *http.Request) error {
	name := web.QueryString(r, "username")
	if name == "" {
		return mxerr.MissingParam("query parameter 'username' is missing")
	}
	local, err := a.Accounts.Localpart(name)
	if err != nil {
		return err
	}
	if err := a.Accounts.Available(r.Context(), local); err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]bool{"available": true})
}

// userByExternalID handles GET /_synapse/admin/v1/auth_providers/{provider}/users/{externalId}. A provider is an identity
// provider, a directory or scim.
func (a *API) userByExternalID(w http.ResponseWriter, r *http.Request) error {
	var e store.ExternalID
	var ok bool
	err := a.Store.ReadOne(r.Context(), func(tx *store.Tx) (err error) {
		e, ok, err = tx.ExternalID(web.PathParam(r, "provider"), web.PathParam(r, "externalId"))
		return err
	})
	return a.writeUserID(w, e.User, ok, err, "no account belongs to this id of the provider")
}

// writeUserID answers with an account that was looked for.
func (a *API) writeUserID(w http.ResponseWriter, user id.UserID, found bool, err error, missing string) error {
	if err == nil && !found {
		err = mxerr.NotFound(missing)
	}
	if err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]id.UserID{"user_id": user})
}

// userByThreepid handles GET /_synapse/admin/v1/threepid/{medium}/users/{address}.
func (a *API) userByThreepid(w http.ResponseWriter, r *http.Request) error {
	medium, address := web.PathParam(r, "medium"), web.PathParam(r, "address")
	if medium == "email" {
		canonical, err := account.CanonicalEmail(address)
		if err != nil {
			return err
		}
		address = canonical
	}
	var user id.UserID
	var ok bool
	err := a.Store.ReadOne(r.Context(), func(tx *store.Tx) (err error) {
		user, ok, err = tx.ThreepidUser(medium, address)
		return err
	})
	return a.writeUserID(w, user, ok, err, "no account has this address")
}
