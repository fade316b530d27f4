package audit

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/moothall/moothall/homeserver/store"
)

// Report is what Verify found.
type Report struct {
	Batches, Entries int64 // checked
	Pending          int64 // entries that are not chained yet
	// Head names the chain's end as it is to be noted elsewhere: number and hash of the newest batch.
	Head string
	// Cut tells how many batches were removed because their time was over.
	Cut int64
	// Problems are what is broken, in the order of the chain; the first one is the first broken entry.
	Problems []Problem
}

// Problem is one place where the log is not what was signed.
type Problem struct {
	Batch int64
	Entry string // id; "" where it is the batch
	What  string
}

// String implements fmt.Stringer.
func (p Problem) String() string {
	if p.Entry == "" {
		return fmt.Sprintf("batch %d: %s", p.Batch, p.What)
	}
	return fmt.Sprintf("batch %d, entry %s: %s", p.Batch, p.Entry, p.What)
}

const (
	verifyChunk = 10 // batches read in one transaction
	maxProblems = 100
)

// Verify checks the whole log against its chain.
func (l *Log) Verify(ctx context.Context) (Report, error) { return l.VerifyHead(ctx, "") }

// VerifyHead is Verify that also looks for a head (Report.Head) that was noted before: whoever holds the server's key could
// write another chain, but not one that has it.
func (l *Log) VerifyHead(ctx context.Context, noted string) (Report, error) {
	if len(l.Key.Private) == 0 {
		return Report{}, errors.New("without the server's signing key the audit log cannot be verified")
	}
	v := verifier{l: l}
	if noted != "" {
		number, hash, _ := strings.Cut(noted, ":")
		n, err1 := strconv.ParseInt(number, 10, 64)
		h, err2 := hex.DecodeString(hash)
		if err1 != nil || err2 != nil || len(h) != sha256.Size || n < 1 {
			return Report{}, errors.New("a head is written as number:hash, as an earlier verification showed it")
		}
		v.noted, v.notedHash = n, h
	}
	for {
		again, err := v.pass(ctx)
		if err != nil || !again {
			return v.Report, err
		}
	}
}

type verifier struct {
	Report
	l         *Log
	head      store.AuditHead
	noted     int64
	notedHash []byte
	sawNoted  bool
}

// verifyPart is what one read transaction gives.
type verifyPart struct {
	batches []store.AuditBatch
	entries map[int64][]store.AuditEntry
}

// pass goes through the chain once. again: old batches were removed meanwhile, and it begins anew.
func (v *verifier) pass(ctx context.Context) (again bool, err error) {
	v.Report = Report{}
	found := false
	err = v.l.Store.Read(ctx, func(tx *store.Tx) error {
		if v.head, found, err = tx.AuditHead(); err != nil {
			return err
		}
		v.Pending, err = tx.CountAuditPending()
		return err
	})
	if err != nil {
		return false, err
	}
	if !found {
		v.head = store.AuditHead{Hash: v.l.genesis(), AnchorHash: v.l.genesis()}
	}
	v.Cut = v.head.Anchor
	v.Head = fmt.Sprintf("%d:%x", v.head.Number, v.head.Hash)
	v.checkAnchor()
	at, prev := v.head.Anchor, v.head.AnchorHash
	for at < v.head.Number && len(v.Problems) < maxProblems {
		part, cut, err := v.read(ctx, at)
		if err != nil || cut {
			return cut, err
		}
		for i := range part.batches {
			b := &part.batches[i]
			if b.Number > v.head.Number {
				break
			}
			for at++; at < b.Number && len(v.Problems) < maxProblems; at++ {
				v.problem(at, "", "the batch was removed")
				prev = nil
			}
			at = b.Number
			v.checkBatch(b, prev)
			v.checkEntries(b, part.entries[b.Number])
			prev = b.Hash
		}
		if len(part.batches) == 0 || part.batches[len(part.batches)-1].Number > v.head.Number {
			for at++; at <= v.head.Number && len(v.Problems) < maxProblems; at++ {
				v.problem(at, "", "the batch was removed")
				prev = nil
			}
			break
		}
	}
	if prev != nil && !bytes.Equal(prev, v.head.Hash) {
		v.problem(v.head.Number, "", "the chain does not end with the hash that is noted as its head")
	}
	if v.noted != 0 && !v.sawNoted {
		v.problem(v.noted, "", "the chain does not have the head that was noted elsewhere: it was rewritten or cut off")
	}
	return false, v.checkStrays(ctx)
}

