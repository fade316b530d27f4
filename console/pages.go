package console

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

const (
	pageHits  = 25
	excerpt   = 400 // bytes of a hit's text on the page
	around    = 12  // events before and after a message
	histogram = 60  // bars
)

// piece is a stretch of a text, marked where words stand that were looked for.
type piece struct {
	Text string
	Mark bool
}

type hitView struct {
	Time             int64
	Room, RoomName   string
	Event, Sender    string
	Type, File       string
	Text             []piece
	Edited, Deleted  bool
	Membership, This bool
	Readable         bool // the file lies on this server and is not encrypted
}

type facetView struct {
	Name, Value, Label, URL string
	Count                   int64
}

// bar is a bar of the histogram, in the units of its picture.
type bar struct {
	X, Y, W, H int64
	Title      string
	Count      int64
}

type searchData struct {
	Asked    asked
	Reason   string
	Kinds    []string
	Problem  string
	Searched bool
	Hits     []hitView
	Total    int64
	AtLeast  bool
	Next     string
	Senders  []facetView
	Rooms    []facetView
	ByKind   []facetView
	Bars     []bar
	First    string
	Last     string
	Most     int64
}

// showSearch handles GET /console/search.
func (c *Console) showSearch(w http.ResponseWriter, r *http.Request, o *officer) error {
	if o.reason == "" || web.QueryString(r, "reason") == "new" {
		return c.pages.Render(w, r, http.StatusOK, "reason", reasonData{})
	}
	d := searchData{Asked: askedOf(r.URL.Query()), Reason: o.reason, Kinds: kinds}
	if !r.URL.Query().Has("words") {
		return c.pages.Render(w, r, http.StatusOK, "search", d)
	}
	status := http.StatusOK
	if err := c.search(r.Context(), o, &d); err != nil {
		e := mxerr.As(err)
		if e == nil || e.Status == http.StatusNotFound {
			return err
		}
		status, d.Problem = e.Status, e.Message
	}
	return c.pages.Render(w, r, status, "search", d)
}

func (c *Console) search(ctx context.Context, o *officer, d *searchData) error {
	found, hits, next, err := c.ask(ctx, o, &d.Asked, pageHits)
	if err != nil {
		return err
	}
	d.Searched, d.Total, d.AtLeast = true, found.Total, found.AtLeast
	for i := range hits {
		d.Hits = append(d.Hits, c.view(ctx, &hits[i], found.Highlight))
	}
	if next != "" {
		v := d.Asked.values()
		v.Set("words", d.Asked.Words)
		v.Set("after", next)
		d.Next = pathSearch + "?" + v.Encode()
	}
	return c.facets(ctx, d, found)
}

// view is a hit as the pages show it.
func (c *Console) view(ctx context.Context, h *hit, highlight func(string) [][2]int) hitView {
	return hitView{
		Time: h.TS, Room: h.RoomID, RoomName: c.roomName(ctx, h.RoomID), Event: h.EventID, Sender: h.Sender, Type: h.Type, File: h.File,
		Text: pieces(h.Text, highlight), Edited: h.Edited, Deleted: h.Deleted, Membership: h.Membership != 0,
		Readable: h.File != "" && h.mxc() != "",
	}
}

// pieces cuts a text where words stand; of a long one what is around the first of them.
func pieces(text string, highlight func(string) [][2]int) []piece {
	var marks [][2]int
	if highlight != nil {
		marks = highlight(text)
	}
	from, to := 0, len(text)
	if to > excerpt {
		if len(marks) > 0 {
			from = max(0, marks[0][0]-excerpt/3)
		}
		to = min(len(text), from+excerpt)
		for from > 0 && text[from]&0xC0 == 0x80 {
			from--
		}
		for to < len(text) && text[to]&0xC0 == 0x80 {
			to++
		}
	}
	var out []piece
	if from > 0 {
		out = append(out, piece{Text: "…"})
	}
	at := from
	for _, m := range marks {
		if m[0] < at || m[1] > to {
			continue
		}
		if m[0] > at {
			out = append(out, piece{Text: text[at:m[0]]})
		}
		out = append(out, piece{text[m[0]:m[1]], true})
		at = m[1]
	}
	if at < to {
		out = append(out, piece{Text: text[at:to]})
	}
	if to < len(text) {
		out = append(out, piece{Text: "…"})
	}
	return out
}

// facets prepares the lists that narrow a search, and the histogram.
func (c *Console) facets(ctx context.Context, d *searchData, found *Found) error {
	link := func(name, value string) string {
		v := d.Asked.values()
		v.Set("words", d.Asked.Words)
		v.Set(name, value)
		return pathSearch + "?" + v.Encode()
	}
	for _, b := range found.Facets["sender"] {
		d.Senders = append(d.Senders, facetView{Value: b.Value, Label: b.Value, URL: link("sender", b.Value), Count: b.Count})
	}
	for _, b := range found.Facets["kind"] {
		d.ByKind = append(d.ByKind, facetView{Value: b.Value, Label: b.Value, URL: link("kind", b.Value), Count: b.Count})
	}
	var nids []int64
	for _, b := range found.Facets["room"] {
		n, _ := strconv.ParseInt(b.Value, 10, 64)
		nids = append(nids, n)
	}
	rooms := map[int64]string{}
	err := c.Store.ReadOne(ctx, func(tx *store.Tx) error {
		list, err := tx.ArchiveRooms(nids, nil)
		for _, r := range list {
			rooms[r.NID] = r.RoomID
		}
		return err
	})
	if err != nil {
		return err
	}
	for i, b := range found.Facets["room"] {
		if roomID := rooms[nids[i]]; roomID != "" {
			d.Rooms = append(d.Rooms, facetView{Value: roomID, Label: c.roomName(ctx, roomID), URL: link("room", roomID), Count: b.Count})
		}
	}
	d.bars(found.Facets["day"])
	return nil
}

