package upstream

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/store"
)

// Remember notes that an identity opened the session of a device, so that the end of the provider's session ends it.
func (p *Providers) Remember(ctx context.Context, i Identity, user id.UserID, device id.DeviceID) error {
	return p.remember(ctx, i, store.UpstreamSession{User: user, Device: device})
}

// RememberBrowser notes that an identity opened the session of a browser on our own pages.
func (p *Providers) RememberBrowser(ctx context.Context, i Identity, user id.UserID, browser string) error {
	return p.remember(ctx, i, store.UpstreamSession{User: user, Browser: browser, IDToken: store.Content(i.IDToken)})
}

func (p *Providers) remember(ctx context.Context, i Identity, u store.UpstreamSession) error {
	u.Provider, u.Subject, u.SID, u.Created = i.Provider, i.Subject, i.SID, p.Clock().UnixMilli()
	return p.Store.Write(ctx, func(tx *store.Tx) error { return tx.PutUpstreamSession(u) })
}

// RememberDevice notes that somebody signed in to a browser opened the session of a device there. A browser that came in
// another way than a provider leaves nothing to note.
func (p *Providers) RememberDevice(ctx context.Context, browser string, user id.UserID, device id.DeviceID) error {
	return p.copyBrowser(ctx, browser, user, func(u *store.UpstreamSession) { u.Device, u.Browser = device, "" })
}

// RememberToken notes that a browser's session made a token that signs in a client (m.login.token).
func (p *Providers) RememberToken(ctx context.Context, browser string, user id.UserID, token string) error {
	return p.copyBrowser(ctx, browser, user, func(u *store.UpstreamSession) { u.Browser = tokenName(token) })
}

// TokenUsed notes which device such a token has signed in.
func (p *Providers) TokenUsed(ctx context.Context, token string, user id.UserID, device id.DeviceID) error {
	return p.RememberDevice(ctx, tokenName(token), user, device)
}

// tokenPrefix marks notes of tokens among those of browsers.
const tokenPrefix = "token:"

func tokenName(token string) string {
	h := store.HashToken(token)
	return tokenPrefix + hex.EncodeToString(h[:])
}

// copyBrowser notes of something else what is noted of a browser.
func (p *Providers) copyBrowser(ctx context.Context, browser string, user id.UserID, change func(u *store.UpstreamSession)) error {
	var list []store.UpstreamSession
	read := func(tx *store.Tx) error {
		var err error
		list, err = tx.UpstreamBrowser(browser)
		return err
	}
	if err := p.Store.Read(ctx, read); err != nil || len(list) == 0 {
		return err
	}
	return p.Store.Write(ctx, func(tx *store.Tx) error {
		if err := read(tx); err != nil { // it may have ended meanwhile
			return err
		}
		for _, u := range list {
			if u.User != user {
				continue
			}
			change(&u)
			u.IDToken, u.Created = nil, p.Clock().UnixMilli()
			if err := tx.PutUpstreamSession(u); err != nil {
				return err
			}
		}
		return nil
	})
}

// DeviceDeleted forgets a device, in the transaction that deletes it.
func DeviceDeleted(tx *store.Tx, user id.UserID, device id.DeviceID) error {
	return tx.DeleteUpstreamSession(user, device, "")
}

// LogoutURL is where a browser ends its session at the provider that opened it, "" if there is none or it has no such
// page. back is where the provider sends the browser then. Call it before the browser's session ends here.
// Spec: OpenID Connect RP-Initiated Logout 1.0.
func (p *Providers) LogoutURL(ctx context.Context, browser, back, state string) (string, error) {
	var list []store.UpstreamSession
	err := p.Store.Read(ctx, func(tx *store.Tx) error {
		var err error
		list, err = tx.UpstreamBrowser(browser)
		return err
	})
	if err != nil {
		return "", err
	}
	for _, u := range list {
		e := p.byID[u.Provider]
		if e == nil || e.oidc == nil {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, e.cfg.Timeout)
		defer cancel()
		target, err := e.oidc.logoutURL(ctx, string(u.IDToken), back, state)
		if err != nil {
			return "", p.explain(e, "logout", err)
		}
		return target, nil
	}
	return "", nil
}

// endUpstream ends what a session at a provider opened; all of the subject's where sid is "".
func (p *Providers) endUpstream(ctx context.Context, e *entry, subject, sid string) error {
	if e.cfg.OnLogout == LogoutIgnore {
		return nil
	}
	var list []store.UpstreamSession
	err := p.Store.Read(ctx, func(tx *store.Tx) error {
		var err error
		list, err = tx.UpstreamSessions(e.cfg.ID, subject, sid)
		return err
	})
	if err != nil {
		return err
	}
	if sid != "" && subject != "" {
		// The token names both: somebody else's session is none of its business.
		list = slices.DeleteFunc(list, func(u store.UpstreamSession) bool { return u.Subject != subject })
	}
	devices := map[id.UserID][]id.DeviceID{}
	var browsers []string
	for _, u := range list {
		switch {
		case u.Device != "":
			devices[u.User] = append(devices[u.User], u.Device)
		case !strings.HasPrefix(u.Browser, tokenPrefix):
			browsers = append(browsers, u.Browser)
		}
	}
	ctx = audit.WithSource(ctx, audit.Source{Kind: audit.KindSystem, Agent: "identity provider " + e.cfg.ID})
	// What could open another session goes first.
	if len(browsers) > 0 && p.EndBrowsers != nil {
		if err := p.EndBrowsers(ctx, browsers); err != nil {
			return fmt.Errorf("end the sessions of browsers: %w", err)
		}
	}
	if err := p.endTokens(ctx, list); err != nil {
		return err
	}
	for user, d := range devices {
		if err := p.Accounts.EndSessions(ctx, user, account.Ending{Devices: d, Soft: e.cfg.OnLogout == LogoutSoft, Reason: "identity_provider"}); err != nil {
			return fmt.Errorf("end the sessions of %s: %w", user, err)
		}
		p.Logger.Info("sessions ended by the identity provider", "provider", e.cfg.ID, "user_id", user, "devices", len(d))
	}
	// A device that signs in again has another session at the provider, or none.
	return p.Store.Write(ctx, func(tx *store.Tx) error {
		for _, u := range list {
			if err := tx.DeleteUpstreamSession(u.User, u.Device, u.Browser); err != nil {
				return err
			}
		}
		return nil
	})
}

// endTokens takes back login tokens that nobody has used yet.
func (p *Providers) endTokens(ctx context.Context, list []store.UpstreamSession) error {
	if !slices.ContainsFunc(list, func(u store.UpstreamSession) bool { return strings.HasPrefix(u.Browser, tokenPrefix) }) {
		return nil
	}
	return p.Store.Write(ctx, func(tx *store.Tx) error {
		for _, u := range list {
			if strings.HasPrefix(u.Browser, tokenPrefix) {
				if err := tx.DeleteLoginTokens(u.User); err != nil {
					return err
				}
			}
		}
		return nil
	})
}
