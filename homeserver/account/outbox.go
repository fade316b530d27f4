package account

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/sync/errgroup"

	"github.com/moothall/moothall/homeserver/store"
)

// Mail is a mail to be sent.
type Mail struct {
	ID   string // the same at every attempt
	To   string
	Kind string
	Lang string
	Data MailData
}

// ErrMailRefused is in the chain of an error that trying again will not mend.
var ErrMailRefused = errors.New("the mail was refused")

// OutboxDeps is what the outbox works with.
type OutboxDeps struct {
	Store  *store.Store
	Logger *slog.Logger
	// Send sends one mail within its context's time; nil: this server sends no mail.
	Send  func(ctx context.Context, m Mail) error
	Clock func() time.Time // nil: time.Now
}

// Outbox sends the mails that wait in the database. Any number of processes may have one: each mail is sent by one of
// them, and once more only where a process ended between sending and noting it.
type Outbox struct {
	OutboxDeps
	kick chan struct{}
}

// NewOutbox makes an Outbox.
func NewOutbox(d OutboxDeps) *Outbox {
	if d.Clock == nil {
		d.Clock = time.Now
	}
	return &Outbox{OutboxDeps: d, kick: make(chan struct{}, 1)}
}

const (
	mailsAtOnce = 4
	mailTimeout = 30 * time.Second
	mailLease   = 2 * time.Minute // longer than mailTimeout: then another process may try
	mailPoll    = 10 * time.Second
)

// Kick says that a mail was queued.
func (o *Outbox) Kick() {
	select {
	case o.kick <- struct{}{}:
	default:
	}
}

// Run sends what is due until ctx ends.
func (o *Outbox) Run(ctx context.Context) error {
	if o.Send == nil {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(mailPoll)
	defer tick.Stop()
	for {
		if err := o.flush(ctx); err != nil && ctx.Err() == nil {
			o.Logger.Warn("send mail", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-o.kick:
		case <-tick.C:
		}
	}
}

// flush sends until nothing is due.
func (o *Outbox) flush(ctx context.Context) error {
	for {
		now := o.Clock().UnixMilli()
		due := false
		if err := o.Store.Read(ctx, func(tx *store.Tx) (err error) {
			due, err = tx.MailDue(now)
			return err
		}); err != nil || !due {
			return err
		}
		var mails []store.Mail
		if err := o.Store.Write(ctx, func(tx *store.Tx) (err error) {
			mails, err = tx.ClaimMails(now, now+mailLease.Milliseconds(), mailsAtOnce)
			return err
		}); err != nil || len(mails) == 0 {
			return err
		}
		var g errgroup.Group
		for _, m := range mails {
			g.Go(func() error { return o.deliver(ctx, m) })
		}
		if err := g.Wait(); err != nil {
			return err
		}
	}
}

// deliver sends one mail and notes what became of it.
func (o *Outbox) deliver(ctx context.Context, m store.Mail) error {
	err := o.send(ctx, m)
	// What was sent is noted also when the server stops meanwhile.
	ctx = context.WithoutCancel(ctx)
	now := o.Clock().UnixMilli()
	wait := mailBackoff(m.Attempts).Milliseconds()
	giveUp := errors.Is(err, ErrMailRefused) || now+wait >= m.Created+emailLifetime.Milliseconds()
	if err != nil {
		// The address is the user's: it is not logged.
		o.Logger.Warn("a mail could not be sent", "mail", m.ID, "kind", m.Kind, "attempt", m.Attempts, "given_up", giveUp, "error", err)
	}
	return o.Store.Write(ctx, func(tx *store.Tx) error {
		if err == nil || giveUp {
			return tx.DeleteMail(m.ID)
		}
		return tx.RetryMail(m.ID, now+wait)
	})
}

func (o *Outbox) send(ctx context.Context, m store.Mail) error {
	var data MailData
	if err := json.Unmarshal(m.Data, &data); err != nil {
		return errors.Join(ErrMailRefused, err)
	}
	ctx, cancel := context.WithTimeout(ctx, mailTimeout)
	defer cancel()
	return o.Send(ctx, Mail{ID: m.ID, To: m.To, Kind: m.Kind, Lang: m.Lang, Data: data})
}

// mailBackoff is how long to wait after a failed attempt: 5 s, 20 s, 80 s … 20 min.
func mailBackoff(attempt int64) time.Duration {
	wait := 5 * time.Second
	for ; attempt > 1 && wait < 20*time.Minute; attempt-- {
		wait *= 4
	}
	return min(wait, 20*time.Minute)
}
