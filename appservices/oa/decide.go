package oa

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/go-json-experiment/json"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// The ways in which something is decided.
const (
	viaPage     = "page"
	viaReaction = "reaction"
	viaReply    = "reply"
	viaOA       = "oa"
)

// decision is what somebody decides.
type decision struct {
	task    int64
	version int64     // 0: any
	by      id.UserID // the assignee; "" where the OA system decides
	name    string    // who it was there
	status  string
	reason  string
	via     string
	ref     string // the event
	token   string // hash of the link
	amr     []string
}

// callbackGrace is how long the card waits with the outcome for the OA system's answer, so that it is edited once where that
// comes at once.
const callbackGrace = 1500 * time.Millisecond

const maxReason = 2000 // bytes

var (
	errGone    = mxerr.NotFound("there is no such approval")
	errChanged = mxerr.New(http.StatusConflict, "M_CONFLICT", "this approval has changed meanwhile: look at its newest version")
	errNotYour = mxerr.Forbidden("this approval is somebody else's")
	errUsed    = mxerr.New(http.StatusGone, "M_NOT_FOUND", "this link was used or has expired: write “todo” in your approvals room for new ones")
)

// errClosed says that something was decided before.
func errClosed(status string) *mxerr.Error {
	return mxerr.New(http.StatusConflict, "M_CONFLICT", "this approval is not open any more: it is "+status).With("status", status)
}

// payload is what an OA system is told, and the data of the templates of callbacks.
type payload struct {
	Type     string    `json:"type"` // approval.decided, approval.delegated
	System   string    `json:"system"`
	ID       string    `json:"id"`
	Short    string    `json:"short_id"`
	Version  int64     `json:"version"`
	Key      string    `json:"idempotency_key"`
	Outcome  string    `json:"outcome"` // approved, rejected, delegated
	By       id.UserID `json:"by"`
	ByName   string    `json:"by_name"` // localpart
	To       id.UserID `json:"to"`      // of a delegation
	ToName   string    `json:"to_name"`
	Reason   string    `json:"reason"`
	Time     string    `json:"time"` // RFC 3339
	Via      string    `json:"via"`  // page, reaction, reply
	AMR      []string  `json:"amr"`  // how the person was known: pwd, otp …
	Template string    `json:"template"`
	Title    string    `json:"title"`
	Millis   int64     `json:"time_ms"`
	Assignee id.UserID `json:"assignee"` // when it was decided
	Applic   id.UserID `json:"applicant"`
}

const (
	kindDecided   = "decided"
	kindDelegated = "delegated"
)

// decide ends an open approval, once: the row's condition and the entry of the audit log are in one transaction.
func (o *OA) decide(ctx context.Context, d decision) (*task, error) {
	var out *task
	var queued string
	err := o.d.Store.Write(ctx, func(tx *store.Tx) error {
		queued = ""
		row, found, err := tx.OATask(d.task)
		if err != nil {
			return err
		}
		if !found {
			return errGone
		}
		if d.token != "" {
			used, err := tx.UseOAToken(d.token, o.now())
			if err != nil {
				return err
			}
			if !used {
				// the same link may have decided it since the row was read, on another node
				if err := why(tx, d); !errors.Is(err, errChanged) {
					return err
				}
				return errUsed
			}
		}
		now := o.now()
		row.Status, row.DecidedBy, row.Via, row.Ref, row.Reason = d.status, d.name, d.via, d.ref, store.Content(d.reason)
		if d.by != "" {
			row.DecidedBy = string(d.by)
		}
		due := now
		s := o.systems[row.System]
		tell := d.via != viaOA && s != nil && s.Callback.URL != ""
		if tell {
			due += callbackGrace.Milliseconds()
		}
		done, err := tx.DecideOATask(row, d.version, d.by, now, due)
		if err != nil {
			return err
		}
		if !done {
			return why(tx, d)
		}
		row.Decided, row.Updated, row.CardDue = now, now, due
		row.Rev++
		if out, err = readTask(row); err != nil {
			return err
		}
		if tell {
			if err := o.queue(tx, out, kindDecided, d.by, "", d.amr); err != nil {
				return err
			}
			queued = loopCallbacks + row.System
		}
		return audit.Append(ctx, tx, audit.Entry{
			Action: "oa.decided", Target: shortID(row.NID), Details: map[string]any{
				"system": row.System, "id": row.ExternalID, "version": row.Version, "outcome": d.status, "by": row.DecidedBy, "via": d.via, "event": d.ref, "amr": d.amr,
			},
		})
	})
	if err != nil {
		return nil, err
	}
	o.wake(loopCards)
	if queued != "" {
		o.wake(queued)
	}
	return out, nil
}

