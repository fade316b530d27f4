package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver"
)

type auditCmd struct {
	Tail   auditTailCmd   `cmd:"" help:"Show the newest entries."`
	Search auditSearchCmd `cmd:"" help:"Look for entries."`
	Verify auditVerifyCmd `cmd:"" help:"Check that nobody changed, removed or inserted entries."`
}

type auditTailCmd struct {
	Number int  `short:"n" default:"20" help:"How many entries."`
	Follow bool `short:"f" help:"Go on with entries as they come."`
	JSON   bool `name:"json" help:"One JSON object a line."`
}

// followOverlap is how far back a following tail looks again: entries appear when their transaction ends.
const followOverlap = 30 * time.Second

// Run is called by kong.
func (t auditTailCmd) Run(ctx context.Context, c *cli) error {
	cfg, log, err := c.load()
	if err != nil {
		return err
	}
	return homeserver.WithAudit(ctx, cfg, log, "tail", func(ctx context.Context, l *audit.Log) error {
		page, err := l.Query(ctx, audit.Filter{Limit: max(t.Number, 1)})
		if err != nil {
			return err
		}
		shown := map[string]int64{}
		for i := len(page.Entries) - 1; i >= 0; i-- {
			e := &page.Entries[i]
			shown[e.ID] = e.Time
			if err := printEntry(e, t.JSON); err != nil {
				return err
			}
		}
		for t.Follow {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(time.Second):
			}
			if err := t.more(ctx, l, shown); err != nil {
				return err
			}
		}
		return nil
	})
}

// more shows what came since.
func (t auditTailCmd) more(ctx context.Context, l *audit.Log, shown map[string]int64) error {
	since := time.Now().Add(-followOverlap)
	for known, at := range shown {
		if at < since.UnixMilli() {
			delete(shown, known)
		}
	}
	f := audit.Filter{From: since, OldestFirst: true, Limit: 1000}
	for {
		page, err := l.Query(ctx, f)
		if err != nil {
			return err
		}
		for i := range page.Entries {
			e := &page.Entries[i]
			if _, known := shown[e.ID]; known {
				continue
			}
			shown[e.ID] = e.Time
			if err := printEntry(e, t.JSON); err != nil {
				return err
			}
		}
		if f.Page = page.Next; f.Page == "" {
			return nil
		}
	}
}

type auditSearchCmd struct {
	Actor  string   `help:"Who did it: a user id."`
	Target string   `help:"Whom or what it was done to: a user id, a room id …"`
	Action []string `help:"What was done: an action such as user.locked, or a group such as signin."`
	Result string   `help:"ok, refused or failed." enum:",ok,refused,failed" default:""`
	IP     string   `name:"ip" help:"From which address."`
	From   string   `help:"From this time on: 2026-01-31, 2026-01-31T12:00:00Z, or 24h for the last 24 hours."`
	To     string   `help:"Before this time."`
	Limit  int      `default:"1000" help:"At most so many entries."`
	JSON   bool     `name:"json" help:"One JSON object a line."`
	Text   string   `arg:"" optional:"" help:"Text that an entry has in any place."`
}

// Run is called by kong.
func (s auditSearchCmd) Run(ctx context.Context, c *cli) error {
	f := audit.Filter{Actor: id.UserID(s.Actor), Target: s.Target, Actions: s.Action, Result: audit.Result(s.Result), IP: s.IP, Text: s.Text}
	var err1, err2 error
	f.From, err1 = parseTime(s.From)
	f.To, err2 = parseTime(s.To)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	cfg, log, err := c.load()
	if err != nil {
		return err
	}
	what := strings.TrimSpace(fmt.Sprintf("search actor=%s target=%s action=%s from=%s to=%s %s", s.Actor, s.Target, strings.Join(s.Action, ","), s.From, s.To, s.Text))
	return homeserver.WithAudit(ctx, cfg, log, what, func(ctx context.Context, l *audit.Log) error {
		left := max(s.Limit, 1)
		for {
			f.Limit = min(left, 1000)
			page, err := l.Query(ctx, f)
			if err != nil {
				return err
			}
			for i := range page.Entries {
				if err := printEntry(&page.Entries[i], s.JSON); err != nil {
					return err
				}
			}
			left -= len(page.Entries)
			if f.Page = page.Next; f.Page == "" || left <= 0 {
				return nil
			}
		}
	})
}

// parseTime reads a day, a time or how long ago.
func parseTime(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil {
		return time.Now().Add(-d), nil
	}
	for _, form := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(form, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is no time: write 2026-01-31, 2026-01-31T12:00:00Z or 24h", s)
}

type auditVerifyCmd struct {
	Head string `help:"A head that an earlier verification showed: the log must still have it." placeholder:"NUMBER:HASH"`
}

// Run is called by kong.
func (v auditVerifyCmd) Run(ctx context.Context, c *cli) error {
	cfg, log, err := c.load()
	if err != nil {
		return err
	}
	return homeserver.WithAudit(ctx, cfg, log, "verify", func(ctx context.Context, l *audit.Log) error {
		if err := l.Chain(ctx); err != nil {
			return err
		}
		r, err := l.VerifyHead(ctx, v.Head)
		if err != nil {
			return err
		}
		fmt.Printf("checked %d entries in %d batches; %d batches were removed after their time\n", r.Entries, r.Batches, r.Cut)
		if len(r.Problems) > 0 {
			for _, p := range r.Problems {
				fmt.Println(p)
			}
			return fmt.Errorf("the audit log is not what was written: %v", r.Problems[0])
		}
		fmt.Println("nothing was changed. Note this head elsewhere, for later verifications (--head):")
		fmt.Println(r.Head)
		return nil
	})
}

// printEntry shows an entry on one line.
func printEntry(e *audit.Stored, asJSON bool) error {
	if asJSON {
		b, err := e.MarshalJSON()
		if err != nil {
			return err
		}
		_, err = fmt.Println(string(b))
		return err
	}
	out := []string{time.UnixMilli(e.Time).Format("2006-01-02 15:04:05.000"), string(e.Result), e.Action}
	for _, f := range []struct{ name, value string }{
		{"actor", string(e.Actor)}, {"as", e.Kind}, {"target", e.Target}, {"reason", e.Reason}, {"device", string(e.Device)}, {"ip", e.IP},
	} {
		if f.value != "" && !(f.name == "target" && f.value == string(e.Actor)) {
			out = append(out, f.name+"="+f.value)
		}
	}
	for _, f := range []struct {
		name  string
		value any
	}{{"before", e.Before}, {"after", e.After}} {
		if raw, ok := f.value.(jsontext.Value); ok {
			out = append(out, f.name+"="+string(raw))
		}
	}
	if len(e.Details) > 0 {
		b, err := json.Marshal(e.Details, json.Deterministic(true))
		if err != nil {
			return err
		}
		out = append(out, string(b))
	}
	_, err := fmt.Fprintln(os.Stdout, strings.Join(out, " "))
	return err
}
