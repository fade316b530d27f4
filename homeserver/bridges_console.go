package homeserver

import (
	"context"
	"crypto/sha256"
	"io"
	"net/http"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/console"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/search"
	"github.com/moothall/moothall/sso"
)

// newConsole makes the pages of officers and auditors.
func (s *Server) newConsole() (*console.Console, error) {
	secret := sha256.Sum256(append([]byte("moothall console\x00"), s.key.Private...))
	d := console.Deps{
		Store: s.store, Accounts: s.accounts, Audit: s.audit, Logger: s.log, Kit: s.kit, Secret: secret[:],
		SecondFactor: s.cfg.Compliance.SecondFactor, SignInAge: s.cfg.Compliance.SignInAge.Std(), RoomName: s.roomName,
		Browser: func(w http.ResponseWriter, r *http.Request, maxAge time.Duration, factor bool) (id.UserID, string, bool, error) {
			b, ok, err := s.sso.Require(w, r, sso.Need{MaxAge: maxAge, Factor: factor})
			if err != nil || !ok {
				return "", "", false, err
			}
			return b.User, b.ID[:min(8, len(b.ID))], true, nil
		},
	}
	if s.archive != nil && s.search != nil {
		d.Find, d.Words, d.File = s.findArchived, archiveWords, s.archivedFile
	}
	return console.New(d)
}

// archivedFile opens a file for an officer.
func (s *Server) archivedFile(ctx context.Context, origin, mediaID string) (io.ReadCloser, *store.Media, error) {
	return s.media.OpenArchived(ctx, origin, mediaID)
}

// roomName is what a room is called, "" where it has no name or is gone.
func (s *Server) roomName(ctx context.Context, roomID id.RoomID) string {
	r, err := s.rooms.Room(ctx, roomID)
	if err != nil {
		return ""
	}
	if name := r.Name(); name != "" {
		return name
	}
	return r.CanonicalAlias()
}

const (
	facetSize = 10
	maxMarks  = 50
)

func wordsOf(text *search.Text) *console.Words {
	return &console.Words{
		Matches:   func(texts ...string) bool { return text.Matches(search.FoldAll(texts...)) },
		Highlight: func(t string) [][2]int { return search.Highlight(t, text.Words(), maxMarks) },
	}
}

// archiveWords parses a search term.
func archiveWords(term string) (*console.Words, error) {
	text, err := search.Parse(term)
	if err != nil {
		return nil, err
	}
	return wordsOf(text), nil
}

// findArchived asks the search engine for versions of messages.
func (s *Server) findArchived(ctx context.Context, q *console.Query) (*console.Found, error) {
	in := &search.Query{
		View: search.ViewArchive, Rooms: q.Rooms, Senders: q.Senders, Kinds: q.Kinds, Flags: q.Flags, From: q.From, To: q.To, Limit: q.Limit,
	}
	out := &console.Found{}
	if q.Words != "" {
		text, err := search.Parse(q.Words)
		if err != nil {
			return nil, err
		}
		in.Text = text.Expr()
		w := wordsOf(text)
		out.Matches, out.Highlight = w.Matches, w.Highlight
	}
	if q.After != nil {
		in.After = &search.Cursor{TS: q.After.TS, NID: q.After.NID}
	}
	in.Exact = q.Count
	if q.Facets {
		for _, f := range []string{search.FacetSender, search.FacetRoom, search.FacetKind} {
			in.Facets = append(in.Facets, search.Facet{Field: f, Size: facetSize})
		}
		in.Facets = append(in.Facets, search.Facet{Field: search.FacetDay, Size: 10_000})
	}
	page, err := s.search.Query(ctx, in)
	if err != nil {
		return nil, err
	}
	out.Total, out.AtLeast, out.Facets = page.Total, page.AtLeast, map[string][]console.Bucket{}
	for _, h := range page.Hits {
		out.Hits = append(out.Hits, console.Cursor{TS: h.TS, NID: h.NID})
	}
	for field, buckets := range page.Facets {
		for _, b := range buckets {
			out.Facets[field] = append(out.Facets[field], console.Bucket(b))
		}
	}
	return out, nil
}
