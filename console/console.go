// Package console is what officers work with: pages and an HTTP API by which compliance officers search the archive, and
// auditors read the audit log. Whatever they look at is on record before they see it.
package console

import (
	"context"
	"embed"
	"io/fs"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/page"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

//go:embed pages
var pageFiles embed.FS

// Deps is what the console works with.
type Deps struct {
	Store    *store.Store
	Accounts *account.Accounts
	Audit    *audit.Log
	Logger   *slog.Logger
	Kit      *page.Kit
	Secret   []byte // signs the cookie that keeps an officer's reason
	Clock    func() time.Time

	// Browser tells who uses a page and in which session. Where somebody has to sign in or to prove a second factor first it
	// answers the request by itself, and ok is false; whoever cannot do that is an error.
	Browser func(w http.ResponseWriter, r *http.Request, maxAge time.Duration, factor bool) (user id.UserID, session string, ok bool, err error)
	// Find asks the search engine; nil: there is no archive, or no engine.
	Find FindFunc
	// File opens the file of an archived event.
	File FileFunc
	// Words parses a search term. Errors are for people.
	Words func(term string) (*Words, error)
	// RoomName is what a room is called now, "" for one that is gone.
	RoomName func(ctx context.Context, roomID id.RoomID) string

	SecondFactor bool          // officers and auditors need one
	SignInAge    time.Duration // how long ago their sign-in may be; 0: any
}

// Console holds the handlers.
type Console struct {
	Deps
	pages *page.Set
}

// New makes the console.
func New(d Deps) (*Console, error) {
	if d.Clock == nil {
		d.Clock = time.Now
	}
	files, err := fs.Sub(pageFiles, "pages")
	if err != nil {
		return nil, err
	}
	c := &Console{Deps: d}
	c.pages, err = d.Kit.Set(files)
	return c, err
}

// Paths of the pages and of the API.
const (
	pathSearch = "/console/search"
	pathExport = pathSearch + "/export"
	pathAudit  = "/console/audit"
	pathAPI    = "/_moothall/compliance/v1"
)

// Routes is the table of all routes of the package.
func (c *Console) Routes() []web.Route {
	return []web.Route{
		c.page("GET "+pathSearch, account.RoleCompliance, c.showSearch),
		c.form("POST "+pathSearch+"/reason", account.RoleCompliance, c.setReason),
		c.page("GET "+pathSearch+"/event", account.RoleCompliance, c.showEvent),
		c.page("GET "+pathSearch+"/file", account.RoleCompliance, c.pageFile),
		c.form("POST "+pathExport, account.RoleCompliance, c.exportPage),
		c.page("GET "+pathExport, account.RoleCompliance, c.showExport),
		c.page("GET "+pathExport+"/file", account.RoleCompliance, c.exportFile),
		c.form("POST "+pathExport+"/cancel", account.RoleCompliance, c.cancelPage),
		// Who had to sign in again on the way to a form comes back here by GET.
		c.page("GET "+pathSearch+"/reason", account.RoleCompliance, goTo(pathSearch)),
		c.page("GET "+pathExport+"/cancel", account.RoleCompliance, goTo(pathExport)),
		c.page("GET "+pathAudit+"/export", account.RoleAuditor, goTo(pathAudit)),
		c.page("GET "+pathAudit, account.RoleAuditor, c.showAudit),
		c.form("POST "+pathAudit+"/export", account.RoleAuditor, c.exportAudit),
		{Pattern: "POST " + pathAPI + "/search", Auth: web.NoGuest, Handler: c.api(account.RoleCompliance, c.apiSearch)},
		{Pattern: "POST " + pathAPI + "/export", Auth: web.NoGuest, Handler: c.api(account.RoleCompliance, c.apiExport)},
		{Pattern: "POST " + pathAPI + "/exports", Auth: web.NoGuest, Handler: c.api(account.RoleCompliance, c.apiAskExport)},
		{Pattern: "GET " + pathAPI + "/exports", Auth: web.NoGuest, Handler: c.api(account.RoleCompliance, c.apiExports)},
		{Pattern: "GET " + pathAPI + "/exports/{exportId}", Auth: web.NoGuest, Handler: c.api(account.RoleCompliance, c.apiExportState)},
		{Pattern: "DELETE " + pathAPI + "/exports/{exportId}", Auth: web.NoGuest, Handler: c.api(account.RoleCompliance, c.apiCancelExport)},
		{Pattern: "GET " + pathAPI + "/exports/{exportId}/file", Auth: web.NoGuest, Handler: c.api(account.RoleCompliance, c.apiExportFile)},
		{Pattern: "GET " + pathAPI + "/events/{eventId}", Auth: web.NoGuest, Handler: c.api(account.RoleCompliance, c.apiEvent)},
		{Pattern: "GET " + pathAPI + "/events/{eventId}/file", Auth: web.NoGuest, Handler: c.api(account.RoleCompliance, c.apiFile)},
		{Pattern: "GET " + pathAPI + "/audit", Auth: web.NoGuest, Handler: c.api(account.RoleAuditor, c.apiAudit)},
	}
}

// officer is who looks, and why.
type officer struct {
	user    id.UserID
	session string
	device  id.DeviceID
	reason  string
}

type pageFunc func(w http.ResponseWriter, r *http.Request, o *officer) error

// page makes the row of a page for people with a role.
func (c *Console) page(pattern string, role account.Role, h pageFunc) web.Route {
	return web.Route{Pattern: pattern, Auth: web.Public, Rate: web.RateRead, Handler: c.pages.Handler(func(w http.ResponseWriter, r *http.Request) error {
		user, session, ok, err := c.Browser(w, r, c.SignInAge, false)
		if err != nil || !ok {
			return err
		}
		o := &officer{user: user, session: session}
		if err := c.requireRole(r, o, role); err != nil {
			return err
		}
		if c.SecondFactor {
			_, _, ok, err := c.Browser(w, r, c.SignInAge, true)
			if e := mxerr.As(err); e != nil && e.Status == http.StatusForbidden {
				return c.refuse(r, o, role, "second factor", e)
			}
			if err != nil || !ok {
				return err
			}
		}
		o.reason = c.reason(r, o)
		return h(w, r, o)
	})}
}

// form is page for a posted form.
func (c *Console) form(pattern string, role account.Role, h pageFunc) web.Route {
	return c.page(pattern, role, func(w http.ResponseWriter, r *http.Request, o *officer) error {
		if err := c.Kit.Form(w, r); err != nil {
			return err
		}
		return h(w, r, o)
	})
}

// goTo sends the browser to another page.
func goTo(path string) pageFunc {
	return func(w http.ResponseWriter, r *http.Request, _ *officer) error {
		w.Header().Set("Cache-Control", "no-store")
		http.Redirect(w, r, path, http.StatusSeeOther)
		return nil
	}
}

var errRole = mxerr.Forbidden("your account does not have the role that this asks for; the attempt is noted in the audit log")

// requireRole refuses people without a role, and notes that.
func (c *Console) requireRole(r *http.Request, o *officer, role account.Role) error {
	has, err := c.Accounts.HasRole(r.Context(), o.user, role)
	if err != nil || has {
		return err
	}
	return c.refuse(r, o, role, "role", errRole)
}

// refuse notes what somebody lacks, and gives the refusal.
func (c *Console) refuse(r *http.Request, o *officer, role account.Role, lacks string, refusal *mxerr.Error) error {
	err := c.Audit.Refusal(r.Context(), audit.Entry{
		Source: audit.Source{Actor: o.user, Session: o.session, Device: o.device}, Action: "console.refused", Target: r.URL.Path, Reason: refusal.Code,
		Details: map[string]any{"role": string(role), "lacks": lacks},
	})
	if err != nil {
		return err
	}
	return refusal
}

// api makes the handler of an endpoint for people with a role.
func (c *Console) api(role account.Role, h pageFunc) web.Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		who := web.Requester(r)
		o := &officer{user: who.UserID, device: who.DeviceID, session: audit.SessionName(who.SessionID)}
		if err := c.requireRole(r, o, role); err != nil {
			return err
		}
		if c.SecondFactor {
			sessions, err := c.Accounts.Sessions(r.Context(), who.UserID)
			if err != nil {
				return err
			}
			proved := slices.ContainsFunc(sessions, func(s account.SessionInfo) bool {
				return s.Device == who.DeviceID && slices.ContainsFunc(s.AMR, func(m string) bool { return slices.Contains(secondFactors, m) })
			})
			if !proved {
				return c.refuse(r, o, role, "second factor", errFactor)
			}
		}
		if o.reason = r.Header.Get("X-Moothall-Reason"); role == account.RoleCompliance {
			if err := checkReason(o.reason); err != nil {
				return err
			}
		}
		return h(w, r, o)
	}
}

var errFactor = mxerr.Forbidden("this asks for a session that was signed in with a second factor; the attempt is noted in the audit log")

// secondFactors are the methods that count as one; see the documentation of sign-in.
var secondFactors = []string{"mfa", "otp", "hwk", "sms", "mail", "rec"}

// record notes what an officer looks at. If it cannot be noted it is not shown.
func (c *Console) record(ctx context.Context, o *officer, action, target string, details map[string]any) error {
	return c.Audit.Record(ctx, audit.Entry{
		Source: audit.Source{Actor: o.user, Kind: audit.KindOfficer, Session: o.session, Device: o.device}, Action: action, Target: target,
		Reason: o.reason, Details: details,
	})
}
