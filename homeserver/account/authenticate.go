package account

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// trustCache is for how long what is in memory is believed without a look at the log's head.
const trustCache = time.Second

// maxCached bounds the sessions that are held in memory, at some 500 bytes each.
const maxCached = 200_000

// cachedSession is what is known of an access token. It does not change, except for seen.
type cachedSession struct {
	identity web.Identity
	expires  int64 // ms; 0: never
	locked   bool
	seen     atomic.Int64 // ms: when this use of the device was last noted
	// signedIn and used are when the device was signed in and seen as the database said, ms; where sessions have limits.
	signedIn, used int64
}

// sessionCache holds sessions by token, until the log tells that something about their user changed.
type sessionCache struct {
	mu     sync.RWMutex
	byHash map[store.TokenHash]*cachedSession
	byUser map[id.UserID]map[store.TokenHash]struct{}
	// dropped is the position of the last entry that made sessions invalid: what was read from an older snapshot may
	// be one of these and is not kept.
	dropped int64
}

func newSessionCache() *sessionCache {
	return &sessionCache{byHash: map[store.TokenHash]*cachedSession{}, byUser: map[id.UserID]map[store.TokenHash]struct{}{}}
}

func (c *sessionCache) get(h store.TokenHash) *cachedSession {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.byHash[h]
}

// put keeps a session that was read from a snapshot of the log's position pos.
func (c *sessionCache) put(h store.TokenHash, s *cachedSession, pos int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dropped > pos {
		return
	}
	for user := range c.byUser {
		if len(c.byHash) < maxCached {
			break
		}
		c.dropLocked(user)
	}
	c.byHash[h] = s
	of := c.byUser[s.identity.UserID]
	if of == nil {
		of = map[store.TokenHash]struct{}{}
		c.byUser[s.identity.UserID] = of
	}
	of[h] = struct{}{}
}

func (c *sessionCache) dropLocked(user id.UserID) {
	for h := range c.byUser[user] {
		delete(c.byHash, h)
	}
	delete(c.byUser, user)
}

// apply follows the log.
func (c *sessionCache) apply(entries []store.Entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range entries {
		switch e.Kind {
		case store.KindReset:
			clear(c.byHash)
			clear(c.byUser)
		case store.KindSession, store.KindUser:
			c.dropLocked(id.UserID(e.User))
		default:
			continue
		}
		c.dropped = max(c.dropped, e.Pos)
	}
}

// Listener keeps sessions and roles in memory true; it belongs to the listeners of store.Follow.
func (a *Accounts) Listener() store.Listener {
	return store.Listener{Apply: func(entries []store.Entry) {
		a.cache.apply(entries)
		for i := range entries {
			switch entries[i].Kind {
			case store.KindReset:
				a.roles.clear()
			case store.KindUser:
				a.roles.drop(id.UserID(entries[i].User))
			}
		}
	}}
}

var (
	errUnknownToken = mxerr.UnknownToken("this server knows no such access token", false)
	errOverLimit    = mxerr.UnknownToken("this session has lasted for as long as it may: sign in again", true)
	errExpired      = mxerr.UnknownToken("the access token has expired: refresh it or sign in again", true)
)

// Authenticate finds out whom an access token belongs to. Errors: M_UNKNOWN_TOKEN, with soft_logout where the session
// can be had again; M_USER_LOCKED. The Identity is shared: it must not be changed.
func (a *Accounts) Authenticate(ctx context.Context, token string) (*web.Identity, error) {
	s, err := a.session(ctx, token)
	if err != nil {
		return nil, err
	}
	if s.locked {
		return nil, errLocked
	}
	return &s.identity, nil
}

