// Package archive keeps every event as it was sent: messages and their edits, what was redacted with what it said, memberships.
// Nothing that happens to rooms changes it. Entries are chained by hash in batches, each signed with the server's key, and the
// chain's head is written into the audit log, so that a change is found.
package archive

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/tidwall/gjson"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/store"
)

const (
	gather    = time.Second           // how long new events gather before they are archived together
	breathe   = 20 * time.Millisecond // between full batches: what lags lets those who chat go first
	noteEvery = 10 * time.Minute      // between entries of the audit log that name the head
	batchSize = 256                   // entries: more would hold SQLite's only writer for too long
	endTime   = 5 * time.Second       // for the last batch at shutdown
	leaf      = 8 + sha256.Size       // bytes of an entry in a batch: number and hash
	action    = "archive.head"        // the audit entries that name heads
	lease     = "archive"             // one process at a time writes
)

// Deps is what an Archive works with.
type Deps struct {
	Store      *store.Store
	Audit      *audit.Log
	Logger     *slog.Logger
	ServerName string
	Key        event.SigningKey // signs the chain
	Clock      func() time.Time // nil: time.Now
}

// Archive copies events into the archive.
type Archive struct{ Deps }

// New makes an Archive; nothing runs before Run.
func New(d Deps) *Archive {
	if d.Clock == nil {
		d.Clock = time.Now
	}
	return &Archive{d}
}

// Run archives what is sent, on one process at a time, until ctx ends. It reads the events by their numbers, which commits
// give in order, so it may lag for any time: what is deleted before it was read is kept for it by whoever deletes.
func (a *Archive) Run(ctx context.Context) error {
	if len(a.Key.Private) == 0 {
		return errors.New("without the server's signing key there is no archive")
	}
	return a.Store.RunLeased(ctx, lease, a.work)
}

func (a *Archive) work(ctx context.Context) error {
	for {
		n, err := a.Step(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return a.end(ctx)
			}
			return err
		}
		if n < batchSize {
			if err := a.note(ctx, noteEvery); err != nil && ctx.Err() == nil {
				return err
			}
		}
		wait := gather
		if n == batchSize {
			wait = breathe
		}
		select {
		case <-ctx.Done():
			return a.end(ctx)
		case <-time.After(wait):
		}
	}
}

// end archives what waits and names the head in the audit log.
func (a *Archive) end(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTime)
	defer cancel()
	for {
		n, err := a.Step(ctx)
		if err != nil {
			return err
		}
		if n < batchSize {
			return a.Note(ctx)
		}
	}
}

// Stop lets go of what is kept for the archive when it is deleted, for a server whose archive is switched off. What is in the
// archive stays.
func Stop(ctx context.Context, st *store.Store) error {
	return st.Write(ctx, func(tx *store.Tx) error {
		was, err := tx.StopArchive()
		if err != nil || !was {
			return err
		}
		return audit.Append(ctx, tx, audit.Entry{Source: audit.Source{Kind: audit.KindSystem}, Action: "archive.stopped", Reason: "the archive is switched off in the configuration"})
	})
}

// genesis is what the first batch of this server is chained to.
func (a *Archive) genesis() []byte {
	h := sha256.Sum256([]byte("moothall-archive-genesis-1\x00" + a.ServerName))
	return h[:]
}

// All archives everything that waits.
func (a *Archive) All(ctx context.Context) error {
	for {
		n, err := a.Step(ctx)
		if err != nil || n < batchSize {
			return err
		}
	}
}

// Step archives the next events, at most batchSize, and returns how many there were.
func (a *Archive) Step(ctx context.Context) (int, error) {
	var head store.ArchiveHead
	found := false
	var entries []store.ArchiveEntry
	err := a.Store.Read(ctx, func(tx *store.Tx) (err error) {
		if head, found, err = tx.ArchiveHead(); err != nil || !found || !head.Active {
			return err
		}
		entries, err = tx.Unarchived(head.NID, batchSize)
		return err
	})
	if err != nil {
		return 0, err
	}
	if !found || !head.Active {
		err := a.Store.Write(ctx, func(tx *store.Tx) error {
			if err := tx.InitArchive(a.genesis()); err != nil {
				return err
			}
			return audit.Append(ctx, tx, audit.Entry{Source: audit.Source{Kind: audit.KindSystem}, Action: "archive.started"})
		})
		return batchSize, err // look again at once
	}
	if len(entries) == 0 {
		return 0, nil
	}
	now := a.Clock().UnixMilli()
	for i := range entries {
		entries[i].Archived = now
		describe(&entries[i])
	}
	b := a.batch(&head, entries, now)
	err = a.Store.Write(ctx, func(tx *store.Tx) error {
		is, err := tx.LockArchiveHead()
		if err != nil {
			return err
		}
		if is.Number != head.Number || is.NID != head.NID {
			return fmt.Errorf("another process wrote batch %d of the archive", is.Number)
		}
		return tx.AddArchiveBatch(b, entries)
	})
	return len(entries), err
}

