package room

import (
	"cmp"
	"context"
	"slices"
	"strconv"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/store"
)

// Relation types that the server aggregates.
// Spec: client-server API, "Aggregations of child events".
const (
	relReplace   = "m.replace"
	relReference = "m.reference"
	relThread    = "m.thread"
)

// maxEditTries bounds how many of an event's newest edits are looked at for a valid one.
const maxEditTries = 3

// children is what relates to one event, as far as it is aggregated.
type children struct {
	edits      []store.RelatedEvent // the most recent first
	references []string             // event ids
	thread     *store.ThreadSummary
}

// Bundles gives the bundled aggregations of some events as a sync shows them to a user: a func from an event to the JSON
// object of unsigned."m.relations", or nil. Who is not in the room is told of nothing that came after leaving it.
func (rs *Rooms) Bundles(ctx context.Context, r *Room, user id.UserID, ignored map[id.UserID]struct{}, evs []*Event) (func(e *Event) []byte, error) {
	rd := &Reader{User: user, NowMS: rs.d.Now().UnixMilli(), OmitRoomID: true, Ignored: ignored}
	if r.Membership(user) != MembershipJoin {
		var err error
		if rd.Visibility, err = rs.Visibility(ctx, r, user); err != nil {
			return nil, err
		}
		last, err := r.MemberEvent(ctx, user)
		if err != nil {
			return nil, err
		}
		if last != nil {
			rd.Until = last.Ord
		}
	}
	found, err := rs.bundles(ctx, r, evs, rd, true)
	if err != nil {
		return nil, err
	}
	return func(e *Event) []byte { return found[e.NID] }, nil
}

// bundles gives the JSON objects of unsigned."m.relations" for those events that have one, by nid. Threads are left out
// for the latest event of a thread, which cannot be the root of another.
func (rs *Rooms) bundles(ctx context.Context, r *Room, evs []*Event, rd *Reader, threads bool) (map[int64][]byte, error) {
	parents := make(map[string]*Event, len(evs))
	ids := make([]string, 0, len(evs))
	for _, e := range evs {
		// State events get none: spec, "Aggregations of child events", the warning.
		if _, isState := e.PDU.StateKey(); !isState {
			parents[string(e.ID())] = e
			ids = append(ids, string(e.ID()))
		}
	}
	if len(ids) == 0 {
		return nil, nil
	}
	found := make(map[string]*children)
	err := rs.d.Store.Read(ctx, func(tx *store.Tx) error {
		clear(found)
		return readChildren(tx, r.nid, ids, rd, threads, found)
	})
	if err != nil || len(found) == 0 {
		return nil, err
	}
	edits, err := rs.bestEdits(ctx, parents, found, rd)
	if err != nil {
		return nil, err
	}
	latest, err := rs.threadLatest(ctx, r, found, rd)
	if err != nil {
		return nil, err
	}
	out := make(map[int64][]byte, len(found))
	for parent, c := range found {
		e := parents[parent]
		edit := edits[parent]
		var editJSON []byte
		if edit != nil {
			editJSON = edit.AppendClient(nil, &Viewer{User: rd.User, Device: rd.Device, NowMS: rd.NowMS, OmitRoomID: rd.OmitRoomID})
		}
		var threadJSON []byte
		if c.thread != nil && latest[c.thread.Latest] != nil {
			threadJSON = appendThread(nil, c.thread, latest[c.thread.Latest], c.thread.Participated || e.PDU.Sender() == rd.User)
		}
		if b := appendBundle(nil, editJSON, c.references, threadJSON); b != nil {
			out[e.NID] = b
		}
	}
	return out, nil
}

// readChildren collects what relates to some events.
func readChildren(tx *store.Tx, room int64, ids []string, rd *Reader, threads bool, found map[string]*children) error {
	at := func(parent string) *children {
		c := found[parent]
		if c == nil {
			c = &children{}
			found[parent] = c
		}
		return c
	}
	err := tx.RelationsOf(room, ids, []string{relReplace, relReference}, rd.until(), func(rel store.RelatedEvent) {
		if _, ignored := rd.Ignored[id.UserID(rel.Sender)]; ignored || (rd.Visibility != nil && !rd.Visibility.Allows(rel.Ord)) {
			return
		}
		c := at(rel.Parent)
		if rel.RelType == relReplace {
			c.edits = append(c.edits, rel)
		} else {
			c.references = append(c.references, rel.EventID)
		}
	})
	if err != nil || !threads {
		return err
	}
	return tx.ThreadSummaries(room, ids, string(rd.User), ignoredList(rd.Ignored), rd.until(), func(t store.ThreadSummary) {
		at(t.Root).thread = &t
	})
}