const (
	pictureWidth  = 600
	pictureHeight = 90
)

// bars draws the hits over time: at most histogram bars, each of as many days as it takes.
func (d *searchData) bars(days []Bucket) {
	if len(days) == 0 {
		return
	}
	day := func(b Bucket) int64 { n, _ := strconv.ParseInt(b.Value, 10, 64); return n }
	first, last := day(days[0]), day(days[len(days)-1])
	each := (last-first)/histogram + 1
	n := (last-first)/each + 1
	counts := make([]int64, n)
	for _, b := range days {
		counts[(day(b)-first)/each] += b.Count
	}
	d.Most = slices.Max(counts)
	width := min(pictureWidth/n, 40)
	date := func(n int64) string { return time.Unix(n*86400, 0).UTC().Format(time.DateOnly) }
	for i, count := range counts {
		h := count * (pictureHeight - 4) / d.Most
		if count > 0 {
			h = max(h, 2)
		}
		title := date(first + int64(i)*each)
		if each > 1 {
			title += " – " + date(min(first+int64(i+1)*each-1, last))
		}
		d.Bars = append(d.Bars, bar{X: int64(i) * width, Y: pictureHeight - h, W: max(width-2, 1), H: h, Title: title, Count: count})
	}
	d.First, d.Last = date(first), date(last)
}

type eventData struct {
	Reason   string
	Event    string
	Room     string
	RoomName string
	Deleted  bool // the room
	Versions []hitView
	Talk     []hitView
	Members  []string
	Number   int64
	Archived int64
	Back     string
}

// showEvent handles GET /console/search/event: a message with all its versions, in its conversation, and who was there.
func (c *Console) showEvent(w http.ResponseWriter, r *http.Request, o *officer) error {
	if o.reason == "" {
		return c.pages.Render(w, r, http.StatusOK, "reason", reasonData{})
	}
	s, err := c.story(r.Context(), o, id.EventID(web.QueryString(r, "id")))
	if err != nil {
		return err
	}
	d := eventData{
		Reason: o.reason, Event: s.first.EventID, Room: s.room.RoomID, RoomName: c.roomName(r.Context(), s.room.RoomID), Deleted: s.room.Deleted,
		Members: s.members, Number: s.first.NID, Archived: s.first.Archived,
	}
	for i := range s.versions {
		d.Versions = append(d.Versions, c.view(r.Context(), &s.versions[i], nil))
	}
	for i := range s.talk {
		v := c.view(r.Context(), &s.talk[i], nil)
		v.This = s.talk[i].NID == s.first.NID
		d.Talk = append(d.Talk, v)
	}
	return c.pages.Render(w, r, http.StatusOK, "event", d)
}

// story is a message with what belongs to it.
type story struct {
	first    hit
	room     store.ArchiveRoom
	versions []hit // the message, what replaced it and what redacted it
	talk     []hit
	members  []string // who was in the room
}

const maxVersions = 200

var errNoEvent = mxerr.NotFound("the archive has no such event")

// story notes that a message is looked at, and reads it. The id of an edit gives the message that it replaces.
func (c *Console) story(ctx context.Context, o *officer, eventID id.EventID) (*story, error) {
	if c.Find == nil {
		return nil, errNoArchive
	}
	if err := c.record(ctx, o, "archive.view", string(eventID), nil); err != nil {
		return nil, err
	}
	s := &story{}
	err := c.Store.Read(ctx, func(tx *store.Tx) error {
		*s = story{}
		rows, err := tx.ArchiveVersions(string(eventID), maxVersions)
		if err != nil {
			return err
		}
		this := slices.IndexFunc(rows, func(e store.ArchiveEntry) bool { return e.EventID == string(eventID) })
		if this < 0 {
			return errNoEvent
		}
		if target := rows[this].Target; target != "" {
			first, err := tx.ArchiveVersions(target, maxVersions)
			if err != nil {
				return err
			}
			at := slices.IndexFunc(first, func(e store.ArchiveEntry) bool { return e.EventID == target })
			if at >= 0 && first[at].Room == rows[this].Room {
				rows, this = first, at
			}
		}
		s.first = describe(rows[this])
		rows = slices.DeleteFunc(rows, func(e store.ArchiveEntry) bool { return e.Room != s.first.Room || e.Status != store.StatusAccepted })
		before, err := tx.ArchiveAround(s.first.Room, -1<<62, s.first.Ord+1, true, around+1)
		if err != nil {
			return err
		}
		after, err := tx.ArchiveAround(s.first.Room, s.first.Ord, 1<<62, false, around)
		if err != nil {
			return err
		}
		slices.Reverse(before)
		rooms, err := tx.ArchiveRooms([]int64{s.first.Room}, nil)
		if err != nil {
			return err
		}
		if len(rooms) > 0 {
			s.room = rooms[0]
		}
		if s.versions, err = c.describeAll(tx, rows); err != nil {
			return err
		}
		if s.talk, err = c.describeAll(tx, append(before, after...)); err != nil {
			return err
		}
		return tx.ArchiveMembers(s.first.Room, s.first.Ord, func(user string, membership int64) {
			if membership == joined {
				s.members = append(s.members, user)
			}
		})
	})
	return s, err
}

const joined = 2 // as in memberships

func (c *Console) describeAll(tx *store.Tx, rows []store.ArchiveEntry) ([]hit, error) {
	out := make([]hit, len(rows))
	byNID := map[int64]*hit{}
	for i, row := range rows {
		out[i] = describe(row)
		byNID[row.NID] = &out[i]
	}
	return out, c.complete(tx, byNID)
}
