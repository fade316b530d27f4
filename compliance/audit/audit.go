// Package audit keeps the record of who did what on this server, from where, when and with what result. Entries are
// written in the transaction of the act, so that there is no act without its entry; they are then chained by hash in
// batches, each signed with the server's key, so that a change is found. Writing cannot be switched off.
package audit

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// Result says how an act ended.
type Result string

// The results.
const (
	OK      Result = "ok"
	Refused Result = "refused" // it was not allowed
	Failed  Result = "failed"  // it was allowed and did not succeed
)

// In what capacity somebody acts (Source.Kind).
const (
	KindAnonymous  = "anonymous" // a request without a session: whoever tries to sign in
	KindUser       = "user"
	KindAdmin      = "admin"
	KindOfficer    = "officer" // of compliance
	KindSystem     = "system"  // the server by itself
	KindAppService = "appservice"
	KindDirectory  = "directory"
	KindSCIM       = "scim"
	KindCLI        = "cli"
)

// Source is who acts and from where.
type Source struct {
	Actor   id.UserID
	Kind    string
	Device  id.DeviceID
	Session string
	IP      string
	Agent   string
}

// Entry is one act. It never holds a secret: no password, token, code or key, not even a hash of one.
type Entry struct {
	Time   int64 // ms; 0: now
	Source       // what is empty is taken from the context
	// Action is what was done: dotted, from the general to the particular, stable ("user.locked").
	Action string
	// Target is whom or what it was done to: @user:server, !room:server, a device, a file.
	Target string
	Result Result // "": OK
	Reason string // for people, or an errcode
	// Before, After and Details become JSON.
	Before, After any
	Details       map[string]any
}

type sourceKey struct{}

// WithSource says who acts in what is done under a context: for work of the server's own and for pages with a session by
// cookie. Address and agent may be left out where the context is a request's.
func WithSource(ctx context.Context, s Source) context.Context {
	return context.WithValue(ctx, sourceKey{}, s)
}

// SourceOf tells who acts under a context: what WithSource said, completed by the request the context belongs to.
func SourceOf(ctx context.Context) Source {
	s, given := ctx.Value(sourceKey{}).(Source)
	o, request := web.OriginOf(ctx)
	if !request {
		if s.Kind == "" {
			s.Kind = KindSystem
		}
		return s
	}
	if s.IP == "" && o.IP.IsValid() {
		s.IP = o.IP.String()
	}
	if s.Agent == "" {
		s.Agent = o.Agent
	}
	if who := o.Identity; who != nil && (!given || s.Actor == "") {
		s.Actor, s.Device = who.UserID, who.DeviceID
		if who.SessionID != 0 {
			s.Session = SessionName(who.SessionID)
		}
		if s.Kind == "" {
			switch {
			case who.AppService != "":
				s.Kind = KindAppService
			case who.Admin:
				s.Kind = KindAdmin
			}
		}
	}
	switch {
	case s.Kind != "":
	case s.Actor != "":
		s.Kind = KindUser
	default:
		s.Kind = KindAnonymous
	}
	return s
}

// SessionName is how the session of an access token is named in entries and lists.
func SessionName(sessionID int64) string { return strconv.FormatInt(sessionID, 36) }

// Append writes an entry in the transaction of the act it tells of: if it cannot be written the act is not done. The
// caller returns its error.
func Append(ctx context.Context, tx *store.Tx, e Entry) error {
	row, err := e.row(ctx)
	if err != nil {
		return err
	}
	return tx.InsertAudit(row)
}

// Deps is what a Log works with.
type Deps struct {
	Store      *store.Store
	Logger     *slog.Logger
	ServerName string
	Key        event.SigningKey // signs the chain; without one entries stay unchained
	Config     Config
	Clock      func() time.Time // nil: time.Now
}

// Config is how long the log is kept and where it is sent to.
type Config struct {
	// Keep is how long entries are kept; MinKeep at least, a year if it is 0.
	Keep time.Duration
	// Export also sends every entry, and the hash of every batch, to: "" nowhere, "log" the server's own log, or a syslog
	// collector as udp://host:port, tcp://host:port, tls://host:port or unix:///dev/log.
	Export string
}

// MinKeep is the shortest time that entries may be kept for: six months.
const MinKeep = 184 * 24 * time.Hour

const defaultKeep = 365 * 24 * time.Hour

// Log reads the audit log, writes what belongs to no transaction of an act, and takes care of the chain.
type Log struct {
	Deps
	refusals refusals
	exporter exporter
}

// New makes a Log.
func New(d Deps) *Log {
	if d.Clock == nil {
		d.Clock = time.Now
	}
	if d.Logger == nil {
		d.Logger = slog.Default()
	}
	if d.Config.Keep == 0 {
		d.Config.Keep = defaultKeep
	}
	d.Config.Keep = max(d.Config.Keep, MinKeep)
	return &Log{Deps: d, refusals: refusals{waiting: map[refusalKey]*refusal{}, byIP: map[string]int{}}}
}

// Record writes an entry in a transaction of its own: for refusals that are rare, for views and queries. What it tells of
// must not be done if it returns an error.
func (l *Log) Record(ctx context.Context, e Entry) error {
	row, err := e.row(ctx)
	if err != nil {
		return err
	}
	// The one who asked may hang up; what was done stays done.
	return l.Store.Write(context.WithoutCancel(ctx), func(tx *store.Tx) error { return tx.InsertAudit(row) })
}

// Reason is what an entry says of an error: the errcode of what people are told, "internal error" of all else.
func Reason(err error) string {
	if err == nil {
		return ""
	}
	if e := mxerr.As(err); e != nil {
		return e.Code
	}
	if errors.Is(err, context.Canceled) {
		return "interrupted"
	}
	return "internal error"
}

var errNoAction = errors.New("an audit entry needs an action")

func (e *Entry) check() error {
	if e.Action == "" || strings.ContainsAny(e.Action, " /") {
		return errNoAction
	}
	return nil
}
