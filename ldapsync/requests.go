package ldapsync

import (
	"context"
	"fmt"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// request is what a command or the API asks of whoever follows a directory.
type request struct {
	Run     string `json:"run"`
	Confirm string `json:"confirm,omitzero"` // the digest of what is confirmed; "": a run is asked for
	By      string `json:"by"`
	At      int64  `json:"at"`
}

// askedRun is a run that somebody asked for.
type askedRun struct{ Run, Why string }

// asked takes the request that waits, if there is one.
func (f *follower) asked(ctx context.Context) (*askedRun, error) {
	var raw []byte
	err := f.Store.Read(ctx, func(tx *store.Tx) error {
		var err error
		_, raw, err = tx.LDAPState(f.cfg.ID)
		return err
	})
	if err != nil || raw == nil {
		return nil, orNone(ctx, err)
	}
	var q request
	if err := json.Unmarshal(raw, &q); err != nil {
		return nil, fmt.Errorf("read the request to directory %s: %w", f.cfg.ID, err)
	}
	if err := f.Store.Write(ctx, func(tx *store.Tx) error { return tx.PutLDAPRequest(f.cfg.ID, nil) }); err != nil {
		return nil, orNone(ctx, err)
	}
	out := &askedRun{Run: q.Run, Why: "asked for by " + q.By}
	if q.Confirm != "" {
		out.Why = "confirmed by " + q.By
		if p := f.s.Pending; p != nil && p.Digest == q.Confirm {
			p.Confirmed, p.By = true, q.By
		}
	}
	return out, nil
}

// orNone drops the error of a context that ended.
func orNone(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// Request asks whoever follows the directory for a complete comparison and returns the id of the run to come.
func (s *Sync) Request(ctx context.Context, directory, by string) (string, error) {
	return s.ask(ctx, directory, request{By: by}, "directory.sync.requested")
}

// Confirm lets the run go on that was stopped because it would do too much; M_NOT_FOUND where none waits.
func (s *Sync) Confirm(ctx context.Context, directory, digest, by string) (string, error) {
	st, err := s.Status(ctx, directory)
	if err != nil {
		return "", err
	}
	if st.Pending == nil {
		return "", mxerr.NotFound("no run of this directory waits for a confirmation")
	}
	if digest == "" {
		digest = st.Pending.Digest
	}
	if digest != st.Pending.Digest {
		return "", mxerr.InvalidParam("what waits for a confirmation has changed meanwhile: look at it again (" + st.Pending.Digest + ")")
	}
	return s.ask(ctx, directory, request{By: by, Confirm: digest}, "directory.sync.confirmed")
}

func (s *Sync) ask(ctx context.Context, directory string, q request, action string) (string, error) {
	d, err := s.find(directory)
	if err != nil {
		return "", err
	}
	q.Run, q.At = newRunID(), s.Clock().UnixMilli()
	raw, err := json.Marshal(q)
	if err != nil {
		return "", err
	}
	return q.Run, s.Store.Write(ctx, func(tx *store.Tx) error {
		if err := tx.PutLDAPRequest(d.cfg.ID, raw); err != nil {
			return err
		}
		return audit.Append(ctx, tx, audit.Entry{Action: action, Target: d.source, Details: map[string]any{"run": q.Run, "confirm": q.Confirm}})
	})
}

// Wait waits until a run that was asked for has ended; 503 if nobody begins it in time.
func (s *Sync) Wait(ctx context.Context, directory, runID string, limit time.Duration) (*Report, error) {
	for deadline := time.Now().Add(limit); ; {
		runs, err := s.Runs(ctx, directory, 20)
		if err != nil {
			return nil, err
		}
		for i := range runs {
			if runs[i].ID == runID && runs[i].Ended != 0 {
				return &runs[i], nil
			}
		}
		if time.Now().After(deadline) {
			return nil, mxerr.Unavailable("the run has not ended yet; is the server running, with sync.enabled?")
		}
		pause(ctx, 100*time.Millisecond)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
}
