package upstream

import (
	"context"
	"fmt"

	"maunium.net/go/mautrix/id"

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
	return p.Store.Write(ctx, func(tx *store.Tx) error {
		list, err := tx.UpstreamBrowser(browser)
		if err != nil {
			return err
		}
		for _, u := range list {
			if u.User != user {
				continue
			}
			u.Device, u.Browser, u.IDToken, u.Created = device, "", nil, p.Clock().UnixMilli()
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
	devices := map[id.UserID][]id.DeviceID{}
	var browsers []string
	for _, u := range list {
		if sid != "" && subject != "" && u.Subject != subject {
			continue // the token names both: somebody else's session is none of its business
		}
		if u.Device != "" {
			devices[u.User] = append(devices[u.User], u.Device)
		} else {
			browsers = append(browsers, u.Browser)
		}
	}
	// Browsers first: one of them could open another session.
	if len(browsers) > 0 && p.EndBrowsers != nil {
		if err := p.EndBrowsers(ctx, browsers); err != nil {
			return fmt.Errorf("end the sessions of browsers: %w", err)
		}
	}
	for user, d := range devices {
		if err := p.Accounts.EndSessions(ctx, user, account.Ending{Devices: d, Soft: e.cfg.OnLogout == LogoutSoft}); err != nil {
			return fmt.Errorf("end the sessions of %s: %w", user, err)
		}
		p.Logger.Info("sessions ended by the identity provider", "provider", e.cfg.ID, "user_id", user, "devices", len(d))
	}
	return nil
}
