package ldapsync

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-ldap/ldap/v3"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/groups"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/people"
	"github.com/moothall/moothall/homeserver/store"
)

// Status is how a directory is followed.
type Status struct {
	Directory string   `json:"directory"`
	Type      string   `json:"type"`
	Mode      string   `json:"mode"`
	Servers   []string `json:"servers"`
	Enabled   bool     `json:"sync_enabled"`
	SignIn    bool     `json:"sign_in"`
	Following bool     `json:"following"`         // changes are pushed at once
	FullAt    int64    `json:"full_at,omitzero"`  // ms: the last complete comparison
	SeenAt    int64    `json:"seen_at,omitzero"`  // ms: the last look that succeeded
	Error     string   `json:"error,omitzero"`    // what went wrong since
	Pending   *Pending `json:"waiting,omitzero"`  // a run that waits for a confirmation
	Accounts  int64    `json:"accounts"`          // that can be used
	Disabled  int64    `json:"disabled_accounts"` // that are barred
	Users     int64    `json:"users"`             // entries
	Groups    int64    `json:"groups"`
	Units     int64    `json:"units"`
	Runs      []Report `json:"runs"` // the newest first
}

const statusRuns = 10

// Statuses are those of all directories of the configuration.
func (s *Sync) Statuses(ctx context.Context) ([]Status, error) {
	out := make([]Status, 0, len(s.dirs))
	for _, d := range s.dirs {
		st, err := s.Status(ctx, d.cfg.ID)
		if err != nil {
			return nil, err
		}
		out = append(out, *st)
	}
	return out, nil
}

// Status tells how a directory is followed; M_NOT_FOUND for one that is not in the configuration.
func (s *Sync) Status(ctx context.Context, directory string) (*Status, error) {
	d, err := s.find(directory)
	if err != nil {
		return nil, err
	}
	out := &Status{Directory: directory, Type: d.cfg.Type, Mode: d.cfg.Sync.Mode, Servers: d.cfg.Servers, Enabled: d.cfg.Sync.Enabled, SignIn: d.cfg.Users.SignIn}
	var raw []byte
	err = s.Store.Read(ctx, func(tx *store.Tx) error {
		var err error
		if raw, _, err = tx.LDAPState(directory); err != nil {
			return err
		}
		kinds, active, barred, err := tx.DirectoryCounts(directory, d.source)
		out.Accounts, out.Disabled = active, barred
		out.Users, out.Groups, out.Units = kinds[store.DirectoryUser], kinds[store.DirectoryGroup], kinds[store.DirectoryUnit]
		return err
	})
	if err != nil {
		return nil, err
	}
	if raw != nil {
		var now saved
		if err := json.Unmarshal(raw, &now); err != nil {
			return nil, fmt.Errorf("read the state of directory %s: %w", directory, err)
		}
		out.Following, out.FullAt, out.SeenAt, out.Error, out.Pending = now.Following, now.FullAt, now.SeenAt, now.Error, now.Pending
	}
	out.Runs, err = s.Runs(ctx, directory, statusRuns)
	return out, err
}

// Runs reads the newest runs of a directory that did something or failed, the newest first.
func (s *Sync) Runs(ctx context.Context, directory string, limit int) ([]Report, error) {
	if _, err := s.find(directory); err != nil {
		return nil, err
	}
	var rows []store.DirectoryRun
	err := s.Store.Read(ctx, func(tx *store.Tx) error {
		var err error
		rows, err = tx.DirectoryRuns(directory, limit)
		return err
	})
	if err != nil {
		return nil, err
	}
	out := make([]Report, len(rows))
	for i, row := range rows {
		if err := json.Unmarshal(row.Report, &out[i]); err != nil {
			return nil, fmt.Errorf("read run %s: %w", row.ID, err)
		}
	}
	return out, nil
}

// HistoryEntry is one change of an account in the name of a source.
type HistoryEntry struct {
	Time    int64          `json:"time"` // ms
	Action  string         `json:"action"`
	Actor   string         `json:"actor,omitzero"`
	Kind    string         `json:"kind"`
	Reason  string         `json:"reason,omitzero"`
	Before  any            `json:"before,omitzero"`
	After   any            `json:"after,omitzero"`
	Details map[string]any `json:"details,omitzero"`
}

