package sso

import (
	"crypto/rand"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/page"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

func (s *SSO) deviceRoutes() []web.Route {
	return []web.Route{
		{Pattern: "POST " + pathOAuth + "/device", Rate: web.RateRegister, Handler: endpoint(s.deviceAuthorization)},
		s.page("GET "+pathDevice, s.showDevice),
		s.form("POST "+pathDevice, s.decideDevice),
	}
}

const (
	deviceCodeLifetime = 20 * time.Minute
	deviceGap          = 5 * time.Second
	userCodeLetters    = "BCDFGHJKLMNPQRSTVWXZ" // RFC 8628, section 6.1: no vowels, no words
	userCodeLength     = 8                      // 20^8: with the page's rate limit nobody finds one in its lifetime
)

// deviceData is what a device authorization is about.
type deviceData struct {
	Client string      `json:"client"`
	Scope  string      `json:"scope"`
	Device id.DeviceID `json:"device"`
	OpenID bool        `json:"openid,omitzero"`
	IP     string      `json:"ip"`
	User   id.UserID   `json:"user,omitzero"`
	Proof  proof       `json:"proof,omitzero"`
}

func newUserCode() string {
	out := make([]byte, 0, userCodeLength)
	var b [32]byte
	for len(out) < userCodeLength {
		_, _ = rand.Read(b[:]) // never fails
		for _, c := range b {
			// 240 is the largest multiple of 20 in a byte: every letter is as likely as any other.
			if c < 240 && len(out) < userCodeLength {
				out = append(out, userCodeLetters[int(c)%len(userCodeLetters)])
			}
		}
	}
	return string(out)
}

// plainUserCode brings a code that somebody typed into the form that it is stored in.
func plainUserCode(text string) string {
	return strings.Map(func(c rune) rune {
		if strings.ContainsRune(userCodeLetters, c) {
			return c
		}
		return -1
	}, strings.ToUpper(text))
}

func showUserCode(code string) string {
	if len(code) != userCodeLength {
		return code
	}
	return code[:4] + "-" + code[4:]
}

// deviceAuthorization handles POST /oauth2/device. RFC 8628, section 3.1.
func (s *SSO) deviceAuthorization(w http.ResponseWriter, r *http.Request) error {
	if err := page.ReadForm(w, r); err != nil {
		return err
	}
	c, err := s.client(r, r.PostFormValue("client_id"))
	if err != nil {
		return err
	}
	if c == nil {
		return &oauthError{http.StatusUnauthorized, "invalid_client", "there is no such client"}
	}
	if !c.allows(grantDevice) {
		return badRequest("unauthorized_client", "the client did not register for this grant")
	}
	sc, refused := parseScope(r.PostFormValue("scope"))
	if refused != nil {
		return refused
	}
	data, err := json.Marshal(deviceData{Client: c.ID, Scope: sc.granted, Device: sc.device, OpenID: sc.openID, IP: web.ClientIP(r).String()})
	if err != nil {
		return err
	}
	code := newSecret()
	row := store.OAuthDeviceCode{ID: store.HashID(code), Data: data, Gap: deviceGap.Milliseconds(), Expires: s.now() + deviceCodeLifetime.Milliseconds()}
	for inserted := false; !inserted; {
		row.UserCode = newUserCode()
		err := s.Store.Write(r.Context(), func(tx *store.Tx) error {
			if inserted, err = tx.InsertOAuthDeviceCode(row); err != nil {
				return err
			}
			return tx.UseOAuthClient(c.ID, s.now())
		})
		if err != nil {
			return err
		}
	}
	at := s.PublicURL + pathDevice
	return web.WriteJSON(w, map[string]any{
		"device_code": code, "user_code": showUserCode(row.UserCode), "verification_uri": at,
		"verification_uri_complete": at + "?" + url.Values{"user_code": {showUserCode(row.UserCode)}}.Encode(),
		"expires_in":                int64(deviceCodeLifetime / time.Second), "interval": int64(deviceGap / time.Second),
	})
}

// tokenByDevice answers a poll. RFC 8628, section 3.5.
func (s *SSO) tokenByDevice(w http.ResponseWriter, r *http.Request, c *client) error {
	var answer *oauthError
	var data deviceData
	now := s.now()
	err := s.Store.Write(r.Context(), func(tx *store.Tx) error {
		answer, data = nil, deviceData{}
		row, found, err := tx.LockOAuthDeviceCode(store.HashID(r.PostFormValue("device_code")))
		if err != nil {
			return err
		}
		if found {
			if err := json.Unmarshal(row.Data, &data); err != nil {
				return err
			}
		}
		switch {
		case !found || data.Client != c.ID || row.Status == store.OAuthDeviceDone:
			answer = badRequest("invalid_grant", "the device code is not valid or was used")
			return nil
		case row.Expires <= now:
			answer = badRequest("expired_token", "the device code has expired")
			return nil
		case row.Status == store.OAuthDeviceRefused:
			answer = badRequest("access_denied", "the user did not agree")
			return nil
		case row.Status == store.OAuthDeviceAllowed:
			row.Status = store.OAuthDeviceDone
			return tx.UpdateOAuthDeviceCode(row)
		}
		answer = badRequest("authorization_pending", "the user has not decided yet")
		// Half a second is forgiven: clocks of clients and the way through the network differ.
		if now-row.Polled < row.Gap-500 {
			row.Gap += deviceGap.Milliseconds()
			answer = badRequest("slow_down", "")
		}
		row.Polled = now
		return tx.UpdateOAuthDeviceCode(row)
	})
	if err != nil {
		return err
	}
	if answer != nil {
		return answer
	}
	return s.issue(w, r, c, data.User, codeData{Client: data.Client, Scope: data.Scope, Device: data.Device, OpenID: data.OpenID, proof: data.Proof})
}

// devicePage is what the page for codes shows.
type devicePage struct {
	Code, Client, Host, IP, Problem string
	Device                          id.DeviceID
	User                            id.UserID
	Return                          string
}

// showDevice handles GET /device: it asks for the code, or whether what shows the code may sign in.
func (s *SSO) showDevice(w http.ResponseWriter, r *http.Request) error {
	b, ok := s.RequireBrowser(w, r, Need{})
	if !ok {
		return nil
	}
	code := plainUserCode(web.QueryString(r, "user_code"))
	if code == "" {
		return s.pages.Render(w, r, http.StatusOK, "device", devicePage{})
	}
	// Each look is a try to guess a code: they are limited by person and by address. RFC 8628, section 5.1.
	if err := s.limit(web.RateLogin, "device "+string(b.User)); err != nil {
		return err
	}
	var row store.OAuthDeviceCode
	found := false
	err := s.Store.Read(r.Context(), func(tx *store.Tx) (err error) {
		row, found, err = tx.OAuthUserCode(code)
		return err
	})
	if err != nil {
		return err
	}
	if !found || row.Expires <= s.now() || row.Status != store.OAuthDeviceWaits {
		return s.pages.Render(w, r, http.StatusNotFound, "device", devicePage{Code: showUserCode(code), Problem: "device_unknown"})
	}
	var data deviceData
	if err := json.Unmarshal(row.Data, &data); err != nil {
		return err
	}
	c, err := s.client(r, data.Client)
	if err != nil {
		return err
	}
	if c == nil {
		return errNoClient
	}
	return s.pages.Render(w, r, http.StatusOK, "device_consent", devicePage{
		Code: showUserCode(code), Client: c.name(s.Kit.Lang(r)), Host: c.host(), IP: data.IP, Device: data.Device, User: b.User, Return: r.URL.RequestURI(),
	})
}

// decideDevice handles POST /device.
func (s *SSO) decideDevice(w http.ResponseWriter, r *http.Request) error {
	b, ok := s.RequireBrowser(w, r, Need{})
	if !ok {
		return nil
	}
	code := plainUserCode(r.PostFormValue("user_code"))
	if r.PostFormValue("user") != string(b.User) {
		return goTo(w, r, pathDevice+"?"+url.Values{"user_code": {code}}.Encode())
	}
	allow := r.PostFormValue("answer") == "allow"
	decided := false
	err := s.Store.Write(r.Context(), func(tx *store.Tx) error {
		row, found, err := tx.LockOAuthUserCode(code)
		decided = found && row.Status == store.OAuthDeviceWaits && row.Expires > s.now()
		if err != nil || !decided {
			return err
		}
		var data deviceData
		if err := json.Unmarshal(row.Data, &data); err != nil {
			return err
		}
		action := "oauth.device.refused"
		row.Status = store.OAuthDeviceRefused
		if allow {
			action = "oauth.device.allowed"
			row.Status = store.OAuthDeviceAllowed
			data.User, data.Proof = b.User, proof{AMR: b.AMR, Way: b.Way, AuthTime: b.AuthTime, Browser: b.ID, Factor: b.FactorTime}
			if row.Data, err = json.Marshal(data); err != nil {
				return err
			}
		}
		if err := tx.UpdateOAuthDeviceCode(row); err != nil {
			return err
		}
		return audit.Append(source(r.Context(), b.User, b.ID[:8]), tx, audit.Entry{
			Action: action, Target: string(data.Device), Details: map[string]any{"client": data.Client, "asked_from": data.IP},
		})
	})
	if err != nil {
		return err
	}
	if !decided {
		return s.pages.Render(w, r, http.StatusNotFound, "device", devicePage{Problem: "device_unknown"})
	}
	return s.pages.Render(w, r, http.StatusOK, "device_done", struct{ Allowed bool }{allow})
}
