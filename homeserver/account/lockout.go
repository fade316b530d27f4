package account

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"strings"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/store"
)

const (
	accountForget = 24 * time.Hour // after this time without a wrong password those before are forgotten
	addressForget = time.Hour
)

// failureKeys name what wrong passwords are counted for.
type failureKeys struct {
	account string
	address string // "": the address is not known
}

// failureKeys finds them. They are hashes: what is typed as a name may be a password. At an address where a user has a
// device already, wrong passwords are counted apart, so that strangers elsewhere cannot lock the user out there.
func (a *Accounts) failureKeys(ctx context.Context, u User, found bool, name, ip string) (failureKeys, error) {
	user := u.ID
	if !found {
		user = a.UserID(strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(name, "@"), ":"+a.ServerName)))
	}
	keys := failureKeys{account: failureKey("account", string(user))}
	if ip == "" {
		return keys, nil
	}
	keys.address = failureKey("address", networkOf(ip))
	if !found {
		return keys, nil
	}
	known := false
	err := a.Store.Read(ctx, func(tx *store.Tx) error {
		var err error
		known, err = tx.KnowsAddress(u.ID, ip)
		return err
	})
	if known {
		keys.account = failureKey("account at", string(user)+" "+ip)
	}
	return keys, err
}

func failureKey(kind, name string) string {
	h := sha256.Sum256([]byte(kind + "\x00" + name))
	return hex.EncodeToString(h[:16])
}

// networkOf is what counts as one address: one household or host has a whole /64.
func networkOf(ip string) string {
	addr, err := netip.ParseAddr(ip)
	if err != nil || !addr.Is6() {
		return ip
	}
	p, err := addr.Prefix(64)
	if err != nil {
		return ip
	}
	return p.String()
}

// failures is what was counted up to now.
type failures struct{ account, address store.SignInFailures }

// wait is how long no password is looked at.
func (f *failures) wait(now int64) time.Duration {
	return time.Duration(max(f.account.Until-now, f.address.Until-now, 0)) * time.Millisecond
}

// failures reads what was counted, and what is known of the account's password. It is one look into the database, also for
// an account that does not exist.
func (a *Accounts) failures(ctx context.Context, keys failureKeys, t *attempt, user id.UserID) (failures, error) {
	var out failures
	err := a.Store.Read(ctx, func(tx *store.Tx) error {
		counted, err := tx.SignInFailures([]string{keys.account, keys.address})
		if err != nil {
			return err
		}
		out = failures{account: counted[keys.account], address: counted[keys.address]}
		t.facts, err = tx.PasswordFacts(user)
		return err
	})
	return out, err
}

// countFailure counts a wrong password and holds the account or the address where there were too many.
func (a *Accounts) countFailure(ctx context.Context, keys failureKeys, user id.UserID) error {
	l := a.Config.Passwords.Lockout
	// The one who tries may hang up; it counts all the same.
	ctx = context.WithoutCancel(ctx)
	return a.Store.Write(ctx, func(tx *store.Tx) error {
		now := a.now()
		for _, c := range []struct {
			key    string
			free   int
			forget time.Duration
			target string
		}{{keys.account, l.Attempts, accountForget, string(user)}, {keys.address, l.AddressAttempts, addressForget, ""}} {
			if c.key == "" || c.free < 0 {
				continue
			}
			n, err := tx.CountSignInFailure(c.key, now, now-c.forget.Milliseconds())
			if err != nil {
				return err
			}
			wait := l.after(n - int64(c.free))
			if wait == 0 {
				continue
			}
			if err := tx.HoldSignIn(c.key, now+wait.Milliseconds()); err != nil {
				return err
			}
			e := audit.Entry{
				Action: "signin.held", Target: c.target, Result: audit.Refused,
				Details: map[string]any{"wrong_passwords": n, "seconds": int64(wait.Seconds()), "address": c.target == ""},
			}
			if err := audit.Append(ctx, tx, e); err != nil {
				return err
			}
		}
		return nil
	})
}

// after is the wait after so many wrong passwords more than are free.
func (l Lockout) after(over int64) time.Duration {
	if over < 0 {
		return 0
	}
	wait := l.Delay
	for ; over > 0 && wait < l.MaxDelay; over-- {
		wait *= 2
	}
	return min(wait, l.MaxDelay)
}

// oneAtATime lets one caller of a name work at a time.
type oneAtATime struct {
	mu    sync.Mutex
	under map[string]*turn
}

type turn struct {
	free  chan struct{} // holds one token while nobody works
	users int
}

// begin waits for the turn of a name, as long as a password may wait to be hashed.
func (o *oneAtATime) begin(ctx context.Context, name string) (done func(), err error) {
	o.mu.Lock()
	t := o.under[name]
	if t == nil {
		t = &turn{free: make(chan struct{}, 1)}
		t.free <- struct{}{}
		o.under[name] = t
	}
	t.users++
	o.mu.Unlock()
	leave := func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		if t.users--; t.users == 0 {
			delete(o.under, name)
		}
	}
	wait := time.NewTimer(hashWait)
	defer wait.Stop()
	select {
	case <-t.free:
		return func() { t.free <- struct{}{}; leave() }, nil
	case <-wait.C:
		err = errHashBusy
	case <-ctx.Done():
		err = ctx.Err()
	}
	leave()
	return nil, err
}
