package oa

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

const (
	cardChunk     = 100
	cardsAtOnce   = 4
	cardLater     = time.Minute      // until a card that failed is tried again
	cardMuchLater = 30 * time.Minute // the same for what an administrator has to put right: an account is closed
	purgeEvery    = time.Hour
	tokensKept    = 90 * 24 * time.Hour // after they expired: so that a late click is told why
	pagePath      = "/approvals/"
)

// cards makes and changes the cards that are due, and says when the next one is (ms).
func (o *OA) cards(ctx context.Context) (int64, error) {
	if err := o.reminders(ctx); err != nil {
		return 0, err
	}
	for {
		var due []store.OATask
		err := o.d.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
			due, err = tx.OACardsDue(o.now(), cardChunk)
			return err
		})
		if err != nil {
			return 0, err
		}
		if len(due) == 0 {
			break
		}
		work, ctx := errgroup.WithContext(ctx)
		work.SetLimit(cardsAtOnce)
		for _, row := range due {
			work.Go(func() error { return o.dueCard(ctx, row) })
		}
		if err := work.Wait(); err != nil {
			return 0, err
		}
	}
	if now := o.now(); now-o.purged > purgeEvery.Milliseconds() {
		if err := o.d.Store.Write(ctx, func(tx *store.Tx) error { return tx.PurgeOATokens(now - tokensKept.Milliseconds()) }); err != nil {
			return 0, err
		}
		o.purged = now
	}
	var next int64
	err := o.d.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
		next, err = tx.NextOACard()
		return err
	})
	return next, err
}

// reminders has people reminded whose templates say so.
func (o *OA) reminders(ctx context.Context) error {
	var due []store.OATask
	err := o.d.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
		due, err = tx.OAToRemind(o.now(), cardChunk)
		return err
	})
	for _, row := range due {
		if err == nil {
			t, e := readTask(row)
			if e != nil {
				return e
			}
			err = o.d.Store.Write(ctx, func(tx *store.Tx) error {
				now := o.now()
				_, err := tx.RemindOATask(row.NID, now, now, remindAt(o.template(t), now))
				return err
			})
		}
	}
	return err
}

// dueCard makes one card. What cannot be done for this person is tried again later, and holds up nobody else.
func (o *OA) dueCard(ctx context.Context, row store.OATask) error {
	err := o.show(ctx, row)
	if err == nil || ctx.Err() != nil {
		return nil
	}
	o.d.Logger.Warn("the card of an approval could not be shown and is tried again", "task", shortID(row.NID), "user_id", row.Assignee, "error", err)
	later := cardLater
	if e := mxerr.As(err); e != nil && e.Status < 500 {
		later = cardMuchLater
	}
	return o.d.Store.Write(ctx, func(tx *store.Tx) error {
		return tx.LaterOACard(row.NID, row.Rev, o.now()+later.Milliseconds())
	})
}

// show brings the chat up to date with a task.
func (o *OA) show(ctx context.Context, row store.OATask) error {
	t, cb, err := o.findBy(ctx, func(tx *store.Tx) (store.OATask, bool, error) { return tx.OATask(row.NID) })
	if err != nil {
		return err
	}
	txn := fmt.Sprintf("%d/%d/", t.NID, t.Rev)
	tmpl := o.template(t)
	if t.CardEvent != "" && t.CardUser != t.Assignee { // it was passed on
		lines := []string{fmt.Sprintf(o.words.passedOn, o.displayName(ctx, t.Assignee))}
		if err := o.editCard(ctx, t, txn+"passed", t.closedCard(o.words, tmpl, lines)); err != nil {
			return err
		}
		t.CardEvent, t.ShownVersion = "", 0
	}
	roomID, service, err := o.room(ctx, t.Assignee)
	if err != nil {
		return err
	}
	var content object
	if t.Status == store.OAOpen {
		if t.ShownVersion != t.Version || t.CardEvent == "" {
			link, err := o.link(ctx, &t.OATask)
			if err != nil {
				return err
			}
			content = t.card(o.words, tmpl, link)
		}
	} else if t.CardEvent != "" {
		by := t.DecidedBy
		if t.Via != viaOA {
			by = o.displayName(ctx, id.UserID(by))
		}
		content = t.closedCard(o.words, tmpl, t.outcome(o.words, by, cb))
	}
	if content != nil {
		if err := o.showCard(ctx, t, roomID, service, txn, content); err != nil {
			return err
		}
	}
	if t.Status == store.OAOpen && t.Reminds > t.Reminded {
		eventID, err := o.post(ctx, roomID, service, txn+"remind", t.reminder(o.words))
		if err != nil {
			return err
		}
		if err := o.noteCard(ctx, eventID, t); err != nil {
			return err
		}
		t.Reminded = t.Reminds
	}
	if err := o.tell(ctx, t, cb); err != nil {
		return err
	}
	return o.d.Store.Write(ctx, func(tx *store.Tx) error { return tx.ShownOATask(t.OATask) })
}

