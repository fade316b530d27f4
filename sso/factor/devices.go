package factor

import (
	"context"
	"encoding/base64"
	"net/http"
	"slices"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// rememberCookie holds the token of a remembered browser; one browser may have several accounts, so it is named by account.
const rememberCookie = "mh_known_"

// rememberName is the cookie of an account. It does not tell whose it is to who looks over a shoulder.
func rememberName(user id.UserID) string {
	h := store.HashToken("remembered " + string(user))
	return rememberCookie + base64.RawURLEncoding.EncodeToString(h[:9])
}

// RememberedCookie is the token that a browser shows for an account, "" if it shows none.
func (f *Factors) RememberedCookie(r *http.Request, user id.UserID) string {
	if f.Kit == nil {
		return ""
	}
	return f.Kit.Cookie(r, rememberName(user))
}

// Remember makes a browser one that needs no second factor of a user for a while. The token is random, kept by its hash only
// and good for this account alone. The oldest one makes room where there are too many.
func (f *Factors) Remember(ctx context.Context, user id.UserID, amr []string, life time.Duration, from From) (token string, err error) {
	token = "mhd_" + base64.RawURLEncoding.EncodeToString(random(32))
	d := store.RememberedDevice{
		ID: newID(), Hash: store.HashToken(token), User: user, AMR: strings.Join(amr, " "), Agent: cut(from.Agent, 256), IP: from.IP.String(),
	}
	err = f.Store.Write(ctx, func(tx *store.Tx) error {
		d.Created = f.now()
		d.Used, d.Expires = d.Created, d.Created+life.Milliseconds()
		if _, err := tx.LockFactorUser(user, newHandle()); err != nil {
			return err
		}
		known, err := tx.RememberedDevices(user)
		if err != nil {
			return err
		}
		for i := maxDevices - 1; i < len(known); i++ {
			if _, err := tx.DeleteRememberedDevice(user, known[i].ID); err != nil {
				return err
			}
		}
		if err := tx.InsertRememberedDevice(d); err != nil {
			return err
		}
		return f.audit(ctx, tx, user, "factor.browser.remembered", audit.OK, "", map[string]any{"browser": d.ID, "until": d.Expires})
	})
	return token, err
}

// remember sets the cookie of Remember.
func (f *Factors) remember(w http.ResponseWriter, r *http.Request, user id.UserID, amr []string, life time.Duration) error {
	token, err := f.Remember(r.Context(), user, amr, life, f.from(r))
	if err == nil {
		f.Kit.SetCookie(w, &http.Cookie{Name: rememberName(user), Value: token, MaxAge: int(life / time.Second)})
	}
	return err
}

// touch notes that a remembered browser was used, once an hour at most.
func (f *Factors) touch(ctx context.Context, d store.RememberedDevice, p Passed) error {
	now := f.now()
	if now-d.Used < time.Hour.Milliseconds() {
		return nil
	}
	return f.Store.Write(ctx, func(tx *store.Tx) error { return tx.TouchRememberedDevice(d.ID, p.IP.String(), now) })
}

// Remembered lists the browsers that need no second factor of a user.
func (f *Factors) Remembered(ctx context.Context, user id.UserID) ([]store.RememberedDevice, error) {
	var out []store.RememberedDevice
	err := f.Store.Read(ctx, func(tx *store.Tx) (err error) {
		out, err = tx.RememberedDevices(user)
		return err
	})
	now := f.now()
	return slices.DeleteFunc(out, func(d store.RememberedDevice) bool { return d.Expires <= now }), err
}

// Forget makes a browser need a second factor again; "" means all of the user's, as after a change of the password.
func (f *Factors) Forget(ctx context.Context, user id.UserID, browser string) error {
	return f.Store.Write(ctx, func(tx *store.Tx) error {
		n, err := tx.DeleteRememberedDevice(user, browser)
		if err != nil {
			return err
		}
		if n == 0 {
			if browser == "" {
				return nil
			}
			return mxerr.NotFound("there is no such browser")
		}
		return f.audit(ctx, tx, user, "factor.browser.forgotten", audit.OK, "", map[string]any{"browsers": n})
	})
}
