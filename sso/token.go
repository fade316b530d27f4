package sso

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"net/http"
	"regexp"
	"time"

	"github.com/go-json-experiment/json"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/page"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

func (s *SSO) tokenRoutes() []web.Route {
	return []web.Route{
		{Pattern: "POST " + pathOAuth + "/token", Rate: web.RateRead, Handler: endpoint(s.token)},
		{Pattern: "POST " + pathOAuth + "/revoke", Rate: web.RateRead, Handler: endpoint(s.revoke)},
	}
}

// tokenResponse is RFC 6749, section 5.1.
type tokenResponse struct {
	AccessToken  string `json:"access_token"`
	TokenType    string `json:"token_type"`
	ExpiresIn    int64  `json:"expires_in"`
	RefreshToken string `json:"refresh_token"`
	Scope        string `json:"scope"`
	IDToken      string `json:"id_token,omitzero"`
}

func newTokenResponse(t account.Tokens, scope string) tokenResponse {
	return tokenResponse{AccessToken: t.AccessToken, TokenType: "Bearer", ExpiresIn: t.ExpiresInMS / 1000, RefreshToken: t.RefreshToken, Scope: scope}
}

// token handles POST /oauth2/token. RFC 6749, section 3.2.
func (s *SSO) token(w http.ResponseWriter, r *http.Request) error {
	if err := page.ReadForm(w, r); err != nil {
		return err
	}
	for name, values := range r.PostForm {
		if len(values) > 1 {
			return badRequest("invalid_request", "the parameter "+name+" is there twice")
		}
	}
	if r.Header.Get("Authorization") != "" {
		return &oauthError{http.StatusUnauthorized, "invalid_client", "clients are public here: send client_id in the body"}
	}
	c, err := s.client(r, r.PostFormValue("client_id"))
	if err != nil {
		return err
	}
	if c == nil {
		return &oauthError{http.StatusUnauthorized, "invalid_client", "there is no such client"}
	}
	switch grant := r.PostFormValue("grant_type"); {
	case grant == "":
		return badRequest("invalid_request", "grant_type is required")
	case grant != grantCode && grant != grantRefresh && grant != grantDevice:
		return badRequest("unsupported_grant_type", "")
	case !c.allows(grant) && grant != grantRefresh: // a refresh token is given with every grant
		return badRequest("unauthorized_client", "the client did not register for this grant")
	case grant == grantCode:
		return s.tokenByCode(w, r, c)
	case grant == grantRefresh:
		return s.tokenByRefresh(w, r, c)
	default:
		return s.tokenByDevice(w, r, c)
	}
}

var verifierForm = regexp.MustCompile(`^[A-Za-z0-9._~-]{43,128}$`)

// verified tells whether a verifier is the one that a challenge was made of. RFC 7636, section 4.6.
func verified(verifier, challenge string) bool {
	sum := sha256.Sum256([]byte(verifier))
	got := base64.RawURLEncoding.EncodeToString(sum[:])
	return verifierForm.MatchString(verifier) && subtle.ConstantTimeCompare([]byte(got), []byte(challenge)) == 1
}

var errBadCode = badRequest("invalid_grant", "the code is not valid, was used or has expired")

// tokenByCode exchanges an authorization code. A code that is shown again ends what it had opened: either of the two
// who showed it may have stolen it. RFC 6749, sections 4.1.2 and 4.1.3.
func (s *SSO) tokenByCode(w http.ResponseWriter, r *http.Request, c *client) error {
	hash, now := store.HashID(r.PostFormValue("code")), s.now()
	var data codeData
	var user id.UserID
	replayed := false
	err := s.Store.Write(r.Context(), func(tx *store.Tx) error {
		row, found, err := tx.LockOAuthCode(hash)
		if err != nil {
			return err
		}
		if !found {
			return errBadCode
		}
		data = codeData{}
		if err := json.Unmarshal(row.Data, &data); err != nil {
			return err
		}
		user, replayed = row.User, row.Used
		switch {
		case replayed:
			return nil
		case row.Expires <= now || data.Client != c.ID || data.Redirect != r.PostFormValue("redirect_uri"):
			return errBadCode
		case !verified(r.PostFormValue("code_verifier"), data.Challenge):
			// Whoever has the code but not the verifier has stolen it: it is worth nothing from now on.
			replayed = false
			if err := tx.UseOAuthCode(hash); err != nil {
				return err
			}
			data.Client = ""
			return nil
		}
		return tx.UseOAuthCode(hash)
	})
	switch {
	case err != nil:
		return err
	case replayed:
		return s.codeReplayed(r, user, data)
	case data.Client == "":
		return errBadCode
	}
	return s.issue(w, r, c, user, data)
}

