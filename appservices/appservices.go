// Package appservices connects application services: bridges and bots that act as many users and hear of what concerns
// them. Spec: application service API.
package appservices

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// Deps is what Services works with.
type Deps struct {
	Store      *store.Store
	Accounts   *account.Accounts
	Keys       *account.Keys
	Rooms      *room.Rooms
	Logger     *slog.Logger
	ServerName string
	Paths      []string     // of registration files, and of folders with such files that end in .yaml
	Client     *http.Client // for requests to the services, which may be on private addresses
	Now        func() time.Time
}

// Service is a registered application service.
type Service struct {
	Registration
	path                  string
	url                   string // "" where the service wants no traffic
	users, aliases, rooms patterns
	sender                id.UserID
	tokenHash             [sha256.Size]byte
}

// Services holds the registered application services.
type Services struct {
	Deps
	set    atomic.Pointer[set]
	loaded atomic.Pointer[[]stamp] // of the files that were loaded
	line   delivery

	retryAfter func(failures int64) time.Duration // how long the next attempt waits
}

// set is one state of the registrations; it does not change.
type set struct {
	all  []*Service
	byID map[string]*Service
}

// New reads the registrations. An error names the file.
func New(d Deps) (*Services, error) {
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Logger == nil {
		d.Logger = slog.Default()
	}
	if d.Client == nil {
		d.Client = &http.Client{Timeout: time.Minute}
	}
	s := &Services{Deps: d, retryAfter: retryAfter}
	s.line.changed = make(chan struct{}, 1)
	s.line.beside = make(chan besideLog, besideMost)
	return s, s.load()
}

// load reads all files and puts them in the place of what was loaded before, if all are in order.
func (s *Services) load() error {
	next := &set{byID: map[string]*Service{}}
	stamps := stampsOf(s.Paths)
	for _, f := range stamps {
		path := f.path
		x, err := readRegistration(path)
		if err != nil {
			return err
		}
		x.sender = s.Accounts.UserID(x.SenderLocalpart)
		x.tokenHash = sha256.Sum256([]byte(x.ASToken))
		if _, err := s.Accounts.Localpart(x.SenderLocalpart); err != nil {
			return fmt.Errorf("%s: sender_localpart is %q: %w", path, x.SenderLocalpart, err)
		}
		next.all = append(next.all, x)
		next.byID[x.ID] = x
	}
	if err := checkAll(next.all); err != nil {
		return err
	}
	s.set.Store(next)
	s.loaded.Store(&stamps)
	return nil
}

// stamp tells whether a file has changed.
type stamp struct {
	path    string
	changed time.Time
	size    int64
}

// stampsOf lists the registration files that the paths name: files, and what ends in .yaml in folders.
func stampsOf(paths []string) []stamp {
	var out []stamp
	add := func(path string) {
		f := stamp{path: path}
		if info, err := os.Stat(path); err == nil {
			f.changed, f.size = info.ModTime(), info.Size()
		}
		out = append(out, f)
	}
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil || !info.IsDir() {
			add(path)
			continue
		}
		files, _ := filepath.Glob(filepath.Join(path, "*.yaml")) // the pattern is a good one
		for _, f := range files {
			add(f)
		}
	}
	return out
}

// reload reads the files again where one has changed, or where force is set, and tells whether it did. A mistake keeps
// what was loaded.
func (s *Services) reload(force bool) bool {
	stamps := stampsOf(s.Paths)
	if slices.Equal(stamps, *s.loaded.Load()) && !force {
		return false
	}
	if err := s.load(); err != nil {
		s.Logger.Warn("application services stay as they were: a registration is wrong", "error", err)
		s.loaded.Store(&stamps) // one line for each change
		return false
	}
	s.Logger.Info("application services read again", "count", len(s.set.Load().all))
	return true
}

// current is the state of the registrations.
func (s *Services) current() *set { return s.set.Load() }

// byToken finds the service of an access token.
func (s *Services) byToken(token string) *Service {
	h := sha256.Sum256([]byte(token))
	for _, x := range s.current().all {
		if subtle.ConstantTimeCompare(h[:], x.tokenHash[:]) == 1 {
			return x
		}
	}
	return nil
}

// makeSenders makes the accounts that the services act as by default.
func (s *Services) makeSenders(ctx context.Context) error {
	for _, x := range s.current().all {
		_, err := s.Accounts.User(ctx, x.sender)
		if mxerr.Is(err, "M_NOT_FOUND") {
			_, err = s.Accounts.CreateUser(ctx, account.NewUser{Localpart: x.SenderLocalpart, AppService: x.ID, Unreserved: true})
		}
		if err != nil && !mxerr.Is(err, "M_USER_IN_USE") {
			return fmt.Errorf("%s: the account %s: %w", x.path, x.sender, err)
		}
	}
	return nil
}

