package media

import (
	"context"
	"encoding/hex"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/moothall/moothall/homeserver/store"
)

const (
	// noteUseAfter is how old the note of a file's last use gets before it is written anew: what all look at costs two writes a day.
	noteUseAfter = 12 * time.Hour
	noteUseEvery = 30 * time.Second
	maxNoted     = 20_000
)

// uses gathers which files are fetched, until that is written down.
type uses struct {
	mu    sync.Mutex
	files map[string]bool // by media id
}

// noteUse notes that a user fetches a file.
func (m *Media) noteUse(f *store.Media, now time.Time) {
	if f.Origin != m.ServerName || now.UnixMilli()-f.Accessed < noteUseAfter.Milliseconds() {
		return
	}
	m.used.mu.Lock()
	defer m.used.mu.Unlock()
	if m.used.files == nil {
		m.used.files = map[string]bool{}
	}
	if len(m.used.files) < maxNoted { // else the database has been away for long; the next one to fetch it is noted
		m.used.files[f.ID] = true
	}
}

// writeUses writes down what noteUse gathered. What cannot be written is kept for the next time.
func (m *Media) writeUses(ctx context.Context, now time.Time) error {
	m.used.mu.Lock()
	files := make([]string, 0, len(m.used.files))
	for f := range m.used.files {
		files = append(files, f)
	}
	m.used.mu.Unlock()
	slices.Sort(files) // processes that note the same files do so in one order
	for chunk := range slices.Chunk(files, cleanChunk) {
		if err := m.Store.Write(ctx, func(tx *store.Tx) error { return tx.NoteMediaUse(m.ServerName, chunk, now.UnixMilli()) }); err != nil {
			return err
		}
		m.used.mu.Lock()
		for _, f := range chunk {
			delete(m.used.files, f)
		}
		m.used.mu.Unlock()
	}
	return nil
}

// expire deletes files that nobody has fetched or uploaded for longer than they are kept.
func (m *Media) expire(ctx context.Context, now time.Time) error {
	if m.Config.Retention == 0 {
		return nil
	}
	if err := m.writeUses(ctx, time.Now()); err != nil {
		return err
	}
	q, more, n := store.MediaAge{
		Origin: m.ServerName, Before: now.Add(-m.Config.Retention).UnixMilli(), Larger: -1, KeepShown: true, KeepMarked: true, Limit: cleanChunk,
	}, true, 0
	var errs []error
	for more && ctx.Err() == nil {
		var ids, deleted []string
		var hashes [][]byte
		next := q
		err := m.Store.Read(ctx, func(tx *store.Tx) (err error) {
			ids, next, more, err = tx.OldMedia(q)
			return err
		})
		if err == nil && len(ids) > 0 {
			err = m.Store.Write(ctx, func(tx *store.Tx) (err error) {
				deleted, hashes, err = tx.DeleteOldMedia(q, ids)
				return err
			})
		}
		if err != nil {
			errs = append(errs, err)
			break
		}
		errs = append(errs, m.dropContents(ctx, hashes, now.Add(-keepTemp)))
		q, n = next, n+len(deleted)
	}
	if n > 0 {
		m.Log.Info("deleted files that nobody has fetched for long", "files", n)
	}
	return errors.Join(errs...)
}

// DropContents removes contents that no file has any more, by SHA-256.
func (m *Media) DropContents(ctx context.Context, hashes [][]byte) error {
	return m.dropContents(ctx, hashes, time.Now().Add(-dropGrace))
}

// dropGrace keeps a content that was stored just now: somebody may be about to refer to it.
const dropGrace = time.Minute

// dropContents removes contents that no file has any more and that were not stored after the given time.
func (m *Media) dropContents(ctx context.Context, hashes [][]byte, before time.Time) error {
	var errs []error
	for _, h := range hashes {
		used := false
		err := m.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
			used, err = tx.MediaContentUsed(h)
			return err
		})
		if err == nil && !used {
			err = m.Blobs.DeleteUnused(ctx, hex.EncodeToString(h), before)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
