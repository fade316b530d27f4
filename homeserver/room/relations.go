package room

import (
	"context"
	"math"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/filter"
	"github.com/moothall/moothall/homeserver/store"
)

// RelationsQuery asks for what relates to an event.
type RelationsQuery struct {
	Parent    id.EventID
	RelType   string // "" for any
	EventType string // "" for any
	Recurse   bool   // also what relates indirectly, up to store.RelationDepth steps
	From      int64  // ord to start from, exclusive
	To        int64  // ord to stop at, exclusive; 0 means none
	Backwards bool   // newest first
	Limit     int
	Ignored   map[id.UserID]struct{} // senders that are left out
	Match     func(e *Event) bool    // nil takes every event
}

// Relations reads what relates to an event. Redacted events relate to nothing any more.
func (rs *Rooms) Relations(ctx context.Context, r *Room, q RelationsQuery) (TimelinePage, error) {
	sq := store.RelatedQuery{
		Room: r.nid, Parent: string(q.Parent), RelType: q.RelType, Type: q.EventType, Recurse: q.Recurse,
		Backwards: q.Backwards, Without: ignoredList(q.Ignored), After: math.MinInt64, Before: math.MaxInt64,
	}
	if q.Backwards {
		sq.Before = q.From
		if q.To != 0 {
			sq.After = q.To
		}
	} else {
		sq.After = q.From
		if q.To != 0 {
			sq.Before = q.To
		}
	}
	page := TimelinePage{End: q.From}
	for {
		sq.Limit = q.Limit - len(page.Events) + 1
		var nids []int64
		err := rs.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
			var err error
			nids, err = tx.RelatedPage(sq)
			return err
		})
		if err != nil {
			return page, err
		}
		evs, err := rs.EventsByNID(ctx, nids)
		if err != nil {
			return page, err
		}
		for _, e := range evs {
			if len(page.Events) == q.Limit {
				page.More = true
				return page, nil
			}
			page.End = e.Ord
			if q.Match == nil || q.Match(e) {
				page.Events = append(page.Events, e)
			}
		}
		if len(nids) < sq.Limit || len(evs) == 0 {
			return page, nil
		}
		if q.Backwards {
			sq.Before = page.End
		} else {
			sq.After = page.End
		}
	}
}

// maxRelating is how many relations of an event a filter looks at.
const maxRelating = 1000

// Relating gives types and senders of what relates to an event, for filters that ask for it. shows tells which of them the
// reader may see; nil: all.
func (rs *Rooms) Relating(ctx context.Context, r *Room, parent id.EventID, ignored map[id.UserID]struct{}, shows func(e *Event) bool) ([]filter.Relation, error) {
	page, err := rs.Relations(ctx, r, RelationsQuery{
		Parent: parent, From: math.MaxInt64, Backwards: true, Limit: maxRelating, Ignored: ignored, Match: shows,
	})
	if err != nil {
		return nil, err
	}
	out := make([]filter.Relation, 0, len(page.Events))
	for _, e := range page.Events {
		relType, _ := e.RelatesTo()
		out = append(out, filter.Relation{Type: relType, Sender: string(e.PDU.Sender())})
	}
	return out, nil
}

// ThreadsQuery asks for threads of a room, those with the latest replies first.
type ThreadsQuery struct {
	Before       int64 // number of the last reply to start behind, exclusive
	Participated bool  // only threads that the reader takes part in
	Limit        int
	Reader       *Reader
}

// Threads gives the first messages of threads. next is the Before of the next page, 0 where there is none.
// Spec: client-server API, GET /rooms/{roomId}/threads.
func (rs *Rooms) Threads(ctx context.Context, r *Room, q ThreadsQuery) (roots []*Event, next int64, err error) {
	before := q.Before
	for {
		var threads []store.Thread
		took := make(map[string]bool)
		err := rs.d.Store.Read(ctx, func(tx *store.Tx) error {
			clear(took)
			var err error
			if threads, err = tx.Threads(r.nid, before, q.Limit+1); err != nil || len(threads) == 0 {
				return err
			}
			ids := make([]string, len(threads))
			for i, t := range threads {
				ids[i] = t.Root
			}
			return tx.ThreadSummaries(r.nid, ids, string(q.Reader.User), ignoredList(q.Reader.Ignored), q.Reader.until(), func(t store.ThreadSummary) {
				took[t.Root] = t.Participated
			})
		})
		if err != nil || len(threads) == 0 {
			return roots, 0, err
		}
		ids := make([]id.EventID, len(threads))
		for i, t := range threads {
			ids[i] = id.EventID(t.Root)
		}
		evs, err := rs.EventsByID(ctx, ids)
		if err != nil {
			return nil, 0, err
		}
		byID := make(map[string]*Event, len(evs))
		for _, e := range evs {
			byID[string(e.ID())] = e
		}
		for _, t := range threads {
			e := byID[t.Root]
			participated, seen := took[t.Root]
			switch {
			case e == nil || e.Room != r.nid || e.Status != store.StatusAccepted, !seen, !q.Reader.allows(e),
				q.Participated && !participated && e.PDU.Sender() != q.Reader.User:
			case len(roots) == q.Limit:
				return roots, before, nil
			default:
				roots = append(roots, e)
			}
			before = t.Latest
		}
		if len(threads) <= q.Limit {
			return roots, 0, nil
		}
	}
}

// Redacted gives the event as it would look after a redaction, for readers who ignore its sender.
func (r *Room) Redacted(e *Event) (*Event, error) {
	v := r.Version()
	js, err := v.Redact(e.PDU.JSON())
	if err != nil {
		return nil, err
	}
	pdu, err := v.Parse(js, e.ID())
	if err != nil {
		return nil, err
	}
	return &Event{NID: e.NID, Room: e.Room, Ord: e.Ord, Pos: e.Pos, PDU: pdu, Status: e.Status, RedactedBy: e.RedactedBy}, nil
}
