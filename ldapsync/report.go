package ldapsync

import (
	"context"
	"os"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/moothall/moothall/homeserver/groups"
	"github.com/moothall/moothall/homeserver/people"
	"github.com/moothall/moothall/homeserver/store"
)

// maxFaults is how many faults of entries a report names; it counts all.
const maxFaults = 200

// Report is one run.
type Report struct {
	ID        string `json:"id"`
	Directory string `json:"directory"`
	Kind      string `json:"kind"` // full or changes
	Why       string `json:"why"`
	Host      string `json:"host,omitzero"`
	Started   int64  `json:"started"`        // ms
	Ended     int64  `json:"ended,omitzero"` // ms; 0: not yet, or it was interrupted

	Read    int            `json:"entries_read"`
	Created int            `json:"created"`
	Linked  int            `json:"linked"`
	Updated int            `json:"updated"`
	Enabled int            `json:"enabled"`
	Barred  int            `json:"disabled"` // gone ones among them
	Gone    int            `json:"gone"`
	Groups  groups.Counts  `json:"groups"`
	Took    map[string]int `json:"took_ms,omitzero"` // by step

	Faults     []EntryError `json:"errors,omitzero"`
	FaultCount int          `json:"error_count"`
	Warnings   []string     `json:"warnings,omitzero"`
	// Error says why the run did nothing, or stopped half-way.
	Error string `json:"error,omitzero"`
	// Stopped says that the run waits for a confirmation.
	Stopped *Pending `json:"stopped,omitzero"`
}

func (r *Report) fault(dn, text string) {
	r.FaultCount++
	if len(r.Faults) < maxFaults {
		r.Faults = append(r.Faults, EntryError{dn, text})
	}
}

func (r *Report) count(o *op, c people.Change) {
	switch {
	case c.Created:
		r.Created++
	case c.Linked:
		r.Linked++
	case o.bars():
		r.Barred++
		r.Gone += boolInt(o.what == opGone)
	case c.Enabled:
		r.Enabled++
	default:
		r.Updated++
	}
}

// changed tells whether the run did anything.
func (r *Report) changed() bool {
	g := r.Groups
	g.Skipped = 0
	return r.Created+r.Linked+r.Updated+r.Enabled+r.Barred > 0 || g != groups.Counts{}
}

func (f *follower) begin(kind, why, runID string) *Report {
	if runID == "" {
		runID = newRunID()
	}
	host, _ := os.Hostname() // only shown
	return &Report{ID: runID, Directory: f.cfg.ID, Kind: kind, Why: why, Host: host, Started: f.Clock().UnixMilli(), Took: map[string]int{}}
}

// step measures a part of a run.
func (r *Report) step(name string) func() {
	start := time.Now()
	return func() { r.Took[name] += int(time.Since(start).Milliseconds()) }
}

// putRun stores a report.
func putRun(tx *store.Tx, r *Report) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return tx.PutDirectoryRun(store.DirectoryRun{ID: r.ID, Directory: r.Directory, Started: r.Started, Ended: r.Ended, Report: b})
}

// end stores the report of a run that did something or was asked for, and what else is known now.
func (f *follower) end(ctx context.Context, r *Report, keep bool) error {
	r.Ended = f.Clock().UnixMilli()
	f.numbers.add(r)
	if !keep && !r.changed() && r.FaultCount == 0 && r.Error == "" && r.Stopped == nil {
		return f.save(ctx)
	}
	level := f.log.Info
	if r.Error != "" || r.Stopped != nil {
		level = f.log.Warn
	}
	level("directory run", "run", r.ID, "kind", r.Kind, "why", r.Why, "read", r.Read, "created", r.Created, "updated", r.Updated, "enabled", r.Enabled,
		"disabled", r.Barred, "joined", r.Groups.Join, "left", r.Groups.Leave, "errors", r.FaultCount, "error", r.Error, "ms", r.Ended-r.Started)
	return f.Store.Write(ctx, func(tx *store.Tx) error {
		if err := putRun(tx, r); err != nil {
			return err
		}
		if err := tx.TrimDirectoryRuns(f.cfg.ID, keepRuns); err != nil {
			return err
		}
		return f.put(tx)
	})
}

// save stores how far the directory was followed.
func (f *follower) save(ctx context.Context) error {
	return f.Store.Write(ctx, f.put)
}

func (f *follower) put(tx *store.Tx) error {
	b, err := json.Marshal(f.s.saved)
	if err != nil {
		return err
	}
	return tx.PutLDAPState(f.cfg.ID, b)
}
