package push

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// Pushers of the kind "email" gather what would notify: a mail tells of what is still unread after a while, and further ones
// wait the longer the more came without anything being read.
// Spec: client-server API, POST /pushers/set, kind email.

const (
	kindEmail    = "email"
	mailsAtOnce  = 200 // pushers in one look
	mailEvents   = 200 // of one mail
	mailRooms    = 20
	mailLook     = 30 * time.Second
	longestPause = 24 * time.Hour
)

// Emails is about notifications by mail.
type Emails struct {
	After time.Duration // how long something stays unread before it is mailed, and the shortest time between two mails
	// Compose makes the mail that goes to an address, of lines that say what is unread; token is for the link that stops the mails.
	Compose func(mailID, to, lang string, lines []string, token string, now int64) (store.Mail, error)
	Queued  func()
	Secret  []byte // signs tokens
}

// runEmails mails what is due, on one process at a time.
func (p *Push) runEmails(ctx context.Context) error {
	tick := time.NewTicker(max(min(mailLook, p.Emails.After/2), 10*time.Millisecond))
	defer tick.Stop()
	for {
		if err := p.mailDue(ctx); err != nil && ctx.Err() == nil {
			p.Log.Warn("notifications by mail", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (p *Push) mailDue(ctx context.Context) error {
	var due []store.Pusher
	err := p.Store.Read(ctx, func(tx *store.Tx) error {
		now, err := tx.Now()
		if err != nil {
			return err
		}
		due, err = tx.DueEmailPushers(now, now-p.Emails.After.Milliseconds(), mailsAtOnce)
		return err
	})
	if err != nil {
		return err
	}
	for i := range due {
		if err := p.mail(ctx, &due[i]); err != nil {
			return err
		}
	}
	return nil
}

// mail sends one digest, or drops what was read meanwhile. The mail enters the outbox in the transaction that takes its
// notifications away, so that none is mailed twice.
func (p *Push) mail(ctx context.Context, to *store.Pusher) error {
	unread := Counts{Unread: 1}
	if p.Unread != nil {
		var err error
		if unread, err = p.Unread(ctx, to.User); err != nil {
			return err
		}
	}
	var waiting []store.Push
	err := p.Store.Read(ctx, func(tx *store.Tx) (err error) {
		waiting, err = tx.WaitingPushes(to.ID, mailEvents)
		return err
	})
	if err != nil || len(waiting) == 0 {
		return err
	}
	var lines []string
	if unread.Unread+unread.MissedCalls > 0 {
		if lines, err = p.digest(ctx, to, waiting); err != nil {
			return err
		}
	}
	upTo := waiting[len(waiting)-1].Pos
	err = p.Store.Write(ctx, func(tx *store.Tx) error {
		now, err := tx.Now()
		if err != nil {
			return err
		}
		if len(lines) == 0 {
			return tx.EmailDone(to.ID, upTo, 0, now)
		}
		m, err := p.Emails.Compose(mailID(to.ID, upTo), to.Pushkey, to.Lang, lines, p.stopToken(to.ID, to.User), now)
		if err != nil {
			return err
		}
		if err := tx.InsertMail(m); err != nil {
			return err
		}
		pause := p.Emails.After << min(to.Failures, 20)
		if pause <= 0 || pause > longestPause {
			pause = longestPause
		}
		return tx.EmailDone(to.ID, upTo, to.Failures+1, now+pause.Milliseconds())
	})
	if err == nil && len(lines) > 0 && p.Emails.Queued != nil {
		p.Emails.Queued()
	}
	return err
}

func mailID(pusher, upTo int64) string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // crypto/rand never fails on supported systems
	return fmt.Sprintf("notify-%d-%d-%s", pusher, upTo, hex.EncodeToString(b[:]))
}

// digest says in one line for each room who wrote how much there. What was written is not said: mail is read by many.
func (p *Push) digest(ctx context.Context, to *store.Pusher, waiting []store.Push) ([]string, error) {
	type told struct {
		name    string
		senders []string
		count   int
	}
	var order []int64
	rooms := map[int64]*told{}
	for i := range waiting {
		w := &waiting[i]
		e, err := p.Event(ctx, w.Room, w.NID)
		if isGone(err) || err == nil && e == nil {
			continue
		}
		if err != nil {
			return nil, err
		}
		t := rooms[w.Room]
		view, err := p.Room(ctx, w.Room)
		if isGone(err) || err == nil && view == nil {
			continue
		}
		if err != nil {
			return nil, err
		}
		if t == nil {
			t = &told{name: view.Name()}
			if t.name == "" {
				t.name = view.Alias()
			}
			rooms[w.Room] = t
			order = append(order, w.Room)
		}
		t.count++
		sender := view.DisplayName(id.UserID(e.Sender))
		if sender == "" {
			sender = e.Sender
		}
		if !slices.Contains(t.senders, sender) {
			t.senders = append(t.senders, sender)
		}
	}
	var lines []string
	for _, nid := range order {
		t := rooms[nid]
		if len(lines) == mailRooms {
			lines = append(lines, "…")
			break
		}
		who := strings.Join(t.senders[:min(len(t.senders), 3)], ", ")
		if len(t.senders) > 3 {
			who += ", …"
		}
		if t.name != "" {
			who = t.name + " — " + who
		}
		lines = append(lines, who+" ("+strconv.Itoa(t.count)+")")
	}
	return lines, nil
}

// stopToken is what the link in a mail carries: the pusher and a proof that this server wrote it.
func (p *Push) stopToken(pusher int64, user id.UserID) string {
	m := hmac.New(sha256.New, p.Emails.Secret)
	fmt.Fprintf(m, "stop mails %d %s", pusher, user)
	return strconv.FormatInt(pusher, 10) + "." + base64.RawURLEncoding.EncodeToString(m.Sum(nil))
}

// EmailOf finds the pusher that a link in a mail belongs to. M_NOT_FOUND: there is none any more, or the link is not ours.
func (p *Push) EmailOf(ctx context.Context, token string) (store.Pusher, error) {
	var to store.Pusher
	var found bool
	number, _, _ := strings.Cut(token, ".")
	pusher, err := strconv.ParseInt(number, 10, 64)
	if err == nil {
		err = p.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
			to, found, err = tx.EmailPusher(pusher)
			return err
		})
		if err != nil {
			return to, err
		}
	}
	if !found || subtle.ConstantTimeCompare([]byte(p.stopToken(to.ID, to.User)), []byte(token)) != 1 {
		return to, mxerr.NotFound("this link is not valid any more")
	}
	return to, nil
}

// StopEmail removes the pusher that a link in a mail belongs to.
func (p *Push) StopEmail(ctx context.Context, token string) error {
	to, err := p.EmailOf(ctx, token)
	if err != nil {
		return err
	}
	return p.Store.Write(ctx, func(tx *store.Tx) error { return tx.DeletePusher(to.User, to.AppID, to.Pushkey) })
}