// codeReplayed ends what a code that is shown again had opened.
func (s *SSO) codeReplayed(r *http.Request, user id.UserID, data codeData) error {
	var opened bool
	err := s.Store.Read(r.Context(), func(tx *store.Tx) error {
		g, found, err := tx.OAuthGrant(user, data.Device)
		opened = found && g.Client == data.Client && g.Created >= data.AuthTime.UnixMilli()
		return err
	})
	if err != nil {
		return err
	}
	if opened {
		if err := s.endCompromised(r, user, data.Device, "oauth.code.replayed"); err != nil {
			return err
		}
	}
	return errBadCode
}

// endCompromised ends a device of which somebody showed what was used before.
func (s *SSO) endCompromised(r *http.Request, user id.UserID, device id.DeviceID, action string) error {
	s.Logger.Warn("a token or code was used again: the session ends", "user_id", user, "device_id", device, "ip", web.ClientIP(r), "what", action)
	if err := s.Audit.Record(r.Context(), audit.Entry{Action: action, Target: string(user), Result: audit.Refused, Details: map[string]any{"device": device}}); err != nil {
		return err
	}
	// Softly: its owner signs in again and keeps the keys.
	if err := s.Accounts.EndSessions(r.Context(), user, account.Ending{Devices: []id.DeviceID{device}, Soft: true}); err != nil {
		return err
	}
	return s.Store.Write(r.Context(), func(tx *store.Tx) error { return tx.DeleteOAuthGrant(user, device) })
}

// issue opens the session of a grant.
func (s *SSO) issue(w http.ResponseWriter, r *http.Request, c *client, user id.UserID, data codeData) error {
	name := c.name("en")
	device, tokens, err := s.Accounts.SignIn(r.Context(), user, signIn(c, data, &name))
	if err != nil {
		if e := mxerr.As(err); e != nil && e.Status < 500 {
			return badRequest("invalid_grant", e.Message)
		}
		return err
	}
	now := s.now()
	err = s.Store.Write(r.Context(), func(tx *store.Tx) error {
		if err := tx.DeleteOAuthGrant(user, device); err != nil {
			return err
		}
		return tx.PutOAuthGrant(store.OAuthGrant{User: user, Device: device, Client: c.ID, Scope: data.Scope, Created: now})
	})
	if err != nil {
		return err
	}
	if err := s.rememberDevice(r, data, user, device); err != nil {
		return err
	}
	out := newTokenResponse(tokens, data.Scope)
	if data.OpenID {
		if out.IDToken, err = s.idToken(r, c, user, data); err != nil {
			return err
		}
	}
	return web.WriteJSON(w, out)
}

// signIn describes the session that a client gets.
func signIn(c *client, data codeData, name *string) account.SignIn {
	return account.SignIn{
		Device: data.Device, DeviceDisplayName: name, Refreshable: true, Way: account.WayOAuth, AMR: data.AMR, OAuthClient: c.ID,
	}
}

var errBadRefresh = badRequest("invalid_grant", "the refresh token is not valid")

// spentLifetime is how long a refresh token that was used is remembered.
const spentLifetime = 90 * 24 * time.Hour

