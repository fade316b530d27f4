// Package account is the only writer of users, devices, sessions, tokens, end-to-end encryption keys and account data.
package account

import (
	"context"
	"log/slog"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/store"
)

// Deps is what accounts work with.
type Deps struct {
	Store      *store.Store
	ServerName string
	Logger     *slog.Logger
	Config     Config
	Clock      func() time.Time // nil: time.Now
	// Audit takes what belongs to no transaction of an act: refusals. nil: one of its own, since the log is always written.
	Audit *audit.Log

	// Directory checks the passwords of people whom a company's directory knows; u is the account that the name is that
	// of, nil where there is none. handled false means that it has no say: the password that this server keeps counts.
	// nil: there is no directory.
	Directory func(ctx context.Context, name string, u *User, password string) (user id.UserID, handled bool, err error)
	// PasswordElsewhere tells whether a user's password is kept by a directory, so that it cannot be changed here; nil: none is.
	PasswordElsewhere func(ctx context.Context, user id.UserID) (bool, error)
	// AppPassword tells whether a password is one that a user made for a single app; nil: there are none.
	AppPassword func(ctx context.Context, user id.UserID, password string) (bool, error)
	// Gate says whether somebody who proved to be a user may sign in this way, by what was proved (amr, RFC 8176), from
	// this address: its error is what the client is told, as for an account that owes a second factor. nil: anybody may.
	Gate func(ctx context.Context, user id.UserID, way string, amr []string, ip string) error

	// OnDeviceDeleted are called in the transaction that deletes a device, for each one: what belongs to a device goes
	// with it. They may run more than once, as the transaction may.
	OnDeviceDeleted []func(tx *store.Tx, user id.UserID, device id.DeviceID) error
	// OnDeviceReused are called in the transaction that signs somebody in on a device that was signed in before: what says how
	// that was (a client's grant, a session at an identity provider) goes with them.
	OnDeviceReused []func(tx *store.Tx, user id.UserID, device id.DeviceID) error
	// Exclusive tells whether an application service claims a user id for itself; nil: none does.
	Exclusive func(user id.UserID) bool
	// MailQueued is told that mail waits in the outbox; nil: nobody sends any.
	MailQueued func()
	// LeaveAllRooms makes a deactivated user leave; nil: there are no rooms.
	LeaveAllRooms func(ctx context.Context, user id.UserID) error
}

// Accounts reads and writes accounts.
type Accounts struct {
	Deps

	hashes *hasher
	cache  *sessionCache
	seen   *seenDevices
	roles  *logCache[id.UserID, []Role]
	tries  *oneAtATime
}

// New makes Accounts.
func New(d Deps) *Accounts {
	if d.Clock == nil {
		d.Clock = time.Now
	}
	if d.Logger == nil {
		d.Logger = slog.Default()
	}
	d.Config = d.Config.withDefaults()
	if d.Audit == nil {
		d.Audit = audit.New(audit.Deps{Store: d.Store, Logger: d.Logger, ServerName: d.ServerName, Clock: d.Clock})
	}
	return &Accounts{
		Deps:   d,
		hashes: newHasher(d.Config.Passwords),
		cache:  newSessionCache(),
		seen:   &seenDevices{waiting: map[deviceKey]store.Device{}},
		roles:  newLogCache[id.UserID, []Role](maxCachedRoles),
		tries:  &oneAtATime{under: map[string]*turn{}},
	}
}

// now is the time in milliseconds since 1970, as it is stored.
func (a *Accounts) now() int64 { return a.Clock().UnixMilli() }

// UserID is the Matrix id of a localpart on this server.
func (a *Accounts) UserID(localpart string) id.UserID {
	return id.UserID("@" + localpart + ":" + a.ServerName)
}
