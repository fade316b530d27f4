package homeserver

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/clientapi"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/search"
	"github.com/moothall/moothall/search/bleve"
	"github.com/moothall/moothall/search/elastic"
	"github.com/moothall/moothall/search/extract"
)

// buildSearch makes search; nil where it is switched off.
func (s *Server) buildSearch() (*search.Search, error) {
	d := search.Deps{Store: s.store, Rooms: s.rooms, Log: s.log, ServerName: s.cfg.ServerName}
	switch engine := s.cfg.Search.engine(); engine {
	case EngineNone:
		return nil, nil
	case EngineBleve:
		d.Private = true
		if program := s.cfg.Search.Program; program != "" {
			d.Index = bleve.NewProcess(program, s.cfg.SearchDir(), s.log)
		} else {
			d.Index = bleve.New(s.cfg.SearchDir(), s.log)
		}
	case EngineElastic:
		index, err := s.cfg.Search.Elasticsearch.open()
		if err != nil {
			return nil, fmt.Errorf("search.elasticsearch: %w", err)
		}
		d.Index = index
	default:
		return nil, fmt.Errorf("search.engine: there is no engine %s", engine)
	}
	if a := s.cfg.Search.Attachments; a.Enabled {
		runner := &extract.Runner{Program: a.Program, Memory: int64(a.Memory), Timeout: a.Timeout.Std(), MaxSize: int64(a.MaxSize)}
		d.Workers = a.Workers
		d.Readable = func(contentType, filename string) bool { return extract.Kind(contentType, filename) != "" }
		d.Extract = func(ctx context.Context, media string) (string, error) { return s.fileText(ctx, runner, media) }
	}
	return search.New(d), nil
}

// fileText finds the text of an uploaded file. Errors that are an *mxerr.Error are final.
func (s *Server) fileText(ctx context.Context, runner *extract.Runner, address string) (string, error) {
	uri, err := id.ParseContentURI(address)
	if err != nil {
		return "", mxerr.InvalidParam("this is no address of a file")
	}
	blob, file, err := s.media.Open(ctx, uri.Homeserver, uri.FileID)
	if err != nil {
		return "", err
	}
	defer func() { _ = blob.Close() }()
	kind := extract.Kind(file.Type, file.Filename)
	if kind == "" {
		return "", nil
	}
	text, err := runner.Text(ctx, kind, blob, file.Size)
	if errors.Is(err, extract.ErrNoText) {
		return "", mxerr.InvalidParam(err.Error())
	}
	return text, err
}

// open makes the client of the cluster.
func (e *Elasticsearch) open() (*elastic.Index, error) {
	cfg := elastic.Config{
		URLs: e.nodes(), APIKey: string(e.APIKey), Username: e.Username, Password: string(e.Password),
		Prefix: e.Prefix, Shards: e.Shards, Replicas: e.Replicas,
	}
	if e.CAFile != "" {
		pem, err := os.ReadFile(e.CAFile)
		if err != nil {
			return nil, fmt.Errorf("ca_file: %w", err)
		}
		cfg.CA = pem
	}
	return elastic.New(cfg)
}

// searchFunc is what the client API searches with; nil where search is switched off.
func (s *Server) searchFunc() clientapi.SearchFunc {
	if s.search == nil {
		return nil
	}
	return s.searchUsers
}

// searchUsers answers a user's query.
func (s *Server) searchUsers(ctx context.Context, q *clientapi.SearchQuery) (*clientapi.SearchPage, error) {
	in := &search.UserQuery{
		Term: q.Term, Types: q.Types, Rooms: q.Rooms, Senders: q.Senders, NotSenders: q.NotSenders, HasURL: q.HasURL,
		Recent: q.Recent, Limit: q.Limit, Accept: q.Accept,
	}
	if q.After != nil {
		in.After = &search.UserCursor{Tier: q.After.Tier, Cursor: search.Cursor{TS: q.After.TS, NID: q.After.NID}}
	}
	s.awaitIndex(ctx, q.Upto)
	page, err := s.search.Users(ctx, in)
	if err != nil {
		return nil, err
	}
	out := &clientapi.SearchPage{Count: page.Count, Highlights: page.Highlights}
	for _, h := range page.Hits {
		out.Hits = append(out.Hits, clientapi.SearchHit{Event: h.Event, Rank: h.Rank})
	}
	if page.Next != nil {
		out.Next = &clientapi.SearchCursor{Tier: page.Next.Tier, TS: page.Next.TS, NID: page.Next.NID}
	}
	return out, nil
}

// searchMetrics adds how far the index is.
func (s *Server) searchMetrics() {
	if s.search == nil {
		return
	}
	s.metrics.gauge("moothall_search_lag_positions", "Positions of the log that are not in the search index yet; NaN while another process keeps the index.",
		func() float64 {
			if n := s.search.Lag(); n >= 0 {
				return float64(n)
			}
			return math.NaN()
		})
}

// runSearch indexes, or makes sure that the log is not kept for nobody.
func (s *Server) runSearch(ctx context.Context) error {
	if s.search == nil {
		if err := search.Forget(ctx, s.store); err != nil {
			s.log.Warn("forget the position of search", "error", err)
		}
		return nil
	}
	return s.search.Run(ctx)
}
