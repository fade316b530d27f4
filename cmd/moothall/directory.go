package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/ldapsync"
)

type directoryCmd struct {
	Status  directoryStatusCmd  `cmd:"" help:"Tell how the directories are followed, and what the last runs did."`
	Plan    directoryPlanCmd    `cmd:"" help:"Print what a run would do. It changes nothing."`
	Test    directoryTestCmd    `cmd:"" help:"Check connections, searches and the mapping, and show a person as they would be."`
	Sync    directorySyncCmd    `cmd:"" help:"Ask the running server for a complete comparison, and wait for it."`
	Confirm directoryConfirmCmd `cmd:"" help:"Let a run go on that was stopped because it would do too much."`
	Relink  directoryRelinkCmd  `cmd:"" help:"Say that an account is that of another entry, such as one that was made anew in the directory."`
	History directoryHistoryCmd `cmd:"" help:"List what was done to an account in the name of directories and other sources."`
}

// directory opens the database for a command; without a name there must be only one directory.
func (c *cli) directory(ctx context.Context, name string, fn func(ctx context.Context, s *ldapsync.Sync, directory string) error) error {
	cfg, log, err := c.load()
	if err != nil {
		return err
	}
	if name == "" {
		if len(cfg.Directories) > 1 {
			return errors.New("there are several directories: name one of them")
		}
		if len(cfg.Directories) == 1 {
			name = cfg.Directories[0].ID
		}
	}
	return homeserver.WithDirectory(ctx, cfg, log, func(ctx context.Context, s *ldapsync.Sync) error { return fn(ctx, s, name) })
}

type directoryName struct {
	Directory string `arg:"" optional:"" help:"Id of the directory. Not needed where there is only one."`
}

type directoryStatusCmd struct{}

// Run is called by kong.
func (directoryStatusCmd) Run(ctx context.Context, c *cli) error {
	cfg, log, err := c.load()
	if err != nil {
		return err
	}
	return homeserver.WithDirectory(ctx, cfg, log, func(ctx context.Context, s *ldapsync.Sync) error {
		all, err := s.Statuses(ctx)
		if err != nil {
			return err
		}
		for i := range all {
			printStatus(os.Stdout, &all[i])
		}
		return nil
	})
}

func clock(ms int64) string {
	if ms == 0 {
		return "never"
	}
	return time.UnixMilli(ms).Format("2006-01-02 15:04:05")
}

func printStatus(w io.Writer, st *ldapsync.Status) {
	followed := "looked at from time to time"
	switch {
	case !st.Enabled:
		followed = "not followed (sync.mode is off)"
	case st.Following:
		followed = "followed: changes are pushed"
	}
	fmt.Fprintf(w, "%s (%s, %s): %s\n", st.Directory, st.Type, strings.Join(st.Servers, " "), followed)
	fmt.Fprintf(w, "  %d accounts, %d disabled; %d people, %d groups, %d units in the directory\n", st.Accounts, st.Disabled, st.Users, st.Groups, st.Units)
	fmt.Fprintf(w, "  last seen %s, last complete comparison %s\n", clock(st.SeenAt), clock(st.FullAt))
	if st.Error != "" {
		fmt.Fprintf(w, "  ERROR: %s\n", strings.ReplaceAll(st.Error, "\n", "; "))
	}
	if p := st.Pending; p != nil {
		fmt.Fprintf(w, "  STOPPED since %s: %s\n", clock(p.Since), p.Why)
		fmt.Fprintf(w, "    see what it is by: moothall directory plan %s\n    then, if it is right: moothall directory confirm %s\n", st.Directory, st.Directory)
	}
	for i := range st.Runs {
		printRun(w, &st.Runs[i])
	}
}

func printRun(w io.Writer, r *ldapsync.Report) {
	state := fmt.Sprintf("%d ms", r.Ended-r.Started)
	switch {
	case r.Error != "":
		state = "FAILED: " + strings.ReplaceAll(r.Error, "\n", "; ")
	case r.Stopped != nil:
		state = "STOPPED: " + r.Stopped.Why
	}
	fmt.Fprintf(w, "  %s %-7s %s: read %d; created %d, updated %d, enabled %d, disabled %d (gone %d); rooms made %d, joined %d, invited %d, left %d; errors %d; %s\n",
		clock(r.Started), r.Kind, r.Why, r.Read, r.Created+r.Linked, r.Updated, r.Enabled, r.Barred, r.Gone,
		r.Groups.Create, r.Groups.Join, r.Groups.Invite, r.Groups.Leave, r.FaultCount, state)
	for i, e := range r.Faults {
		if i == 10 {
			fmt.Fprintf(w, "    … and %d more\n", r.FaultCount-i)
			break
		}
		fmt.Fprintf(w, "    %s: %s\n", e.DN, e.Error)
	}
	for _, warning := range r.Warnings {
		fmt.Fprintf(w, "    warning: %s\n", warning)
	}
}

type directoryPlanCmd struct{ directoryName }