// Authenticator is Authenticate for package web. It also notes where and when a device was seen, and lets locked users
// sign out. Spec: client-server API, "Account locking".
func (a *Accounts) Authenticator(r *http.Request, token string) (*web.Identity, error) {
	s, err := a.session(r.Context(), token)
	if err != nil {
		return nil, err
	}
	if s.locked && r.URL.Path != "/_matrix/client/v3/logout" && r.URL.Path != "/_matrix/client/v3/logout/all" {
		return nil, errLocked
	}
	a.seen.note(s, r, a.now())
	return &s.identity, nil
}

func (a *Accounts) session(ctx context.Context, token string) (*cachedSession, error) {
	if !couldBe(token, accessPrefix) {
		return nil, errUnknownToken
	}
	h := store.HashToken(token)
	s := a.cache.get(h)
	if s != nil {
		// What was revoked on another node holds here within a second, also where this one does not get to hear of it.
		switch err := a.Store.Confirm(ctx, trustCache); {
		case errors.Is(err, store.ErrBehind):
			s = nil
		case err != nil:
			return nil, err
		default:
			s = a.cache.get(h)
		}
	}
	if s == nil || a.Config.Sessions.overLimit(s.signedIn, max(s.used, s.seen.Load()), a.now()) != "" {
		var err error
		if s, err = a.loadSession(ctx, h); err != nil {
			return nil, err
		}
	}
	if s.expires != 0 && s.expires <= a.now() {
		return nil, errExpired
	}
	return s, nil
}

func (a *Accounts) loadSession(ctx context.Context, h store.TokenHash) (*cachedSession, error) {
	var row Session
	var u User
	var found bool
	var pos, signedIn, used int64
	err := a.Store.Read(ctx, func(tx *store.Tx) error {
		var err error
		if pos, err = tx.LogPosition(); err != nil {
			return err
		}
		row, u, found, err = tx.SessionByToken(h)
		if err != nil || !found || !a.Config.Sessions.limited() {
			return err
		}
		signedIn, used, err = tx.DeviceTimes(row.User, row.Device)
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case !found || u.Deactivated:
		return nil, errUnknownToken
	}
	if row.Replaces != 0 && (row.Expires == 0 || row.Expires > a.now()) {
		if err := a.confirm(ctx, row); err != nil {
			return nil, err
		}
	}
	if reason := a.Config.Sessions.overLimit(signedIn, used, a.now()); reason != "" && !row.Ended {
		if err := a.endOverdue(ctx, row.User, row.Device, reason); err != nil {
			return nil, err
		}
		return nil, errOverLimit
	}
	s := &cachedSession{
		signedIn: signedIn,
		used:     used,
		identity: web.Identity{UserID: row.User, DeviceID: row.Device, SessionID: row.ID, Admin: u.Admin, Guest: u.Guest, Suspended: u.Suspended},
		expires:  row.Expires,
		locked:   u.Locked,
	}
	if u.RatePerSecond != nil && *u.RatePerSecond == 0 {
		s.identity.Unlimited = true
	} else if u.RatePerSecond != nil && u.RateBurst != nil {
		s.identity.Sending = web.Bucket{PerSecond: float64(*u.RatePerSecond), Burst: int(*u.RateBurst)}
	}
	if !s.locked && !u.Suspended { // what is denied is read anew each time: another process may have lifted it
		a.cache.put(h, s, pos)
	}
	return s, nil
}

// confirm is called at the first use of a session that came from a refresh: the tokens it replaces end now.
func (a *Accounts) confirm(ctx context.Context, s Session) error {
	return a.Store.Write(ctx, func(tx *store.Tx) error {
		if _, found, err := tx.LockUser(s.User); err != nil || !found {
			return orUnknownToken(err)
		}
		now, found, err := tx.Session(s.ID)
		if err != nil || !found {
			return orUnknownToken(err) // a sibling was used first
		}
		if now.Replaces == 0 {
			return nil
		}
		if err := tx.ConfirmSession(now); err != nil {
			return err
		}
		return announceSessions(tx, s.User, s.Device)
	})
}

func orUnknownToken(err error) error {
	if err != nil {
		return err
	}
	return errUnknownToken
}