// tokenByRefresh exchanges a refresh token. The old one stays good until what it was exchanged for is used, so that a client
// whose answer got lost can ask again; after that it has been stolen, and the session ends.
// Spec: client-server API, "Refresh token grant"; RFC 9700, section 4.14.2.
func (s *SSO) tokenByRefresh(w http.ResponseWriter, r *http.Request, c *client) error {
	secret := r.PostFormValue("refresh_token")
	hash := store.HashToken(secret)
	var session account.Session
	var grant store.OAuthGrant
	found, granted := false, false
	err := s.Store.Read(r.Context(), func(tx *store.Tx) (err error) {
		if session, found, err = tx.SessionByRefresh(hash); err != nil || !found {
			return err
		}
		grant, granted, err = tx.OAuthGrant(session.User, session.Device)
		return err
	})
	if err != nil {
		return err
	}
	if !found {
		return s.refreshUnknown(r, secret)
	}
	if !granted || grant.Client != c.ID {
		return errBadRefresh // RFC 6749, section 10.4: it belongs to one client
	}
	if scope := r.PostFormValue("scope"); scope != "" && scope != grant.Scope {
		return badRequest("invalid_scope", "the scope of a session cannot be changed")
	}
	tokens, err := s.Accounts.Refresh(r.Context(), secret)
	if e := mxerr.As(err); e != nil && e.Status < 500 {
		if e.Code == "M_UNKNOWN_TOKEN" {
			return s.refreshUnknown(r, secret)
		}
		return badRequest("invalid_grant", e.Message)
	}
	if err != nil {
		return err
	}
	now := s.now()
	err = s.Store.Write(r.Context(), func(tx *store.Tx) error {
		if err := tx.UseOAuthClient(c.ID, now); err != nil {
			return err
		}
		return tx.SpendOAuthRefresh(store.HashID(secret), session.User, session.Device, now+spentLifetime.Milliseconds())
	})
	if err != nil {
		return err
	}
	return web.WriteJSON(w, newTokenResponse(tokens, grant.Scope))
}

// refreshUnknown answers for a refresh token that opens nothing: if it did before, somebody has stolen it.
func (s *SSO) refreshUnknown(r *http.Request, secret string) error {
	var user id.UserID
	var device id.DeviceID
	spent, alive := false, false
	err := s.Store.Read(r.Context(), func(tx *store.Tx) (err error) {
		if _, alive, err = tx.SessionByRefresh(store.HashToken(secret)); err != nil || alive {
			return err
		}
		user, device, spent, err = tx.SpentOAuthRefresh(store.HashID(secret))
		return err
	})
	if err != nil {
		return err
	}
	if spent && !alive {
		if err := s.endCompromised(r, user, device, "oauth.refresh.replayed"); err != nil {
			return err
		}
	}
	return errBadRefresh
}

// revoke handles POST /oauth2/revoke: the session of an access or refresh token ends, with its device, whoever asks, since
// whoever has the token could sign out with it anyway.
// Spec: client-server API, "Token revocation"; RFC 7009.
func (s *SSO) revoke(w http.ResponseWriter, r *http.Request) error {
	if err := page.ReadForm(w, r); err != nil {
		return err
	}
	secret := r.PostFormValue("token")
	if secret == "" {
		return badRequest("invalid_request", "token is required")
	}
	switch r.PostFormValue("token_type_hint") {
	case "", "access_token", "refresh_token":
	default:
		return badRequest("unsupported_token_type", "token_type_hint must be access_token or refresh_token")
	}
	var user id.UserID
	var device id.DeviceID
	found := false
	err := s.Store.Read(r.Context(), func(tx *store.Tx) error {
		hash := store.HashToken(secret)
		session, _, ok, err := tx.SessionByToken(hash)
		if err == nil && !ok {
			session, ok, err = tx.SessionByRefresh(hash)
		}
		user, device, found = session.User, session.Device, ok
		return err
	})
	if err != nil {
		return err
	}
	if found {
		ctx := audit.WithSource(r.Context(), audit.Source{Actor: user, Device: device})
		if err := s.Accounts.EndSessions(ctx, user, account.Ending{Devices: []id.DeviceID{device}}); err != nil {
			return err
		}
	}
	return web.WriteJSON(w, struct{}{})
}