// showCard posts the card or edits it.
func (o *OA) showCard(ctx context.Context, t *task, roomID id.RoomID, service id.UserID, txn string, content object) error {
	first := t.CardEvent == ""
	if !first && roomID != t.CardRoom {
		first = true // the room was lost
	}
	if !first {
		content = edit(content, t.CardEvent)
	}
	eventID, err := o.post(ctx, roomID, service, txn+"card", content)
	if err != nil {
		return err
	}
	e, err := o.d.Rooms.EventByID(ctx, eventID)
	if err != nil {
		return err
	}
	if e != nil {
		t.ShownVersion, t.ShownOrd = t.Version, e.Ord
	}
	if first {
		t.CardEvent, t.CardRoom, t.CardUser = eventID, roomID, t.Assignee
	}
	return o.noteCard(ctx, eventID, t)
}

func (o *OA) noteCard(ctx context.Context, eventID id.EventID, t *task) error {
	return o.d.Store.Write(ctx, func(tx *store.Tx) error { return tx.InsertOACard(eventID, t.NID, t.Assignee) })
}

// editCard changes the card that was posted before.
func (o *OA) editCard(ctx context.Context, t *task, txn string, content object) error {
	service, err := o.d.Service(ctx)
	if err != nil {
		return err
	}
	_, err = o.post(ctx, t.CardRoom, service, txn, edit(content, t.CardEvent))
	if mxerr.Is(err, "M_NOT_FOUND") {
		return nil // the room is gone, and the card with it
	}
	return err
}

// link makes a link to the page of a task: an opaque secret of which the hash is stored, for this person, version and time.
func (o *OA) link(ctx context.Context, row *store.OATask) (string, error) {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	secret := base64.RawURLEncoding.EncodeToString(b[:])
	t := store.OAToken{
		Hash: store.HashID(secret), Task: row.NID, Version: row.Version, User: row.Assignee, Expires: o.now() + o.d.Config.LinkLifetime.Milliseconds(),
	}
	err := o.d.Store.Write(ctx, func(tx *store.Tx) error {
		if err := tx.InsertOAToken(t); err != nil {
			return err
		}
		return audit.Append(ctx, tx, audit.Entry{Action: "oa.link", Target: shortID(row.NID), Details: map[string]any{"user": row.Assignee, "version": row.Version}})
	})
	return o.d.PublicURL + pagePath + secret, err
}

// tell tells the applicant of the outcome, once it is known to the OA system too.
func (o *OA) tell(ctx context.Context, t *task, cb *store.OACallback) error {
	if t.Status == store.OAOpen || t.Applicant == "" || t.Told == t.Status {
		return nil
	}
	if cb != nil && cb.State != store.OACallbackDone && t.Via != viaOA {
		return nil
	}
	roomID, service, err := o.room(ctx, t.Applicant)
	if e := mxerr.As(err); e != nil && e.Status < 500 {
		t.Told = t.Status // the account is closed
		return nil
	}
	if err != nil {
		return err
	}
	by := t.DecidedBy
	if t.Via != viaOA {
		by = o.displayName(ctx, id.UserID(by))
	}
	line := ""
	switch t.Status {
	case store.OAApproved:
		line = fmt.Sprintf(o.words.toldApproved, shortID(t.NID), t.brief.Title, by)
	case store.OARejected:
		line = fmt.Sprintf(o.words.toldRejected, shortID(t.NID), t.brief.Title, by)
	default:
		line = fmt.Sprintf(o.words.toldClosed, shortID(t.NID), t.brief.Title)
	}
	if len(t.Reason) > 0 {
		line += "\n" + o.words.reason + ": " + string(t.Reason)
	}
	if _, err := o.post(ctx, roomID, service, fmt.Sprintf("%d/told/%s", t.NID, t.Status), notice(line, t.Applicant)); err != nil {
		return err
	}
	t.Told = t.Status
	return nil
}