// ignoredList is never nil: a list that is NULL in SQL makes every comparison unknown.
func ignoredList(ignored map[id.UserID]struct{}) []string {
	out := make([]string, 0, len(ignored))
	for u := range ignored {
		out = append(out, string(u))
	}
	slices.Sort(out)
	return out
}

// bestEdits finds the most recent valid replacement of each event that has one.
// Spec: client-server API, "Validity of replacement events", "Server-side aggregation of m.replace relationships".
func (rs *Rooms) bestEdits(ctx context.Context, parents map[string]*Event, found map[string]*children, rd *Reader) (map[string]*Event, error) {
	var nids []int64
	for parent, c := range found {
		e := parents[parent]
		if e.RedactedBy != 0 || relatesBy(e.PDU, relReplace) {
			c.edits = nil
			continue
		}
		c.edits = slices.DeleteFunc(c.edits, func(rel store.RelatedEvent) bool {
			return rel.Sender != string(e.PDU.Sender()) || rel.Type != e.PDU.Type()
		})
		slices.SortFunc(c.edits, func(a, b store.RelatedEvent) int {
			return cmp.Or(cmp.Compare(b.TS, a.TS), cmp.Compare(b.EventID, a.EventID))
		})
		if len(c.edits) > maxEditTries {
			c.edits = c.edits[:maxEditTries]
		}
		for _, rel := range c.edits {
			nids = append(nids, rel.NID)
		}
	}
	if len(nids) == 0 {
		return nil, nil
	}
	evs, err := rs.EventsByNID(ctx, nids)
	if err != nil {
		return nil, err
	}
	byNID := indexByNID(evs)
	best := make(map[string]*Event)
	for parent, c := range found {
		for _, rel := range c.edits {
			if e := byNID[rel.NID]; e != nil && validEdit(e) && rd.allows(e) {
				best[parent] = e
				break
			}
		}
	}
	return best, nil
}

// validEdit checks what can be checked of a replacement by itself: there is new content, unless it is encrypted.
func validEdit(e *Event) bool {
	if _, isState := e.PDU.StateKey(); isState || e.RedactedBy != 0 {
		return false
	}
	return e.PDU.Type() == "m.room.encrypted" || gjson.GetBytes(e.PDU.Content(), `m\.new_content`).IsObject()
}

// relatesBy tells whether an event relates to another one by a relation type.
func relatesBy(p *event.Event, relType string) bool {
	rel, ok := relationOf(p)
	return ok && rel.relType == relType
}

// threadLatest renders the last replies of threads, by nid.
func (rs *Rooms) threadLatest(ctx context.Context, r *Room, found map[string]*children, rd *Reader) (map[int64][]byte, error) {
	var nids []int64
	for _, c := range found {
		if c.thread != nil {
			nids = append(nids, c.thread.Latest)
		}
	}
	if len(nids) == 0 {
		return nil, nil
	}
	evs, err := rs.EventsByNID(ctx, nids)
	if err != nil || len(evs) == 0 {
		return nil, err
	}
	p, err := rs.presentation(ctx, r, evs, rd, false)
	if err != nil {
		return nil, err
	}
	if p.bundles, err = rs.bundles(ctx, r, evs, rd, false); err != nil {
		return nil, err
	}
	out := make(map[int64][]byte, len(evs))
	for _, e := range evs {
		if rd.allows(e) {
			out[e.NID] = p.append(nil, e)
		}
	}
	return out, nil
}

func appendThread(dst []byte, t *store.ThreadSummary, latest []byte, participated bool) []byte {
	dst = append(dst, `{"count":`...)
	dst = strconv.AppendInt(dst, t.Count, 10)
	dst = append(dst, `,"current_user_participated":`...)
	dst = strconv.AppendBool(dst, participated)
	dst = append(dst, `,"latest_event":`...)
	dst = append(dst, latest...)
	return append(dst, '}')
}

// appendBundle writes the object of unsigned."m.relations"; nil where there is nothing to tell.
func appendBundle(dst, edit []byte, references []string, thread []byte) []byte {
	if edit == nil && len(references) == 0 && thread == nil {
		return nil
	}
	sep := byte('{')
	if len(references) > 0 {
		dst = append(dst, sep)
		dst = append(dst, `"m.reference":{"chunk":[`...)
		for i, ref := range references {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = append(dst, `{"event_id":`...)
			dst = event.AppendCanonicalString(dst, ref)
			dst = append(dst, '}')
		}
		dst = append(dst, `]}`...)
		sep = ','
	}
	if edit != nil {
		dst = append(dst, sep)
		dst = append(dst, `"m.replace":`...)
		dst = append(dst, edit...)
		sep = ','
	}
	if thread != nil {
		dst = append(dst, sep)
		dst = append(dst, `"m.thread":`...)
		dst = append(dst, thread...)
	}
	return append(dst, '}')
}
