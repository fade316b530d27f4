package console

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// Query is what an officer looks for; what is empty does not restrict.
type Query struct {
	Words   string
	Senders []string
	Rooms   []int64 // nil: all
	Kinds   []string
	Flags   []string // edit, superseded, redacted, file
	From    int64    // ms since 1970
	To      int64    // exclusive
	After   *Cursor
	Limit   int
	Facets  bool
	Count   bool // Found.Total is to be all, whatever it takes; facets come with that

	gone bool // the room was deleted, so that the index does not know it
}

// Cursor is a place among the hits, newest first.
type Cursor struct{ TS, NID int64 }

// Bucket is a value with its number of hits.
type Bucket struct {
	Value string `json:"value"`
	Count int64  `json:"count"`
}

// Found is what the engine found. Hits may hold some that do not match: Matches has the last word.
type Found struct {
	Hits      []Cursor
	Total     int64
	AtLeast   bool                // there may be more than Total
	Facets    map[string][]Bucket // by sender, room (numbers), kind, day (since 1970)
	Matches   func(texts ...string) bool
	Highlight func(text string) [][2]int
}

// Words is a parsed search term.
type Words struct {
	Matches   func(texts ...string) bool
	Highlight func(text string) [][2]int
}

// FindFunc asks the search engine for versions of messages. Errors are for people.
type FindFunc func(ctx context.Context, q *Query) (*Found, error)

var kinds = []string{"text", "notice", "image", "file", "audio", "video", "sticker", "poll", "name", "topic", "other"}

// asked is a query as people write it: in the address of the page, or as JSON.
type asked struct {
	Words      string `json:"words"`
	Sender     string `json:"sender"`
	Room       string `json:"room"`
	Kind       string `json:"kind"`
	From       string `json:"from"` // 2026-01-31
	To         string `json:"to"`   // inclusive
	Attachment bool   `json:"attachment"`
	State      string `json:"state"` // "", edited, replaced, deleted
	After      string `json:"after"`
	Limit      int    `json:"limit"`
}

func askedOf(v url.Values) asked {
	return asked{
		Words: v.Get("words"), Sender: v.Get("sender"), Room: v.Get("room"), Kind: v.Get("kind"), From: v.Get("from"), To: v.Get("to"),
		Attachment: v.Get("attachment") != "", State: v.Get("state"), After: v.Get("after"),
	}
}

// values is the query as an address.
func (a *asked) values() url.Values {
	v := url.Values{}
	for _, f := range [][2]string{{"words", a.Words}, {"sender", a.Sender}, {"room", a.Room}, {"kind", a.Kind}, {"from", a.From}, {"to", a.To}, {"state", a.State}} {
		if f[1] != "" {
			v.Set(f[0], f[1])
		}
	}
	if a.Attachment {
		v.Set("attachment", "1")
	}
	return v
}

// details is the query for the audit log.
func (a *asked) details() map[string]any {
	d := map[string]any{}
	for k, v := range a.values() {
		d[k] = v[0]
	}
	if a.After != "" {
		d["after"] = a.After
	}
	return d
}

var stateFlags = map[string]string{"edited": "edit", "replaced": "superseded", "deleted": "redacted"}

