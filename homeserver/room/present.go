package room

import (
	"context"
	"math"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/store"
)

// Reader says for whom events are put into a response.
type Reader struct {
	User       id.UserID
	Device     id.DeviceID
	NowMS      int64
	OmitRoomID bool
	Bundles    bool                   // with bundled aggregations
	Ignored    map[id.UserID]struct{} // users whose events are left out of the aggregations
	Visibility *Visibility            // nil: the reader sees everything
	Until      int64                  // ord behind which the reader sees nothing; 0: no bound
}

// until is the ord of the last event that may be shown.
func (rd *Reader) until() int64 {
	if rd.Until == 0 {
		return math.MaxInt64
	}
	return rd.Until
}

// allows tells whether the reader may see the event.
func (rd *Reader) allows(e *Event) bool {
	return e.Ord <= rd.until() && (rd.Visibility == nil || rd.Visibility.Allows(e.Ord))
}

// AppendEvents appends a JSON array of events of one room as clients get them: with prev_content, redacted_because, the
// reader's membership and, where wanted, bundled aggregations. What is needed is read for all events at once.
func (rs *Rooms) AppendEvents(ctx context.Context, dst []byte, r *Room, evs []*Event, rd *Reader) ([]byte, error) {
	if len(evs) == 0 {
		return append(dst, '[', ']'), nil
	}
	p, err := rs.presentation(ctx, r, evs, rd, rd.Bundles)
	if err != nil {
		return nil, err
	}
	dst = append(dst, '[')
	for i, e := range evs {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = p.append(dst, e)
	}
	return append(dst, ']'), nil
}

// AppendEvent appends one event like AppendEvents does.
func (rs *Rooms) AppendEvent(ctx context.Context, dst []byte, r *Room, e *Event, rd *Reader) ([]byte, error) {
	p, err := rs.presentation(ctx, r, []*Event{e}, rd, rd.Bundles)
	if err != nil {
		return nil, err
	}
	return p.append(dst, e), nil
}

// presentation is what the unsigned data of some events is made of.
type presentation struct {
	rd         *Reader
	now        Membership         // the reader's, from memberSince on
	history    []MembershipChange // nil where now holds for all events
	replaced   map[int64]*Event   // by ord of a state event: what stood there before
	redactions map[int64]*Event   // by nid of the redacted event
	bundles    map[int64][]byte   // by nid
	erased     map[id.UserID]struct{}
}

// presentation reads what the events' unsigned data needs.
func (rs *Rooms) presentation(ctx context.Context, r *Room, evs []*Event, rd *Reader, bundles bool) (*presentation, error) {
	p := &presentation{rd: rd}
	var stateOrds, redactionNIDs []int64
	first := evs[0].Ord
	for _, e := range evs {
		first = min(first, e.Ord)
		if _, isState := e.PDU.StateKey(); isState {
			stateOrds = append(stateOrds, e.Ord)
		}
		if e.RedactedBy != 0 {
			redactionNIDs = append(redactionNIDs, e.RedactedBy)
		}
	}
	if err := rs.presentMembership(ctx, r, p, first); err != nil {
		return nil, err
	}
	var err error
	if p.erased, err = rs.Erased(ctx); err != nil {
		return nil, err
	}
	if len(stateOrds) > 0 {
		if err := rs.presentReplaced(ctx, r, p, stateOrds); err != nil {
			return nil, err
		}
	}
	if len(redactionNIDs) > 0 {
		found, err := rs.EventsByNID(ctx, redactionNIDs)
		if err != nil {
			return nil, err
		}
		byNID := indexByNID(found)
		p.redactions = make(map[int64]*Event, len(evs))
		for _, e := range evs {
			if e.RedactedBy != 0 {
				p.redactions[e.NID] = byNID[e.RedactedBy]
			}
		}
	}
	if bundles {
		if p.bundles, err = rs.bundles(ctx, r, evs, rd, true); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// presentMembership finds the reader's memberships. Most readers have been members since before the first event.
func (rs *Rooms) presentMembership(ctx context.Context, r *Room, p *presentation, first int64) error {
	p.now = r.Membership(p.rd.User)
	if p.now == MembershipNone {
		return nil
	}
	member, err := r.MemberEvent(ctx, p.rd.User)
	if err != nil || member == nil || member.Ord <= first {
		return err
	}
	p.history, err = rs.MembershipHistory(ctx, r, p.rd.User)
	return err
}

// presentReplaced finds what state events took the place of.
func (rs *Rooms) presentReplaced(ctx context.Context, r *Room, p *presentation, ords []int64) error {
	byOrd := make(map[int64]int64, len(ords))
	nids := make([]int64, 0, len(ords))
	err := rs.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
		return tx.ReplacedState(r.nid, ords, func(ord, replaced int64) {
			byOrd[ord] = replaced
			nids = append(nids, replaced)
		})
	})
	if err != nil || len(nids) == 0 {
		return err
	}
	found, err := rs.EventsByNID(ctx, nids)
	if err != nil {
		return err
	}
	byNID := indexByNID(found)
	p.replaced = make(map[int64]*Event, len(byOrd))
	for ord, nid := range byOrd {
		if e := byNID[nid]; e != nil {
			p.replaced[ord] = e
		}
	}
	return nil
}