// Run is called by kong.
func (d directoryPlanCmd) Run(ctx context.Context, c *cli) error {
	return c.directory(ctx, d.Directory, func(ctx context.Context, s *ldapsync.Sync, directory string) error {
		p, err := s.Plan(ctx, directory)
		if err != nil {
			return err
		}
		fmt.Print(p)
		return nil
	})
}

type directoryTestCmd struct {
	directoryName
	User string `help:"Name by which somebody signs in, to be shown as they would be." placeholder:"NAME"`
}

// Run is called by kong.
func (d directoryTestCmd) Run(ctx context.Context, c *cli) error {
	return c.directory(ctx, d.Directory, func(ctx context.Context, s *ldapsync.Sync, directory string) error {
		t, err := s.Test(ctx, directory, d.User)
		if err != nil {
			return err
		}
		printTest(os.Stdout, t)
		if !t.OK {
			return errors.New("the directory cannot be used as it is configured")
		}
		return nil
	})
}

func printTest(w io.Writer, t *ldapsync.TestReport) {
	for _, step := range t.Steps {
		mark := "ok  "
		if !step.OK {
			mark = "FAIL"
		}
		fmt.Fprintf(w, "%s %s  %s\n", mark, step.What, step.Detail)
	}
	if p := t.Sample; p != nil {
		fmt.Fprintf(w, "\n%s\n  id %s\n  would be %s\n", p.DN, p.ID, p.UserID)
		for _, name := range []string{"display_name", "email", "phone", "title", "department", "manager", "employee_number", "time_zone", "unit", "photo"} {
			if v := p.Fields[name]; v != "" {
				fmt.Fprintf(w, "  %s: %s\n", name, v)
			}
		}
		if p.Disabled != "" {
			fmt.Fprintf(w, "  %s\n", p.Disabled)
		}
		for _, f := range p.Faults {
			fmt.Fprintf(w, "  error: %s\n", f)
		}
	}
}

// runLimit is how long a command waits for a run of the server.
const runLimit = 10 * time.Minute

type directorySyncCmd struct{ directoryName }

// Run is called by kong.
func (d directorySyncCmd) Run(ctx context.Context, c *cli) error {
	return c.directory(ctx, d.Directory, func(ctx context.Context, s *ldapsync.Sync, directory string) error {
		run, err := s.Request(ctx, directory, "the command line")
		if err != nil {
			return err
		}
		return showRun(ctx, s, directory, run)
	})
}

func showRun(ctx context.Context, s *ldapsync.Sync, directory, run string) error {
	r, err := s.Wait(ctx, directory, run, runLimit)
	if err != nil {
		return err
	}
	printRun(os.Stdout, r)
	if r.Error != "" || r.Stopped != nil {
		return errors.New("the run did not end well")
	}
	return nil
}

type directoryConfirmCmd struct {
	directoryName
	Digest string `help:"What status or plan showed, so that nothing else is confirmed." placeholder:"DIGEST"`
}

// Run is called by kong.
func (d directoryConfirmCmd) Run(ctx context.Context, c *cli) error {
	return c.directory(ctx, d.Directory, func(ctx context.Context, s *ldapsync.Sync, directory string) error {
		run, err := s.Confirm(ctx, directory, d.Digest, "the command line")
		if err != nil {
			return err
		}
		return showRun(ctx, s, directory, run)
	})
}

type directoryRelinkCmd struct {
	User      string `arg:"" help:"Matrix user id, such as @alice:example.org."`
	Name      string `arg:"" help:"Name by which the directory knows the person now."`
	Directory string `help:"Id of the directory. Not needed where there is only one." placeholder:"ID"`
}

// Run is called by kong.
func (d directoryRelinkCmd) Run(ctx context.Context, c *cli) error {
	return c.directory(ctx, d.Directory, func(ctx context.Context, s *ldapsync.Sync, directory string) error {
		r, err := s.Relink(ctx, directory, id.UserID(d.User), d.Name, "the command line")
		if err != nil {
			return err
		}
		fmt.Printf("%s is %s (%s) now; a complete comparison follows\n", r.User, r.DN, r.ID)
		return nil
	})
}

type directoryHistoryCmd struct {
	User string `arg:"" help:"Matrix user id, such as @alice:example.org."`
}

// Run is called by kong.
func (d directoryHistoryCmd) Run(ctx context.Context, c *cli) error {
	cfg, log, err := c.load()
	if err != nil {
		return err
	}
	return homeserver.WithDirectory(ctx, cfg, log, func(ctx context.Context, s *ldapsync.Sync) error {
		list, err := s.History(ctx, id.UserID(d.User))
		if err != nil {
			return err
		}
		for _, e := range list {
			fmt.Printf("%s %s by %s %s", clock(e.Time), e.Action, e.Kind, e.Actor)
			if e.Reason != "" {
				fmt.Printf(" (%s)", e.Reason)
			}
			if fields, ok := e.Details["fields"]; ok {
				fmt.Printf(" %v", fields)
			}
			fmt.Println()
		}
		return nil
	})
}
