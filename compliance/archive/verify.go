package archive

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/store"
)

// Report is what Verify found.
type Report struct {
	Batches, Entries int64 // checked
	Pending          int64 // events that are not archived yet
	Noted            int64 // heads that the audit log names and the chain has
	Head             string
	// Problems are what is broken, in the order of the chain; the first one is the first broken entry.
	Problems []Problem
}

// Problem is one place where the archive is not what was signed.
type Problem struct {
	Batch int64
	NID   int64  // the entry's number; 0 where it is the batch
	Event string // its event id where there is one
	What  string
}

// String implements fmt.Stringer.
func (p Problem) String() string {
	switch {
	case p.NID == 0:
		return fmt.Sprintf("batch %d: %s", p.Batch, p.What)
	case p.Event == "":
		return fmt.Sprintf("batch %d, entry %d: %s", p.Batch, p.NID, p.What)
	}
	return fmt.Sprintf("batch %d, entry %d (%s): %s", p.Batch, p.NID, p.Event, p.What)
}

const maxProblems = 100

// Verify checks the whole archive against its chain, and the chain against the heads in the audit log. A head (Report.Head)
// that was noted elsewhere, or "", must be in the chain too.
func (a *Archive) Verify(ctx context.Context, noted string) (Report, error) {
	if len(a.Key.Private) == 0 {
		return Report{}, errors.New("without the server's signing key the archive cannot be verified")
	}
	v := &verifier{a: a, public: a.Key.Private.Public().(ed25519.PublicKey), wanted: map[int64][]wantedHead{}}
	if noted != "" {
		if err := v.want(noted, "elsewhere"); err != nil {
			return Report{}, err
		}
	}
	if err := v.readHeads(ctx); err != nil {
		return Report{}, err
	}
	err := v.run(ctx)
	return v.Report, err
}

type wantedHead struct {
	hash  []byte
	where string
}

type verifier struct {
	Report
	a      *Archive
	public ed25519.PublicKey
	head   store.ArchiveHead
	wanted map[int64][]wantedHead // by number
}

func (v *verifier) want(head, where string) error {
	number, hash, _ := strings.Cut(head, ":")
	n, err1 := strconv.ParseInt(number, 10, 64)
	h, err2 := hex.DecodeString(hash)
	if err1 != nil || err2 != nil || len(h) != sha256.Size || n < 1 {
		return fmt.Errorf("%q is no head: it is written as number:hash, as an earlier verification showed it", head)
	}
	v.wanted[n] = append(v.wanted[n], wantedHead{h, where})
	return nil
}

// readHeads reads which heads the audit log names.
func (v *verifier) readHeads(ctx context.Context) error {
	f := audit.Filter{Actions: []string{action}, OldestFirst: true, Limit: 1000}
	for {
		page, err := v.a.Audit.Query(ctx, f)
		if err != nil {
			return err
		}
		for _, e := range page.Entries {
			if err := v.want(e.Target, "in the audit log"); err != nil {
				v.problem(0, 0, "", "the audit log names a head that is none: "+e.Target)
			}
		}
		if f.Page = page.Next; f.Page == "" {
			return nil
		}
	}
}

func (v *verifier) problem(batch, nid int64, event, what string) {
	if len(v.Problems) < maxProblems {
		v.Problems = append(v.Problems, Problem{batch, nid, event, what})
	}
}