// History lists what was done to an account in the name of sources, the newest first.
func (s *Sync) History(ctx context.Context, user id.UserID) ([]HistoryEntry, error) {
	if s.Audit == nil {
		return nil, mxerr.NotFound("there is no audit log")
	}
	page, err := s.Audit.Query(ctx, audit.Filter{Target: string(user), Actions: []string{people.ActionPrefix}, Limit: 200})
	if err != nil {
		return nil, err
	}
	out := make([]HistoryEntry, len(page.Entries))
	for i, e := range page.Entries {
		out[i] = HistoryEntry{Time: e.Time, Action: e.Action, Actor: string(e.Actor), Kind: e.Kind, Reason: e.Reason, Before: e.Before, After: e.After, Details: e.Details}
	}
	return out, nil
}

// PlannedChange is one act about a person that a run would do.
type PlannedChange struct {
	What string    `json:"what"` // create, update, enable, disable, gone
	User id.UserID `json:"user_id"`
	DN   string    `json:"dn,omitzero"`
	Why  string    `json:"why,omitzero"`
}

// PlanReport is what a complete comparison would do.
type PlanReport struct {
	Directory string          `json:"directory"`
	Read      int             `json:"entries_read"`
	Changes   []PlannedChange `json:"changes"`
	Groups    *groups.Plan    `json:"groups,omitzero"`
	Faults    []EntryError    `json:"errors"`
	Warnings  []string        `json:"warnings,omitzero"`
	// Stopped says that the run would wait for a confirmation.
	Stopped *Pending `json:"stopped,omitzero"`
}

// Plan compares everything with the directory and tells what a run would do. It has no effect.
func (s *Sync) Plan(ctx context.Context, directory string) (*PlanReport, error) {
	d, err := s.find(directory)
	if err != nil {
		return nil, err
	}
	st, err := d.load(ctx)
	if err != nil {
		return nil, err
	}
	r := &Report{Took: map[string]int{}}
	p, err := d.compare(ctx, st, r)
	if err != nil {
		return nil, mxerr.Unavailable(err.Error())
	}
	out := &PlanReport{Directory: directory, Read: r.Read, Faults: p.faults, Warnings: r.Warnings, Groups: p.groups, Stopped: d.judge(p, 0), Changes: []PlannedChange{}}
	for i := range p.ops {
		o := &p.ops[i]
		out.Changes = append(out.Changes, PlannedChange{o.what, o.user, o.dn, o.why})
	}
	if out.Faults == nil {
		out.Faults = []EntryError{}
	}
	return out, nil
}

// String is the plan for people.
func (p *PlanReport) String() string {
	var b strings.Builder
	counts := map[string]int{}
	for _, c := range p.Changes {
		counts[c.What]++
		fmt.Fprintf(&b, "%-8s %s  %s", c.What, c.User, c.DN)
		if c.Why != "" {
			fmt.Fprintf(&b, "  (%s)", c.Why)
		}
		b.WriteByte('\n')
	}
	if p.Groups != nil {
		b.WriteString(p.Groups.String())
	}
	for _, e := range p.Faults {
		fmt.Fprintf(&b, "error    %s: %s\n", e.DN, e.Error)
	}
	for _, w := range p.Warnings {
		fmt.Fprintf(&b, "warning  %s\n", w)
	}
	fmt.Fprintf(&b, "%d entries read: %d to create, %d to update, %d to enable, %d to disable, %d gone; %d errors\n",
		p.Read, counts[opCreate], counts[opUpdate], counts[opEnable], counts[opDisable], counts[opGone], len(p.Faults))
	if p.Stopped != nil {
		fmt.Fprintf(&b, "a run would stop and wait for a confirmation: %s\n", p.Stopped.Why)
	}
	return b.String()
}