func (v *verifier) problem(batch int64, entry, what string) {
	v.Problems = append(v.Problems, Problem{Batch: batch, Entry: entry, What: what})
}

// read reads the next batches and their entries in one snapshot.
func (v *verifier) read(ctx context.Context, after int64) (verifyPart, bool, error) {
	part := verifyPart{entries: map[int64][]store.AuditEntry{}}
	cut := false
	err := v.l.Store.Read(ctx, func(tx *store.Tx) error {
		now, _, err := tx.AuditHead()
		if err != nil {
			return err
		}
		if now.Anchor > after && now.Anchor != v.head.Anchor {
			cut = true
			return nil
		}
		if part.batches, err = tx.AuditBatches(after, verifyChunk); err != nil {
			return err
		}
		for _, b := range part.batches {
			if part.entries[b.Number], err = tx.AuditOfBatch(b.Number); err != nil {
				return err
			}
		}
		return nil
	})
	return part, cut, err
}

func (v *verifier) public() ed25519.PublicKey { return v.l.Key.Private.Public().(ed25519.PublicKey) }

func (v *verifier) checkAnchor() {
	h := &v.head
	if h.Anchor == v.noted {
		v.sawNoted = v.noted != 0 && bytes.Equal(h.AnchorHash, v.notedHash)
	} else if h.Anchor > v.noted {
		v.sawNoted = true // it was removed in its time; the anchor is signed
	}
	switch {
	case h.Anchor == 0:
		if !bytes.Equal(h.AnchorHash, v.l.genesis()) {
			v.problem(0, "", "the chain does not begin with this server's name")
		}
	case !ed25519.Verify(v.public(), anchorStatement(h), h.AnchorSignature):
		v.problem(h.Anchor, "", "the place where old batches were cut off is not signed by this server")
	case h.AnchorLastTS > h.AnchorAt-MinKeep.Milliseconds():
		v.problem(h.Anchor, "", "batches were removed before their time")
	}
}

func (v *verifier) checkBatch(b *store.AuditBatch, prev []byte) {
	v.Batches++
	header := batchHeader(b)
	hash := sha256.Sum256(header)
	switch {
	case !bytes.Equal(hash[:], b.Hash):
		v.problem(b.Number, "", "the batch was changed: its hash is another")
	case !ed25519.Verify(v.public(), header, b.Signature):
		v.problem(b.Number, "", "the batch is not signed by this server's key")
	case prev != nil && !bytes.Equal(prev, b.Prev):
		v.problem(b.Number, "", "the batch does not follow the one before it")
	case b.Number == v.noted && !bytes.Equal(b.Hash, v.notedHash):
		v.problem(b.Number, "", "the batch is another than the one that was noted elsewhere")
	}
	if b.Number == v.noted {
		v.sawNoted = true
	}
}

// checkEntries compares the entries of a batch, in the order of their ids, with what the batch says of them.
func (v *verifier) checkEntries(b *store.AuditBatch, rows []store.AuditEntry) {
	if len(b.Leaves)%leafLength != 0 || int64(len(b.Leaves)/leafLength) != b.Count {
		v.problem(b.Number, "", "the batch's list of entries is damaged")
		return
	}
	v.Entries += int64(len(rows))
	leaves := b.Leaves
	for len(leaves) > 0 || len(rows) > 0 {
		switch {
		case len(leaves) == 0 || (len(rows) > 0 && rows[0].ID < string(leaves[:idLength])):
			v.problem(b.Number, rows[0].ID, "the entry was inserted")
			rows = rows[1:]
		case len(rows) == 0 || rows[0].ID > string(leaves[:idLength]):
			v.problem(b.Number, string(leaves[:idLength]), "the entry was removed")
			leaves = leaves[leafLength:]
		default:
			if !bytes.Equal(leafHash(&rows[0]), leaves[idLength:leafLength]) {
				v.problem(b.Number, rows[0].ID, "the entry was changed")
			}
			rows, leaves = rows[1:], leaves[leafLength:]
		}
		if len(v.Problems) >= maxProblems {
			return
		}
	}
}

// checkStrays looks for entries that claim to be of batches that do not exist.
func (v *verifier) checkStrays(ctx context.Context) error {
	var first string
	var n int64
	err := v.l.Store.Read(ctx, func(tx *store.Tx) error {
		now, found, err := tx.AuditHead()
		if err != nil || !found {
			return err
		}
		first, n, err = tx.AuditStrays(now.Anchor, now.Number)
		return err
	})
	if err == nil && n > 0 {
		v.problem(0, first, fmt.Sprintf("%d entries name batches that do not exist", n))
	}
	return err
}
