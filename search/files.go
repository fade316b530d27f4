package search

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

const (
	fileTries  = 5 // attempts at a file that cannot be had now
	filesSweep = time.Hour
	filesIdle  = 5 * time.Second
)

// files finds the texts of uploaded files, some at once, and brings them into the index.
func (s *Search) files(ctx context.Context) error {
	tick := time.NewTicker(filesIdle)
	defer tick.Stop()
	var swept time.Time
	for {
		n, err := s.someFiles(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			s.d.Log.Warn("the texts of files cannot be found, trying again", "error", err)
		} else if n > 0 {
			continue
		}
		if time.Since(swept) > filesSweep {
			swept = time.Now()
			if err := s.dropFiles(ctx); err != nil {
				s.d.Log.Warn("forget the texts of files that are gone", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.kick:
		case <-tick.C:
		}
	}
}

// dropFiles forgets the texts of files that were deleted.
func (s *Search) dropFiles(ctx context.Context) error {
	const chunk = 500
	for {
		var n int64
		err := s.d.Store.Write(ctx, func(tx *store.Tx) (err error) {
			n, err = tx.DropSearchFiles(chunk)
			return err
		})
		if err != nil || n < chunk {
			return err
		}
	}
}

// someFiles looks into the files that wait longest and tells how many these were.
func (s *Search) someFiles(ctx context.Context) (int, error) {
	if s.gens.Load() == nil {
		return 0, nil // the engine is not there: what is found could not be put into it
	}
	var files []store.WantedFile
	err := s.d.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
		files, err = tx.WantedSearchFiles(time.Now().UnixMilli(), 20)
		return err
	})
	if err != nil || len(files) == 0 {
		return 0, err
	}
	g, fctx := errgroup.WithContext(ctx)
	g.SetLimit(max(s.d.Workers, 1))
	for _, f := range files {
		g.Go(func() error { return s.file(fctx, f) })
	}
	return len(files), g.Wait()
}

// file looks into one file and indexes its message anew.
func (s *Search) file(ctx context.Context, f store.WantedFile) error {
	now := time.Now().UnixMilli()
	known := false
	err := s.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
		return tx.SearchFiles([]string{f.Media}, func(store.SearchFile) { known = true })
	})
	if err != nil {
		return err
	}
	if !known {
		text, err := s.d.Extract(ctx, f.Media)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		found := store.SearchFile{Media: f.Media, Status: store.SearchFileText, Done: now, Text: store.Content(text)}
		switch e := mxerr.As(err); {
		case err != nil && e == nil && f.Tries+1 < fileTries:
			s.d.Log.Info("the text of a file cannot be found now", "media", f.Media, "error", err)
			return s.d.Store.Write(ctx, func(tx *store.Tx) error {
				return tx.LaterSearchFile(f.NID, now+time.Minute.Milliseconds()<<(2*f.Tries))
			})
		case e != nil:
			found.Status, found.Reason, found.Text = store.SearchFileFailed, e.Message, nil
		case err != nil:
			found.Status, found.Reason, found.Text = store.SearchFileFailed, "the file could not be read", nil
		case text == "":
			found.Status = store.SearchFileNone
		}
		if err := s.d.Store.Write(ctx, func(tx *store.Tx) error { return tx.SaveSearchFile(found) }); err != nil {
			return err
		}
	}
	if err := s.again(ctx, f.NID); err != nil {
		return err
	}
	return s.d.Store.Write(ctx, func(tx *store.Tx) error { return tx.GotSearchFile(f.NID) })
}

// again indexes one event anew, in all generations that are written to.
func (s *Search) again(ctx context.Context, nid int64) error {
	s.write.Lock()
	defer s.write.Unlock()
	gens := s.gens.Load()
	if gens == nil {
		return errors.New("the search index is not there at the moment")
	}
	batch, err := s.build(ctx, func(tx *store.Tx) ([]*store.Event, error) { return tx.EventsByNID([]int64{nid}) })
	if err != nil {
		return err
	}
	for _, g := range *gens {
		if err := s.d.Index.Write(ctx, g.Name, batch, g.State); err != nil {
			return err
		}
	}
	return nil
}