// ExclusiveUser tells whether a service claims a user id for itself.
func (s *Services) ExclusiveUser(user id.UserID) bool {
	for _, x := range s.current().all {
		if x.sender == user || x.users.exclusive(string(user)) {
			return true
		}
	}
	return false
}

// AliasAllowed tells whether somebody may make or delete an alias: by is the id of an application service, or "". Errors:
// M_EXCLUSIVE.
func (s *Services) AliasAllowed(alias, by string) error {
	for _, x := range s.current().all {
		if x.ID != by && x.aliases.exclusive(alias) {
			return mxerr.New(http.StatusBadRequest, "M_EXCLUSIVE", "this room alias is reserved by an application service")
		}
	}
	if x := s.current().byID[by]; x != nil && !x.aliases.match(alias) {
		return mxerr.New(http.StatusBadRequest, "M_EXCLUSIVE", "this room alias is not in the application service's namespace")
	}
	return nil
}

// Any tells whether there are services.
func (s *Services) Any() bool { return len(s.current().all) > 0 }

// Of names the service whose token a request carries, "" for none.
func (s *Services) Of(r *http.Request) string {
	if !s.Any() {
		return ""
	}
	if token := web.AccessToken(r); token != "" {
		if x := s.byToken(token); x != nil {
			return x.ID
		}
	}
	return ""
}

// Covers tells whether a service may act as a user.
func (x *Service) Covers(user id.UserID) bool {
	return user == x.sender || x.users.match(string(user))
}

// UserAllowed tells whether a service may register a user id. Errors: M_EXCLUSIVE, M_FORBIDDEN for a service that is not
// registered (any more).
func (s *Services) UserAllowed(service string, user id.UserID) error {
	x := s.current().byID[service]
	if x == nil {
		return mxerr.Forbidden("this application service is not registered")
	}
	if !x.Covers(user) {
		return mxerr.New(http.StatusBadRequest, "M_EXCLUSIVE", "this user id is not in the application service's namespace")
	}
	for _, o := range s.current().all {
		if o != x && (o.sender == user || o.users.exclusive(string(user))) {
			return mxerr.New(http.StatusBadRequest, "M_EXCLUSIVE", "this user id is reserved by another application service")
		}
	}
	return nil
}

// Authenticator wraps that of accounts: a request with a service's token is made by its sender, or by the user that it names.
// Spec: application service API, "Identity assertion".
func (s *Services) Authenticator(next web.Authenticator) web.Authenticator {
	return func(r *http.Request, token string) (*web.Identity, error) {
		x := s.byToken(token)
		if x == nil {
			return next(r, token)
		}
		return s.assert(r, x)
	}
}

// assert finds out as whom a service makes a request.
func (s *Services) assert(r *http.Request, x *Service) (*web.Identity, error) {
	user, given := web.QueryLookup(r, "user_id")
	who := &web.Identity{UserID: x.sender, AppService: x.ID, Unlimited: true}
	if given && user != "" {
		who.UserID = id.UserID(user)
	}
	if who.UserID != x.sender {
		if !x.Covers(who.UserID) {
			return nil, mxerr.Forbidden("the application service may not act as this user: it is not in its namespace")
		}
		who.Unlimited = x.RateLimited != nil && !*x.RateLimited
		u, err := s.Accounts.User(r.Context(), who.UserID)
		switch {
		case mxerr.Is(err, "M_NOT_FOUND"):
			return nil, mxerr.Forbidden("the application service has not registered this user")
		case err != nil:
			return nil, err
		case u.Deactivated:
			return nil, mxerr.New(http.StatusForbidden, "M_USER_DEACTIVATED", "this account was deactivated")
		case u.Locked:
			return nil, mxerr.New(http.StatusUnauthorized, "M_USER_LOCKED", "this account is locked").With("soft_logout", true)
		}
		who.Suspended = u.Suspended
	}
	device := web.QueryString(r, "device_id")
	if device == "" {
		device = web.QueryString(r, "org.matrix.msc3202.device_id")
	}
	if device == "" {
		return who, nil
	}
	_, err := s.Accounts.Device(r.Context(), who.UserID, id.DeviceID(device))
	if mxerr.Is(err, "M_NOT_FOUND") {
		return nil, mxerr.New(http.StatusBadRequest, "M_UNKNOWN_DEVICE", "the user has no such device")
	}
	who.DeviceID = id.DeviceID(device)
	return who, err
}