// query checks what was asked for.
func (c *Console) query(ctx context.Context, a *asked) (*Query, error) {
	q := &Query{Words: strings.TrimSpace(a.Words)}
	q.Senders = append(q.Senders, strings.Fields(strings.ReplaceAll(a.Sender, ",", " "))...)
	if a.Kind != "" {
		if !slices.Contains(kinds, a.Kind) {
			return nil, mxerr.InvalidParam("there is no such kind of message; there are " + strings.Join(kinds, ", "))
		}
		q.Kinds = []string{a.Kind}
	}
	if a.Attachment {
		q.Flags = append(q.Flags, "file")
	}
	if a.State != "" {
		f, ok := stateFlags[a.State]
		if !ok {
			return nil, mxerr.InvalidParam("the state of messages is edited, replaced or deleted")
		}
		q.Flags = append(q.Flags, f)
	}
	for _, d := range []struct {
		text string
		to   *int64
		plus time.Duration
	}{{a.From, &q.From, 0}, {a.To, &q.To, 24 * time.Hour}} {
		if d.text == "" {
			continue
		}
		at, err := time.Parse(time.DateOnly, d.text)
		if err != nil {
			return nil, mxerr.InvalidParam("a date is written like 2026-01-31")
		}
		*d.to = at.Add(d.plus).UnixMilli()
	}
	if a.After != "" {
		ts, nid, _ := strings.Cut(a.After, ".")
		x, err1 := strconv.ParseInt(ts, 10, 64)
		y, err2 := strconv.ParseInt(nid, 10, 64)
		if err1 != nil || err2 != nil {
			return nil, mxerr.InvalidParam("this page does not exist")
		}
		q.After = &Cursor{x, y}
	}
	if room := strings.TrimSpace(a.Room); room != "" {
		q.Rooms = []int64{}
		err := c.Store.ReadOne(ctx, func(tx *store.Tx) error {
			rooms, err := tx.ArchiveRooms(nil, []string{room})
			for _, r := range rooms {
				q.Rooms = append(q.Rooms, r.NID)
				q.gone = r.Deleted
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		if len(q.Rooms) == 0 {
			return nil, mxerr.InvalidParam("the archive has no room " + room)
		}
	}
	return q, nil
}

// hit is a version of a message in the archive.
type hit struct {
	store.ArchiveEntry
	RoomID  string
	Sender  string
	Type    string
	Text    string
	File    string // its name, "" for none
	Edited  bool   // a later version replaced it, or it replaces one
	Deleted bool
	at      Cursor
}

// said is the content of a version: of an edit its new content.
func said(body []byte) (f []gjson.Result) {
	f = gjson.GetManyBytes(body, "type", "sender", "content")
	if n := f[2].Get(`m\.new_content`); n.IsObject() && f[2].Get(`m\.relates_to.rel_type`).Str == "m.replace" {
		f[2] = n
	}
	return f
}

// describe reads an archived event.
func describe(e store.ArchiveEntry) hit {
	f := said(e.Body)
	h := hit{ArchiveEntry: e, Type: f[0].Str, Sender: f[1].Str, at: Cursor{e.TS, e.NID}}
	content := f[2]
	switch h.Type {
	case "m.room.name":
		h.Text = content.Get("name").Str
	case "m.room.topic":
		h.Text = content.Get("topic").Str
	case "m.room.member":
		h.Text = content.Get("membership").Str + " " + e.User
	case "m.room.redaction":
		h.Text = content.Get("reason").Str
	case "m.room.message", "m.sticker":
		h.Text = content.Get("body").Str
	default:
		h.Text = content.Get(`m\.poll.question.m\.text.0.body`).Str
		if h.Text == "" {
			h.Text = content.Get(`org\.matrix\.msc3381\.poll\.start.question.org\.matrix\.msc1767\.text`).Str
		}
		if h.Text == "" {
			h.Text = content.Get("body").Str
		}
	}
	if content.Get("url").Type == gjson.String || content.Get("file.url").Type == gjson.String {
		if h.File = content.Get("filename").Str; h.File == "" {
			h.File = content.Get("body").Str
		}
	}
	return h
}

// mxc is the address of a version's file.
func (h *hit) mxc() string { return said(h.Body)[2].Get("url").Str }

// read reads hits out of the archive, in their order, and leaves out those that do not match.
func (c *Console) read(ctx context.Context, found *Found) ([]hit, error) {
	nids := make([]int64, len(found.Hits))
	for i, h := range found.Hits {
		nids[i] = h.NID
	}
	byNID := map[int64]*hit{}
	var all []hit
	err := c.Store.Read(ctx, func(tx *store.Tx) error {
		rows, err := tx.ArchiveByNID(nids)
		if err != nil {
			return err
		}
		for _, row := range rows {
			h := describe(row)
			byNID[row.NID] = &h
		}
		return c.complete(tx, byNID)
	})
	if err != nil {
		return nil, err
	}
	files := map[string]string{}
	var media []string
	for _, h := range byNID {
		if h.File != "" && found.Matches != nil && !found.Matches(h.Text, h.File) {
			media = append(media, h.mxc())
		}
	}
	if len(media) > 0 {
		err := c.Store.ReadOne(ctx, func(tx *store.Tx) error {
			return tx.SearchFiles(media, func(f store.SearchFile) { files[f.Media] = string(f.Text) })
		})
		if err != nil {
			return nil, err
		}
	}
	for _, at := range found.Hits {
		h := byNID[at.NID]
		if h == nil { // it is about to be archived
			continue
		}
		poll := strings.Contains(h.Type, "poll")
		if found.Matches == nil || poll || found.Matches(h.Text, h.File) || h.File != "" && files[h.mxc()] != "" && found.Matches(h.Text, h.File, files[h.mxc()]) {
			h.at = at
			all = append(all, *h)
		}
	}
	return all, nil
}

// complete adds the rooms of hits and what became of them.
func (c *Console) complete(tx *store.Tx, hits map[int64]*hit) error {
	var rooms []int64
	var ids []string
	byID := map[string]*hit{}
	for _, h := range hits {
		rooms = append(rooms, h.Room)
		ids = append(ids, h.EventID)
		byID[h.EventID] = h
	}
	list, err := tx.ArchiveRooms(rooms, nil)
	if err != nil {
		return err
	}
	names := map[int64]string{}
	for _, r := range list {
		names[r.NID] = r.RoomID
	}
	later, err := tx.ArchiveTargets(ids)
	if err != nil {
		return err
	}
	for _, l := range later {
		h := byID[l.Target]
		if h == nil || l.Room != h.Room || l.Status != store.StatusAccepted {
			continue
		}
		if gjson.GetBytes(l.Body, "type").Str == "m.room.redaction" {
			h.Deleted = true
		} else {
			h.Edited = true
		}
	}
	for _, h := range hits {
		h.RoomID = names[h.Room]
		h.Edited = h.Edited || h.Target != "" && h.Type != "m.room.redaction"
	}
	return nil
}

var errNoArchive = mxerr.New(http.StatusNotFound, "M_NOT_FOUND", "this server has no archive, or no search engine: compliance.archive and search.engine in its configuration")

// find asks the engine.
func (c *Console) find(ctx context.Context, q *Query) (*Found, error) {
	if c.Find == nil {
		return nil, errNoArchive
	}
	if q.gone {
		return c.scan(ctx, q)
	}
	return c.Find(ctx, q)
}

// ask notes a search, and gives the hits of a page and where the next page begins, "" for no more.
func (c *Console) ask(ctx context.Context, o *officer, a *asked, limit int) (found *Found, hits []hit, next string, err error) {
	q, err := c.query(ctx, a)
	if err != nil {
		return nil, nil, "", err
	}
	q.Limit, q.Facets, q.Count = limit, true, true
	if err := c.record(ctx, o, "archive.search", a.Room, a.details()); err != nil {
		return nil, nil, "", err
	}
	if found, err = c.find(ctx, q); err != nil {
		return nil, nil, "", err
	}
	if hits, err = c.read(ctx, found); err != nil {
		return nil, nil, "", err
	}
	if len(found.Hits) == limit {
		last := found.Hits[limit-1]
		next = fmt.Sprintf("%d.%d", last.TS, last.NID)
	}
	return found, hits, next, nil
}

// roomName is what a room is called, its id where it has no name.
func (c *Console) roomName(ctx context.Context, roomID string) string {
	if name := c.RoomName(ctx, id.RoomID(roomID)); name != "" {
		return name
	}
	return roomID
}