func (v *verifier) run(ctx context.Context) error {
	found := false
	err := v.a.Store.Read(ctx, func(tx *store.Tx) (err error) {
		if v.head, found, err = tx.ArchiveHead(); err != nil {
			return err
		}
		v.Pending, err = tx.CountUnarchived(v.head.NID)
		return err
	})
	if err != nil {
		return err
	}
	if !found {
		v.head.Hash = v.a.genesis()
		v.Pending = 0
	}
	v.Head = headName(v.head.Number, v.head.Hash)
	at, last, prev := int64(0), int64(-1<<62), v.a.genesis()
	for at < v.head.Number && len(v.Problems) < maxProblems {
		var b *store.ArchiveBatch
		var rows []store.ArchiveEntry
		err := v.a.Store.Read(ctx, func(tx *store.Tx) error {
			batches, err := tx.ArchiveBatches(at, 1)
			if err != nil || len(batches) == 0 || batches[0].Number > v.head.Number {
				return err
			}
			b = &batches[0]
			rows, err = tx.ArchiveRange(last, b.LastNID, batchSize+maxProblems)
			return err
		})
		if err != nil {
			return err
		}
		until := v.head.Number + 1
		if b != nil {
			until = b.Number
		}
		for at++; at < until && len(v.Problems) < maxProblems; at++ {
			v.problem(at, 0, "", "the batch was removed")
			prev = nil
		}
		if b == nil {
			break
		}
		if prev == nil && len(rows) > 0 { // entries of the batches that are gone are not this one's
			for len(rows) > 0 && rows[0].NID < b.FirstNID {
				rows = rows[1:]
			}
		}
		at = b.Number
		v.checkBatch(b, prev)
		v.checkEntries(b, rows)
		prev, last = b.Hash, b.LastNID
	}
	if prev != nil && !bytes.Equal(prev, v.head.Hash) {
		v.problem(v.head.Number, 0, "", "the chain does not end with the hash that is noted as its head")
	}
	for number, heads := range v.wanted {
		for _, w := range heads {
			v.problem(number, 0, "", "the head that is noted "+w.where+" is not in the chain: it was rewritten or cut off")
		}
	}
	return v.checkStrays(ctx, last)
}

func (v *verifier) checkBatch(b *store.ArchiveBatch, prev []byte) {
	v.Batches++
	header := batchHeader(b)
	hash := sha256.Sum256(header)
	switch {
	case !bytes.Equal(hash[:], b.Hash):
		v.problem(b.Number, 0, "", "the batch was changed: its hash is another")
	case !ed25519.Verify(v.public, header, b.Signature):
		v.problem(b.Number, 0, "", "the batch is not signed by this server's key")
	case prev != nil && !bytes.Equal(prev, b.Prev):
		v.problem(b.Number, 0, "", "the batch does not follow the one before it")
	}
	for _, w := range v.wanted[b.Number] {
		if bytes.Equal(w.hash, b.Hash) {
			v.Noted++
		} else {
			v.problem(b.Number, 0, "", "the batch is another than the one that is noted "+w.where)
		}
	}
	delete(v.wanted, b.Number)
}

// checkEntries compares the entries of a batch, in their order, with what the batch says of them.
func (v *verifier) checkEntries(b *store.ArchiveBatch, rows []store.ArchiveEntry) {
	if len(b.Leaves)%leaf != 0 || int64(len(b.Leaves)/leaf) != b.Count {
		v.problem(b.Number, 0, "", "the batch's list of entries is damaged")
		return
	}
	v.Entries += int64(len(rows))
	for leaves := b.Leaves; (len(leaves) > 0 || len(rows) > 0) && len(v.Problems) < maxProblems; {
		number := int64(0)
		if len(leaves) > 0 {
			number = int64(binary.BigEndian.Uint64(leaves))
		}
		switch {
		case len(leaves) == 0 || len(rows) > 0 && rows[0].NID < number:
			v.problem(b.Number, rows[0].NID, rows[0].EventID, "the entry was inserted")
			rows = rows[1:]
		case len(rows) == 0 || rows[0].NID > number:
			v.problem(b.Number, number, "", "the entry was removed")
			leaves = leaves[leaf:]
		default:
			if h := leafHash(&rows[0]); !bytes.Equal(h[:], leaves[8:leaf]) {
				v.problem(b.Number, rows[0].NID, rows[0].EventID, "the entry was changed")
			}
			rows, leaves = rows[1:], leaves[leaf:]
		}
	}
}

// checkStrays looks for entries behind the last batch.
func (v *verifier) checkStrays(ctx context.Context, last int64) error {
	var rows []store.ArchiveEntry
	err := v.a.Store.Read(ctx, func(tx *store.Tx) error {
		now, found, err := tx.ArchiveHead()
		if err != nil || !found && v.head.Number > 0 {
			return err
		}
		if rows, err = tx.ArchiveRange(max(now.NID, last), 1<<62, 1); err != nil || len(rows) > 0 || now.Number > v.head.Number {
			return err
		}
		rows, err = tx.ArchiveRange(last, 1<<62, 1)
		return err
	})
	if err == nil && len(rows) > 0 {
		v.problem(0, rows[0].NID, rows[0].EventID, "the entry is in no batch: it was inserted")
	}
	return err
}
