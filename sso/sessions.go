package sso

import (
	"cmp"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

func (s *SSO) sessionRoutes() []web.Route {
	return []web.Route{
		s.page("GET "+PathSessions, s.showSessions),
		s.page("GET "+PathSessions+"/device", s.showSession),
		s.form("POST "+PathSessions+"/device", s.endSession),
		s.form("POST "+PathSessions+"/browser", s.endBrowserSession),
		s.form("POST "+PathSessions+"/others", s.endOthers),
	}
}

// sessionView is a device or a browser as its owner sees it.
type sessionView struct {
	ID      string
	Name    string
	Client  string // host of an OAuth client
	Created int64
	Seen    int64 // ms; 0: not yet
	IP      string
	Agent   string
	Way     string // key of the text that says how its user came in; "" where that was not noted
	At      string // the identity provider's name, "" for other ways
	SignIP  string // address at the sign-in
	Here    bool
}

// ways are the texts of the ways to come in.
var ways = map[string]string{
	account.WayPassword: "way_password", account.WaySSO: "way_sso", account.WayOAuth: "way_oauth", account.WayToken: "way_token", account.WayAppPassword: "way_app_password",
	account.WayRegistration: "way_registration", account.WayAdmin: "way_admin", account.WayAppService: "way_appservice", "passkey": "way_passkey",
}

// came notes how a session's user came in.
func (s *SSO) came(r *http.Request, v *sessionView, way string) {
	kind, provider, _ := strings.Cut(way, ":")
	v.Way = ways[kind]
	if provider != "" && s.Providers != nil {
		info, _ := s.Providers.Get(provider, s.Kit.Lang(r))
		v.At = cmp.Or(info.Name, provider)
	}
}

type sessionsData struct {
	accountData
	Devices  []sessionView
	Browsers []sessionView
}

// devices lists the clients of a user, the one used last first.
func (s *SSO) devices(r *http.Request, user id.UserID) ([]sessionView, error) {
	var devices []store.Device
	clients := map[id.DeviceID]*client{}
	err := s.Store.Read(r.Context(), func(tx *store.Tx) error {
		var err error
		if devices, err = tx.Devices(user); err != nil {
			return err
		}
		grants, err := tx.OAuthGrants(user)
		if err != nil {
			return err
		}
		for _, g := range grants {
			metadata, found, err := tx.OAuthClient(g.Client)
			if err != nil {
				return err
			}
			if !found {
				continue
			}
			c := &client{ID: g.Client}
			if err := json.Unmarshal(metadata, c); err != nil {
				return err
			}
			clients[g.Device] = c
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	sessions, err := s.Accounts.Sessions(r.Context(), user)
	if err != nil {
		return nil, err
	}
	signIns := make(map[id.DeviceID]account.SessionInfo, len(sessions))
	for _, i := range sessions {
		signIns[i.Device] = i
	}
	out := make([]sessionView, 0, len(devices))
	for _, d := range devices {
		v := sessionView{ID: string(d.ID), Created: d.Created, Seen: d.LastSeen, IP: d.LastIP, Agent: d.LastAgent}
		if d.DisplayName != nil {
			v.Name = *d.DisplayName
		}
		if c := clients[d.ID]; c != nil {
			v.Client = c.host()
			if v.Name == "" {
				v.Name = c.name(s.Kit.Lang(r))
			}
		}
		v.SignIP = signIns[d.ID].IP
		s.came(r, &v, signIns[d.ID].Way)
		out = append(out, v)
	}
	sortSessions(out)
	return out, nil
}

// showSessions handles GET /account/sessions.
func (s *SSO) showSessions(w http.ResponseWriter, r *http.Request) error {
	b, ok := s.RequireBrowser(w, r, Need{})
	if !ok {
		return nil
	}
	base, err := s.accountData(r, b, "sessions")
	if err != nil {
		return err
	}
	d := sessionsData{accountData: base}
	if d.Devices, err = s.devices(r, b.User); err != nil {
		return err
	}
	var rows []store.SSOBrowser
	err = s.Store.Read(r.Context(), func(tx *store.Tx) (err error) {
		rows, err = tx.SSOBrowsers(b.User, s.now())
		return err
	})
	if err != nil {
		return err
	}
	for _, row := range rows {
		var other Browser
		if err := json.Unmarshal(row.Data, &other); err != nil {
			return err
		}
		v := sessionView{ID: row.ID, Created: other.Created.UnixMilli(), Seen: row.Seen, IP: other.IP, Agent: other.Agent, Here: row.ID == b.ID}
		s.came(r, &v, other.Way)
		d.Browsers = append(d.Browsers, v)
	}
	return s.pages.Render(w, r, http.StatusOK, "sessions", d)
}

type sessionData struct {
	accountData
	Session sessionView
	End     bool
}

var errNoDevice = mxerr.NotFound("you have no such session: it may have ended already")

// showSession handles GET /account/sessions/device.
func (s *SSO) showSession(w http.ResponseWriter, r *http.Request) error {
	b, ok := s.RequireBrowser(w, r, Need{})
	if !ok {
		return nil
	}
	base, err := s.accountData(r, b, "sessions")
	if err != nil {
		return err
	}
	all, err := s.devices(r, b.User)
	if err != nil {
		return err
	}
	device := web.QueryString(r, "device_id")
	for _, v := range all {
		if v.ID == device {
			return s.pages.Render(w, r, http.StatusOK, "session", sessionData{accountData: base, Session: v, End: web.QueryString(r, "end") != ""})
		}
	}
	return errNoDevice
}

// endSession handles POST /account/sessions/device: it ends a client's session with its device, or gives it another name.
func (s *SSO) endSession(w http.ResponseWriter, r *http.Request) error {
	b, ok := s.RequireBrowser(w, r, Need{})
	if !ok {
		return nil
	}
	device := id.DeviceID(r.PostFormValue("device_id"))
	if device == "" {
		return errNoDevice
	}
	ctx := source(r.Context(), b.User, b.ID[:8])
	if r.PostFormValue("do") != "end" {
		return goTo(w, r, PathSessions+"/device?"+url.Values{"device_id": {string(device)}}.Encode())
	}
	if err := s.Accounts.EndSessions(ctx, b.User, account.Ending{Devices: []id.DeviceID{device}}); err != nil {
		return err
	}
	return goTo(w, r, PathSessions+"?done=done_session")
}

// endBrowserSession handles POST /account/sessions/browser.
func (s *SSO) endBrowserSession(w http.ResponseWriter, r *http.Request) error {
	b, ok := s.RequireBrowser(w, r, Need{})
	if !ok {
		return nil
	}
	browser := r.PostFormValue("browser")
	owned := false
	err := s.Store.Read(r.Context(), func(tx *store.Tx) error {
		row, _, found, err := tx.SSOBrowser(browser)
		owned = found && row.User == b.User
		return err
	})
	if err != nil {
		return err
	}
	if owned {
		if err := s.endBrowser(source(r.Context(), b.User, b.ID[:8]), b.User, browser, "ended by its user"); err != nil {
			return err
		}
	}
	return goTo(w, r, PathSessions+"?done=done_session")
}

// endOthers handles POST /account/sessions/others: all clients and all other browsers are signed out.
func (s *SSO) endOthers(w http.ResponseWriter, r *http.Request) error {
	b, ok := s.RequireBrowser(w, r, Need{MaxAge: sensitiveAge})
	if !ok {
		return nil
	}
	ctx := source(r.Context(), b.User, b.ID[:8])
	if err := s.Accounts.EndSessions(ctx, b.User, account.Ending{KeepBrowser: b.ID}); err != nil {
		return err
	}
	return goTo(w, r, PathSessions+"?done=done_all")
}

func sortSessions(list []sessionView) {
	slices.SortStableFunc(list, func(a, b sessionView) int {
		return cmp.Compare(max(b.Seen, b.Created), max(a.Seen, a.Created))
	})
}
