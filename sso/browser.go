package sso

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

const (
	browserCookie = "mh_session"
	attemptCookie = "mh_signin"
	seenEvery     = time.Minute // how exactly the last use of a browser is known
)

// Browser is the session of somebody who is signed in to our own pages. It lies in the database under the hash of its cookie.
type Browser struct {
	ID         string    `json:"-"` // no secret
	User       id.UserID `json:"-"`
	AMR        []string  `json:"amr"` // what was proved: pwd, otp, hwk, sms, mail, rec, mfa …
	Way        string    `json:"way"` // password, passkey, registration, sso:<provider>
	AuthTime   time.Time `json:"auth_time"`
	FactorTime time.Time `json:"factor_time,omitzero"` // when a second factor was last proved; zero: never
	Created    time.Time `json:"created"`
	IP         string    `json:"ip"`
	Agent      string    `json:"agent"`
	// Mark is of the password that the account had: a new one ends the sessions of all browsers.
	Mark []byte `json:"mark,omitzero"`

	Seen    time.Time    `json:"-"`
	Account account.User `json:"-"`
}

// newSecret makes the value of a cookie or a code: 256 random bits.
func newSecret() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	return base64.RawURLEncoding.EncodeToString(b[:])
}

func passwordMark(u account.User) []byte {
	if len(u.Password) == 0 {
		return nil
	}
	sum := sha256.Sum256(append([]byte("moothall browser "), u.Password...))
	return sum[:8]
}

// Browser finds out who is signed in; nil where nobody is.
func (s *SSO) Browser(r *http.Request) (*Browser, error) {
	secret := s.Kit.Cookie(r, browserCookie)
	if secret == "" {
		return nil, nil
	}
	return s.browser(r.Context(), store.HashID(secret), web.ClientIP(r))
}

func (s *SSO) browser(ctx context.Context, browserID string, ip netip.Addr) (*Browser, error) {
	var row store.SSOBrowser
	var u account.User
	found := false
	err := s.Store.Read(ctx, func(tx *store.Tx) (err error) {
		row, u, found, err = tx.SSOBrowser(browserID)
		return err
	})
	if err != nil || !found {
		return nil, err
	}
	b := Browser{ID: row.ID, User: row.User, Seen: time.UnixMilli(row.Seen), Account: u}
	if err := json.Unmarshal(row.Data, &b); err != nil {
		return nil, err
	}
	now := s.Clock()
	reason := ""
	switch {
	case row.Expires <= now.UnixMilli(), now.Sub(b.Seen) > s.Config.IdleTimeout:
		reason = "expired"
	case u.Deactivated, u.Locked, u.Disabled != 0:
		reason = "the account is closed"
	case !bytes.Equal(b.Mark, passwordMark(u)):
		reason = "the password was changed"
	case !s.sameAddress(b.IP, ip):
		reason = "the cookie came from another address"
	}
	if reason != "" {
		return nil, s.endBrowser(ctx, b.User, b.ID, reason)
	}
	if now.Sub(b.Seen) > seenEvery {
		if err := s.Store.Write(ctx, func(tx *store.Tx) error { return tx.SawSSOBrowser(b.ID, now.UnixMilli()) }); err != nil {
			return nil, err
		}
		b.Seen = now
	}
	return &b, nil
}

// sameAddress tells whether a cookie may come from an address, by the configured policy.
func (s *SSO) sameAddress(was string, is netip.Addr) bool {
	if s.Config.BindAddress == "off" || s.Config.BindAddress == "" {
		return true
	}
	before, err := netip.ParseAddr(was)
	if err != nil || !is.IsValid() {
		return err != nil && !is.IsValid() // a Unix socket then and now
	}
	before, is = before.Unmap(), is.Unmap()
	if s.Config.BindAddress == "exact" {
		return before == is
	}
	bits := 24
	if before.Is6() {
		bits = 56
	}
	network, err := before.Prefix(bits)
	return err == nil && network.Contains(is)
}

func (s *SSO) endBrowser(ctx context.Context, user id.UserID, browserID, reason string) error {
	return s.Store.Write(ctx, func(tx *store.Tx) error {
		ended, err := tx.DeleteSSOBrowser(browserID)
		if err != nil || !ended {
			return err
		}
		return audit.Append(ctx, tx, audit.Entry{
			Source: audit.Source{Actor: user}, Action: "session.browser.ended", Target: string(user), Reason: reason,
			Details: map[string]any{"browser": browserID[:min(8, len(browserID))]},
		})
	})
}

// EndBrowsers ends sessions of browsers by their ids: what an identity provider's logout does.
func (s *SSO) EndBrowsers(ctx context.Context, browsers []string) error {
	for _, b := range browsers {
		if err := s.endBrowser(ctx, "", b, "ended by the identity provider"); err != nil {
			return err
		}
	}
	return nil
}

// Need is what a page asks of its visitor beside being signed in.
type Need struct {
	MaxAge time.Duration // how long ago the sign-in may be at most; 0: any
	Factor bool          // a second factor must have been proved
	Role   account.Role  // "": none
}

// storedNeed is a Need as JSON, which has no durations.
type storedNeed struct {
	MaxAge int64        `json:"max_age,omitzero"` // ns
	Factor bool         `json:"factor,omitzero"`
	Role   account.Role `json:"role,omitzero"`
}

// MarshalJSON writes a Need.
func (n Need) MarshalJSON() ([]byte, error) {
	return json.Marshal(storedNeed{int64(n.MaxAge), n.Factor, n.Role})
}