// membershipAt is the reader's membership at an event, that event included.
// Spec: client-server API, ClientEvent, unsigned.membership: "leave" before the user's first.
func (p *presentation) membershipAt(ord int64) string {
	at := p.now
	if p.history != nil {
		at = MembershipNone
		for _, c := range p.history {
			if c.Ord > ord {
				break
			}
			at = c.Membership
		}
	}
	if at == MembershipNone {
		at = MembershipLeave
	}
	return at.String()
}

// append appends one event.
func (p *presentation) append(dst []byte, e *Event) []byte {
	v := Viewer{
		User: p.rd.User, Device: p.rd.Device, NowMS: p.rd.NowMS, OmitRoomID: p.rd.OmitRoomID,
		Membership:      p.membershipAt(e.Ord),
		RedactedBecause: func(e *Event) *Event { return p.redactions[e.NID] },
		Erased:          p.erased,
	}
	if p.bundles != nil {
		v.Bundle = func(e *Event) []byte { return p.bundles[e.NID] }
	}
	if _, isState := e.PDU.StateKey(); isState {
		if prev := p.replaced[e.Ord]; prev != nil {
			v.ReplacesState = prev.ID()
			// The content needs the right to see the event it is from; the id does not.
			if p.rd.allows(prev) {
				v.PrevContent = prev.PDU.Content()
			}
		}
	}
	return e.AppendClient(dst, &v)
}

// RelatesTo is what the event says in m.relates_to: the relation type and the parent, "" where it relates to nothing.
func (e *Event) RelatesTo() (relType string, parent id.EventID) {
	rel, _ := relationOf(e.PDU)
	return rel.relType, id.EventID(rel.parent)
}

// MemberNIDs gives the numbers of the current member events of some users; those who never were members are left out.
func (r *Room) MemberNIDs(users []id.UserID) []int64 {
	out := make([]int64, 0, len(users))
	h, done := r.view()
	defer done()
	for _, id := range users {
		if u := r.rs.known(id); u != nil {
			if m, ok := h.members[u]; ok {
				out = append(out, m.nid)
			}
		}
	}
	return out
}

// StateOfType gives the numbers of the current state events of a type other than m.room.member, in no particular order.
func (r *Room) StateOfType(evType string) []int64 {
	var out []int64
	h, done := r.view()
	defer done()
	for t, nid := range h.state {
		if t.Type == evType {
			out = append(out, nid)
		}
	}
	return out
}

// LastEventID is the id of the newest event of the room.
func (r *Room) LastEventID(ctx context.Context) (id.EventID, error) {
	evs, _, err := r.rs.Newest(ctx, r, store.MaxOrd-1, 1)
	if err != nil || len(evs) == 0 {
		return "", err
	}
	return evs[0].ID(), nil
}