var memberships = map[string]int64{"invite": 1, "join": 2, "leave": 3, "ban": 4, "knock": 5}

// describe reads out of an event what the archive is asked for.
func describe(e *store.ArchiveEntry) {
	f := gjson.GetManyBytes(e.Body, "type", "state_key", "content.membership", "redacts", "content.redacts", `content.m\.relates_to.rel_type`, `content.m\.relates_to.event_id`)
	switch {
	case f[0].Str == "m.room.member" && f[1].Type == gjson.String:
		e.Membership, e.User = memberships[f[2].Str], f[1].Str
	case f[0].Str == "m.room.redaction":
		if e.Target = f[3].Str; e.Target == "" {
			e.Target = f[4].Str
		}
	case f[5].Str == "m.replace":
		e.Target = f[6].Str
	}
}

// batch makes the next link of the chain.
func (a *Archive) batch(head *store.ArchiveHead, entries []store.ArchiveEntry, now int64) store.ArchiveBatch {
	b := store.ArchiveBatch{
		Number: head.Number + 1, FirstNID: entries[0].NID, LastNID: entries[len(entries)-1].NID, Count: int64(len(entries)),
		Created: now, Prev: head.Hash, KeyID: a.Key.KeyID, Leaves: make([]byte, 0, leaf*len(entries)),
	}
	for i := range entries {
		b.Leaves = binary.BigEndian.AppendUint64(b.Leaves, uint64(entries[i].NID))
		h := leafHash(&entries[i])
		b.Leaves = append(b.Leaves, h[:]...)
	}
	header := batchHeader(&b)
	hash := sha256.Sum256(header)
	b.Hash, b.Signature = hash[:], ed25519.Sign(a.Key.Private, header)
	return b
}

// leafHash is of every stored field, behind its length, so that no two entries have the same bytes.
func leafHash(e *store.ArchiveEntry) [sha256.Size]byte {
	h := sha256.New()
	h.Write([]byte("moothall-archive-entry-1\x00"))
	var n [8]byte
	for _, v := range []int64{e.NID, e.Room, e.Ord, e.Status, e.TS, e.Archived, e.Membership} {
		binary.BigEndian.PutUint64(n[:], uint64(v))
		h.Write(n[:])
	}
	for _, s := range [][]byte{[]byte(e.EventID), []byte(e.User), []byte(e.Target), e.Body} {
		binary.BigEndian.PutUint64(n[:], uint64(len(s)))
		h.Write(n[:])
		h.Write(s)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// batchHeader is what is hashed and signed of a batch.
func batchHeader(b *store.ArchiveBatch) []byte {
	out := []byte("moothall-archive-batch-1\x00")
	for _, n := range []int64{b.Number, b.FirstNID, b.LastNID, b.Count, b.Created} {
		out = binary.BigEndian.AppendUint64(out, uint64(n))
	}
	root := sha256.Sum256(b.Leaves)
	out = append(out, root[:]...)
	out = binary.BigEndian.AppendUint32(out, uint32(len(b.Prev)))
	out = append(out, b.Prev...)
	return append(out, b.KeyID...)
}

// Note writes the chain's head into the audit log, if it is another than the one that was written last.
func (a *Archive) Note(ctx context.Context) error { return a.note(ctx, 0) }

func (a *Archive) note(ctx context.Context, every time.Duration) error {
	now := a.Clock().UnixMilli()
	due := func(tx *store.Tx) (bool, error) {
		head, found, err := tx.ArchiveHead()
		return found && head.Number > head.Noted && now-head.NotedAt >= every.Milliseconds(), err
	}
	is := false
	err := a.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
		is, err = due(tx)
		return err
	})
	if err != nil || !is {
		return err
	}
	return a.Store.Write(ctx, func(tx *store.Tx) error {
		head, err := tx.LockArchiveHead()
		if err != nil || head.Number <= head.Noted {
			return err
		}
		if err := tx.NoteArchive(head.Number, now); err != nil {
			return err
		}
		return audit.Append(ctx, tx, audit.Entry{
			Source: audit.Source{Kind: audit.KindSystem}, Action: action, Target: headName(head.Number, head.Hash),
			Details: map[string]any{"batch": head.Number, "up_to_event": head.NID},
		})
	})
}

// headName writes a head as it is noted.
func headName(number int64, hash []byte) string { return fmt.Sprintf("%d:%x", number, hash) }