// UnmarshalJSON reads one.
func (n *Need) UnmarshalJSON(b []byte) error {
	var s storedNeed
	err := json.Unmarshal(b, &s)
	n.MaxAge, n.Factor, n.Role = time.Duration(s.MaxAge), s.Factor, s.Role
	return err
}

var (
	errRole     = mxerr.Forbidden("your account does not have the role that this page asks for")
	errNoFactor = mxerr.Forbidden("this page asks for a second factor: add one to your account first, on its page “Second factors”")
)

// RequireBrowser tells who uses a page. Whoever is not signed in, too long ago, or without a second factor where one is needed, is
// sent to sign in and comes back; ok is false then, and the request answered.
func (s *SSO) RequireBrowser(w http.ResponseWriter, r *http.Request, need Need) (b *Browser, ok bool) {
	b, done, err := s.require(w, r, need)
	if err != nil {
		s.pages.Error(w, r, err)
		if mxerr.As(err) == nil {
			s.Logger.Error("look who is signed in", "error", err)
		}
		return nil, false
	}
	return b, !done
}

// Require is RequireBrowser for pages that show errors themselves: who is refused is an error, who has to sign in or to prove a
// factor first is sent there, and ok is false.
func (s *SSO) Require(w http.ResponseWriter, r *http.Request, need Need) (b *Browser, ok bool, err error) {
	b, done, err := s.require(w, r, need)
	return b, err == nil && !done, err
}

func (s *SSO) require(w http.ResponseWriter, r *http.Request, need Need) (*Browser, bool, error) {
	b, err := s.Browser(r)
	if err != nil {
		return nil, false, err
	}
	back := r.URL.RequestURI()
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		back = r.URL.Path
	}
	if b == nil {
		_, err := s.begin(w, r, Attempt{Return: back})
		return nil, true, errors.Join(err, goTo(w, r, PathSignIn))
	}
	if need.MaxAge > 0 && s.Clock().Sub(b.AuthTime) > need.MaxAge {
		_, err := s.begin(w, r, Attempt{Return: back, Known: b.User, Need: need})
		return nil, true, errors.Join(err, goTo(w, r, PathSignIn))
	}
	if need.Role != "" {
		roles, err := s.Accounts.Roles(r.Context(), b.User)
		if err != nil {
			return nil, false, err
		}
		if !slices.Contains(roles, need.Role) {
			return nil, false, errRole
		}
	}
	if need.Factor && !b.hasFactor() {
		done, err := s.stepUp(w, r, b, need, back)
		return nil, done, err
	}
	return b, false, nil
}

// hasFactor tells whether more than one factor stands behind the session.
func (b *Browser) hasFactor() bool {
	return !b.FactorTime.IsZero() || slices.Contains(b.AMR, "mfa")
}

// create signs a browser in: it always gets a new cookie, so that one that somebody planted is worth nothing.
func (s *SSO) create(w http.ResponseWriter, r *http.Request, a *Attempt, u account.User) (*Browser, error) {
	now := s.Clock()
	secret := newSecret()
	b := &Browser{
		ID: store.HashID(secret), User: u.ID, AMR: a.AMR, Way: a.Way, AuthTime: now, Created: now, Seen: now,
		IP: web.ClientIP(r).String(), Agent: cut(r.UserAgent(), 256), Mark: passwordMark(u), Account: u,
	}
	if a.Factor {
		b.FactorTime = now
	}
	row, err := b.row(now.Add(s.Config.Lifetime))
	if err != nil {
		return nil, err
	}
	old := s.Kit.Cookie(r, browserCookie)
	err = s.Store.Write(r.Context(), func(tx *store.Tx) error {
		taken, err := tx.TakeSSOAttempt(a.ID)
		if err != nil {
			return err
		}
		if !taken {
			return errNoAttempt
		}
		if old != "" {
			if _, err := tx.DeleteSSOBrowser(store.HashID(old)); err != nil {
				return err
			}
		}
		if err := tx.PutSSOBrowser(row); err != nil {
			return err
		}
		return audit.Append(r.Context(), tx, audit.Entry{
			Source: audit.Source{Actor: u.ID}, Action: "signin.browser", Target: string(u.ID),
			Details: map[string]any{"way": a.Way, "amr": a.AMR, "browser": b.ID[:8]},
		})
	})
	if err != nil {
		return nil, err
	}
	s.Kit.SetCookie(w, &http.Cookie{Name: browserCookie, Value: secret, MaxAge: int(s.Config.Lifetime / time.Second)})
	s.Kit.DeleteCookie(w, attemptCookie)
	return b, nil
}

func (b *Browser) row(expires time.Time) (store.SSOBrowser, error) {
	data, err := json.Marshal(b)
	return store.SSOBrowser{ID: b.ID, User: b.User, Data: data, Seen: b.Seen.UnixMilli(), Expires: expires.UnixMilli()}, err
}

// update stores what changed of a browser's session.
func (s *SSO) update(ctx context.Context, b *Browser) error {
	row, err := b.row(b.Created.Add(s.Config.Lifetime))
	if err != nil {
		return err
	}
	return s.Store.Write(ctx, func(tx *store.Tx) error {
		if _, _, found, err := tx.SSOBrowser(b.ID); err != nil || !found {
			return err
		}
		return tx.PutSSOBrowser(row)
	})
}

// cut shortens what a browser says of itself.
func cut(text string, n int) string {
	if len(text) > n {
		text = text[:n]
	}
	return string(bytes.ToValidUTF8([]byte(text), nil))
}