// Step is one thing that was tried.
type Step struct {
	What   string `json:"what"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
}

// Sample is a person as they would be.
type Sample struct {
	DN        string            `json:"dn"`
	ID        string            `json:"id"`
	Localpart string            `json:"localpart"`
	UserID    id.UserID         `json:"user_id"`
	Disabled  string            `json:"disabled,omitzero"`
	Fields    map[string]string `json:"fields"`
	Faults    []string          `json:"errors,omitzero"`
}

// TestReport tells whether a directory can be used as it is configured.
type TestReport struct {
	Directory string  `json:"directory"`
	OK        bool    `json:"ok"`
	Steps     []Step  `json:"steps"`
	Sample    *Sample `json:"sample,omitzero"`
}

func (t *TestReport) step(what string, err error, detail string) bool {
	if err != nil {
		detail = err.Error()
		t.OK = false
	}
	t.Steps = append(t.Steps, Step{what, err == nil, detail})
	return err == nil
}

// Test checks the connection to each server, the searches and the mapping, and shows a person as they would be: the one
// of a sign-in name, or the first.
func (s *Sync) Test(ctx context.Context, directory, name string) (*TestReport, error) {
	d, err := s.find(directory)
	if err != nil {
		return nil, err
	}
	t := &TestReport{Directory: directory, OK: true, Steps: []Step{}}
	for _, server := range d.cfg.Servers {
		c := d.cfg
		c.Servers = []string{server}
		start := time.Now()
		conn, _, done, err := newDialer(c).service(ctx)
		if !t.step("connect and bind: "+server, err, fmt.Sprintf("%d ms", time.Since(start).Milliseconds())) {
			continue
		}
		info, err := d.info(conn)
		if err == nil && info.skew.Abs() > maxSkew {
			err = fmt.Errorf("its clock differs from ours by %s", info.skew.Round(10*time.Second))
		}
		t.step("ask "+server+" for itself", err, "")
		done()
	}
	conn, _, done, err := d.dialer.service(ctx)
	if err != nil {
		return t, nil // said above
	}
	defer done()
	var user *ldap.Entry
	for _, spec := range d.searches() {
		n, unnamed := 0, 0
		req := spec.request()
		_, err := search(ctx, conn, req, d.cfg.Sync.PageSize, func(e *ldap.Entry) error {
			n++
			if d.mapper.id(e) == "" {
				unnamed++
			}
			if spec.kind == store.DirectoryUser && user == nil {
				user = e
			}
			return nil
		})
		detail := fmt.Sprintf("%d entries", n)
		switch {
		case err == nil && n == 0 && spec.kind == store.DirectoryUser:
			err = fmt.Errorf("no entry below %s matches %s, or the bind account may not read them", spec.base, spec.filter)
		case err == nil && unnamed > 0:
			err = fmt.Errorf("%d of %d entries do not show the attribute %s", unnamed, n, d.cfg.Users.ID)
		}
		t.step("search "+spec.name, err, detail)
	}
	if name != "" {
		user, err = d.lookup(conn, loginFilter(d.cfg.Users.Login, name))
		if !t.step("find "+name, err, "") {
			return t, nil
		}
	}
	if user != nil {
		t.Sample = d.sample(user)
	}
	return t, nil
}

func (d *directory) sample(raw *ldap.Entry) *Sample {
	e := d.mapper.user(raw)
	p := &e.person
	out := &Sample{DN: e.dn, ID: e.id, Localpart: p.Localpart, UserID: d.Accounts.UserID(p.Localpart), Disabled: e.why, Fields: map[string]string{}, Faults: e.warnings}
	if e.localpartErr != nil {
		out.UserID = ""
		out.Faults = append(out.Faults, e.localpartErr.Error())
	}
	for name, value := range map[string]string{
		"display_name": p.DisplayName, "email": p.Email, "phone": p.Phone, "title": p.Title, "department": p.Department,
		"manager": e.manager, "employee_number": p.EmployeeNumber, "time_zone": p.TimeZone, "unit": e.unit,
	} {
		if value != "" {
			out.Fields[name] = value
		}
	}
	if len(p.Photo) > 0 {
		out.Fields["photo"] = fmt.Sprintf("%d bytes", len(p.Photo))
	}
	return out
}
