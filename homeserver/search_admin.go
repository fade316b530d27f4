package homeserver

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// Reindex asks the running server for a new search index and writes to w how far it is, until it is there or ctx ends.
func Reindex(ctx context.Context, cfg Config, log *slog.Logger, w io.Writer) error {
	if cfg.Search.engine() == EngineNone {
		return mxerr.InvalidParam("search is switched off: search.engine is none")
	}
	return withStore(ctx, &cfg, log, func(ctx context.Context, st *store.Store) error { return reindex(ctx, st, w) })
}

func reindex(ctx context.Context, st *store.Store, w io.Writer) error {
	if err := st.Write(ctx, func(tx *store.Tx) error { return tx.RequestSearchRebuild(time.Now().UnixMilli()) }); err != nil {
		return err
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	asked, last := time.Now(), ""
	for {
		b, err := searchRebuild(ctx, st)
		if err != nil {
			return err
		}
		line := rebuildLine(&b)
		if b.Began == 0 && time.Since(asked) > 15*time.Second {
			line = "waiting for the server: it begins as soon as it runs and reaches its search engine"
		}
		if line != last {
			if _, err := fmt.Fprintln(w, line); err != nil {
				return err
			}
			last = line
		}
		if b.Ended > 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the server goes on building the index by itself: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

func searchRebuild(ctx context.Context, st *store.Store) (b store.SearchRebuild, err error) {
	err = st.ReadOne(ctx, func(tx *store.Tx) error {
		b, err = tx.SearchRebuild()
		return err
	})
	return b, err
}

func rebuildLine(b *store.SearchRebuild) string {
	switch {
	case b.Requested == 0:
		return "no rebuilding was asked for"
	case b.Ended > 0:
		return fmt.Sprintf("done: %d events in %s", b.Total, (time.Duration(b.Ended-b.Began) * time.Millisecond).Round(time.Second))
	case b.Began == 0:
		return "waiting for the server"
	case b.Total == 0:
		return "beginning"
	}
	return fmt.Sprintf("%d of %d events (%d %%)", b.Done, b.Total, 100*b.Done/b.Total)
}

// SearchStatus writes the engine and the state of the last rebuilding.
func SearchStatus(ctx context.Context, cfg Config, log *slog.Logger, w io.Writer) error {
	return withStore(ctx, &cfg, log, func(ctx context.Context, st *store.Store) error { return searchStatus(ctx, &cfg, st, w) })
}

func searchStatus(ctx context.Context, cfg *Config, st *store.Store, w io.Writer) error {
	b, err := searchRebuild(ctx, st)
	if err != nil {
		return err
	}
	if _, err = fmt.Fprintf(w, "engine: %s\nrebuilding: %s\n", cfg.Search.engine(), rebuildLine(&b)); err != nil {
		return err
	}
	if err := indexLines(ctx, st, cfg.Search.engine(), w); err != nil || cfg.Search.engine() != EngineElastic {
		return err
	}
	index, err := cfg.Search.Elasticsearch.open()
	if err != nil {
		return err
	}
	defer func() { _ = index.Close() }()
	docs, bytes, err := index.Size(ctx)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "in the cluster now: %d documents, %d bytes\n", docs, bytes)
	return err
}

// indexLines writes what the process that keeps the index has noted.
func indexLines(ctx context.Context, st *store.Store, engine string, w io.Writer) error {
	var is store.SearchStatus
	var head int64
	found := false
	err := st.ReadOne(ctx, func(tx *store.Tx) (err error) {
		is, head, found, err = tx.SearchStatus()
		return err
	})
	if err != nil {
		return err
	}
	if !found || is.Engine != engine {
		_, err := fmt.Fprintln(w, "index: there is none yet; the server makes it as soon as there is something to find")
		return err
	}
	older := "complete"
	if is.Scan < is.ScanTo {
		older = fmt.Sprintf("%d of %d events (%d %%)", is.Scan, is.ScanTo, 100*is.Scan/is.ScanTo)
	}
	_, err = fmt.Fprintf(w, "documents: %d\nbytes: %d\nolder events: %s\nbehind the log: %d positions (a server without new messages writes this down late)\nas of: %s\n",
		is.Docs, is.Bytes, older, max(head-is.Pos, 0), time.UnixMilli(is.Updated).UTC().Format(time.RFC3339))
	return err
}
