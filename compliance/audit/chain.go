package audit

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/moothall/moothall/homeserver/store"
)

const (
	chainEvery = 2 * time.Second
	cutEvery   = time.Hour
	batchSize  = 60 // entries: more would hold SQLite's only writer for too long
	leafLength = idLength + sha256.Size
)

// Run takes care of the log until ctx ends: each process writes the refusals that it has counted, and one at a time chains new
// entries, exports them, and removes what has been kept for long enough.
func (l *Log) Run(ctx context.Context) error {
	var g errgroup.Group
	g.Go(func() error { return l.keepRefusals(ctx) })
	g.Go(func() error { return l.Store.RunLeased(ctx, "audit", l.care) })
	err := g.Wait()
	l.end(ctx)
	return err
}

// keepRefusals writes what was counted in each span of time.
func (l *Log) keepRefusals(ctx context.Context) error {
	tick := time.NewTicker(chainEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if l.refusals.over(l.Clock()) {
			if err := l.flushRefusals(ctx); err != nil && ctx.Err() == nil {
				l.Logger.Error("refusals cannot be written into the audit log", "error", err)
			}
		}
	}
}

// care is what one process at a time does. The chain's row is made where there is none yet.
func (l *Log) care(ctx context.Context) error {
	err := l.Store.Write(ctx, func(tx *store.Tx) error { return tx.InitAuditHead(l.genesis()) })
	if err != nil {
		return err
	}
	tick := time.NewTicker(chainEvery)
	defer tick.Stop()
	var cut, complained time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		err := l.Chain(ctx)
		if err == nil {
			err = l.export(ctx)
		}
		if now := time.Now(); err == nil && now.Sub(cut) >= cutEvery {
			cut = now
			err = l.Cut(ctx)
		}
		l.complain(ctx, &complained, err)
	}
}

// complain logs trouble that lasts once in a while.
func (l *Log) complain(ctx context.Context, last *time.Time, err error) {
	if err == nil || ctx.Err() != nil || time.Since(*last) < 30*time.Second {
		return
	}
	*last = time.Now()
	l.Logger.Warn("take care of the audit log", "error", err)
}

// end writes what is still in memory.
func (l *Log) end(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := errors.Join(l.flushRefusals(ctx), l.Chain(ctx)); err != nil {
		l.Logger.Warn("end the care of the audit log", "error", err)
	}
	l.exporter.close()
}

// genesis is what the first batch of this server is chained to.
func (l *Log) genesis() []byte {
	h := sha256.Sum256([]byte("moothall-audit-genesis-1\x00" + l.ServerName))
	return h[:]
}

// Chain puts all entries that wait into the chain.
func (l *Log) Chain(ctx context.Context) error {
	if len(l.Key.Private) == 0 {
		return nil
	}
	for {
		waiting := false
		err := l.Store.Read(ctx, func(tx *store.Tx) error {
			rows, err := tx.AuditPending(1)
			waiting = len(rows) > 0
			return err
		})
		if err != nil || !waiting {
			return err
		}
		if err := l.Store.Write(store.Riding(ctx), l.chainBatch); err != nil {
			return err
		}
	}
}

// chainBatch makes the next batch of entries that wait. The lock of the head's row makes it one process at a time, lease
// or none.
func (l *Log) chainBatch(tx *store.Tx) error {
	if err := tx.InitAuditHead(l.genesis()); err != nil {
		return err
	}
	head, err := tx.LockAuditHead()
	if err != nil {
		return err
	}
	rows, err := tx.AuditPending(batchSize)
	if err != nil || len(rows) == 0 {
		return err
	}
	b := store.AuditBatch{
		Number: head.Number + 1, FirstTS: rows[0].Time, LastTS: rows[0].Time, Count: int64(len(rows)),
		Created: l.Clock().UnixMilli(), Prev: head.Hash, KeyID: l.Key.KeyID,
	}
	ids := make([]string, len(rows))
	for i := range rows {
		ids[i] = rows[i].ID
		b.FirstTS, b.LastTS = min(b.FirstTS, rows[i].Time), max(b.LastTS, rows[i].Time)
		b.Leaves = append(b.Leaves, rows[i].ID...)
		b.Leaves = append(b.Leaves, leafHash(&rows[i])...)
	}
	header := batchHeader(&b)
	hash := sha256.Sum256(header)
	b.Hash, b.Signature = hash[:], ed25519.Sign(l.Key.Private, header)
	return tx.AddAuditBatch(b, ids)
}

func leafHash(e *store.AuditEntry) []byte {
	h := sha256.Sum256(canonical(e))
	return h[:]
}

// batchHeader is what is hashed and signed of a batch.
func batchHeader(b *store.AuditBatch) []byte {
	out := []byte("moothall-audit-batch-1\x00")
	for _, n := range []int64{b.Number, b.FirstTS, b.LastTS, b.Count, b.Created} {
		out = binary.BigEndian.AppendUint64(out, uint64(n))
	}
	root := sha256.Sum256(b.Leaves)
	out = append(out, root[:]...)
	out = binary.BigEndian.AppendUint32(out, uint32(len(b.Prev)))
	out = append(out, b.Prev...)
	return append(out, b.KeyID...)
}

// anchorStatement is what is signed of the place where the kept part of the chain begins.
func anchorStatement(h *store.AuditHead) []byte {
	out := []byte("moothall-audit-anchor-1\x00")
	for _, n := range []int64{h.Anchor, h.AnchorLastTS, h.AnchorAt} {
		out = binary.BigEndian.AppendUint64(out, uint64(n))
	}
	out = append(out, h.AnchorHash...)
	return append(out, h.AnchorKeyID...)
}

// Cut removes batches whose entries are all older than the time they are kept for, oldest first. Where the kept part
// begins is signed, and what was removed is an entry.
func (l *Log) Cut(ctx context.Context) error {
	if len(l.Key.Private) == 0 {
		return nil
	}
	now := l.Clock()
	limit := now.Add(-l.Config.Keep).UnixMilli()
	batches, entries := int64(0), int64(0)
	var last store.AuditBatch
	for {
		done := false
		err := l.Store.Write(ctx, func(tx *store.Tx) error {
			done = true
			if err := tx.InitAuditHead(l.genesis()); err != nil {
				return err
			}
			head, err := tx.LockAuditHead()
			if err != nil {
				return err
			}
			next, err := tx.AuditBatches(head.Anchor, 1)
			if err != nil || len(next) == 0 || next[0].LastTS >= limit || next[0].Created >= limit {
				return err
			}
			done, last = false, next[0]
			head.Anchor, head.AnchorHash, head.AnchorLastTS = last.Number, last.Hash, last.LastTS
			head.AnchorAt, head.AnchorKeyID = now.UnixMilli(), l.Key.KeyID
			head.AnchorSignature = ed25519.Sign(l.Key.Private, anchorStatement(&head))
			return tx.CutAudit(head)
		})
		if err != nil {
			return err
		}
		if done {
			break
		}
		batches++
		entries += last.Count
	}
	if batches == 0 {
		return nil
	}
	return l.Record(ctx, Entry{
		Action: "audit.cut", Source: Source{Kind: KindSystem},
		Details: map[string]any{"batches": batches, "entries": entries, "up_to_batch": last.Number, "up_to": last.LastTS, "kept_days": int64(l.Config.Keep.Hours() / 24)},
	})
}