// why tells why nothing was decided.
func why(tx *store.Tx, d decision) error {
	row, found, err := tx.OATask(d.task)
	switch {
	case err != nil:
		return err
	case !found:
		return errGone
	case row.Status != store.OAOpen:
		return errClosed(row.Status)
	case d.by != "" && row.Assignee != d.by:
		return errNotYour
	}
	return errChanged
}

// queue stores what the OA system is to be told.
func (o *OA) queue(tx *store.Tx, t *task, kind string, by, to id.UserID, amr []string) error {
	p := payload{
		Type: "approval." + kind, System: t.System, ID: t.ExternalID, Short: shortID(t.NID), Version: t.Version, Key: callbackKey(t.System, t.ExternalID, t.Version, kind),
		Outcome: t.Status, By: by, ByName: by.Localpart(), Reason: string(t.Reason), Time: formatTime(t.Updated), Millis: t.Updated, Via: t.Via, AMR: amr,
		Template: t.doc.Template, Title: t.brief.Title, Assignee: t.Assignee, Applic: t.Applicant,
	}
	if p.AMR == nil {
		p.AMR = []string{}
	}
	if kind == kindDelegated {
		p.Outcome, p.To, p.ToName = kindDelegated, to, to.Localpart()
	}
	body, err := json.Marshal(p, json.Deterministic(true))
	if err != nil {
		return err
	}
	return tx.InsertOACallback(store.OACallback{Task: t.NID, Version: t.Version, Kind: kind, System: t.System, Body: body, Created: t.Updated})
}

// delegate passes an open approval on. by is "" where the OA system does it.
func (o *OA) delegate(ctx context.Context, nid, version int64, by, to id.UserID, via string) (*task, error) {
	var out *task
	queued := ""
	err := o.d.Store.Write(ctx, func(tx *store.Tx) error {
		queued = ""
		row, found, err := tx.OATask(nid)
		switch {
		case err != nil:
			return err
		case !found:
			return errGone
		case row.Status != store.OAOpen:
			return errClosed(row.Status)
		case by != "" && row.Assignee != by:
			return errNotYour
		case version != 0 && row.Version != version:
			return errChanged
		case row.Assignee == to:
			return bad("to", "has the approval already")
		}
		from := row.Assignee
		t, err := readTask(row)
		if err != nil {
			return err
		}
		if by != "" && !o.template(t).Delegate {
			return mxerr.Forbidden("approvals of this kind cannot be passed on")
		}
		now := o.now()
		row.Assignee, row.RemindAt = to, remindAt(o.template(t), now)
		changed, err := tx.ChangeOATask(row, now)
		if err != nil {
			return err
		}
		if !changed {
			return errChanged
		}
		row.Version++
		row.Rev++
		row.Updated, row.Via = now, via
		t.OATask = row
		out = t
		if s := o.systems[row.System]; by != "" && s != nil && s.Callback.URL != "" {
			if err := o.queue(tx, t, kindDelegated, by, to, nil); err != nil {
				return err
			}
			queued = loopCallbacks + row.System
		}
		return audit.Append(ctx, tx, audit.Entry{Action: "oa.delegated", Target: shortID(nid), Details: map[string]any{
			"system": row.System, "id": row.ExternalID, "version": row.Version, "from": from, "to": to, "via": via,
		}})
	})
	if err != nil {
		return nil, err
	}
	o.wake(loopCards)
	if queued != "" {
		o.wake(queued)
	}
	return out, nil
}

// remindEvery is how soon after a reminder another one may follow.
const remindEvery = 10 * time.Minute

// remind has the assignee reminded. False means that this was done a short time ago.
func (o *OA) remind(ctx context.Context, row store.OATask) (bool, error) {
	t, err := readTask(row)
	if err != nil {
		return false, err
	}
	done := false
	err = o.d.Store.Write(ctx, func(tx *store.Tx) error {
		now := o.now()
		if done, err = tx.RemindOATask(row.NID, now, now-remindEvery.Milliseconds(), remindAt(o.template(t), now)); err != nil || done {
			return err
		}
		if again, _, err := tx.OATask(row.NID); err != nil || again.Status != store.OAOpen {
			if err == nil {
				err = errClosed(again.Status)
			}
			return err
		}
		return nil
	})
	if err == nil && done {
		o.wake(loopCards)
	}
	return done, err
}
