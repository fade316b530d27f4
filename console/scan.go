package console

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"

	"github.com/moothall/moothall/homeserver/store"
)

const (
	scanChunk = 500
	maxScan   = 200_000 // entries of a deleted room that one query looks at
	facetSize = 10
)

// kindOf is what a version is, in the words of the index; "" for what is not searched for.
func kindOf(h *hit) string {
	switch {
	case h.Type == "m.room.name":
		return "name"
	case h.Type == "m.room.topic":
		return "topic"
	case h.Type == "m.sticker":
		return "sticker"
	case strings.Contains(h.Type, "poll.start"):
		return "poll"
	case h.Type != "m.room.message":
		return ""
	}
	switch m := gjson.GetBytes(h.Body, "content.msgtype").Str; m {
	case "m.text", "m.emote":
		return "text"
	case "m.notice", "m.image", "m.file", "m.audio", "m.video":
		return strings.TrimPrefix(m, "m.")
	}
	return "other"
}

// wants tells whether a version is what is looked for, words aside.
func (q *Query) wants(h *hit) bool {
	kind := kindOf(h)
	if kind == "" || len(q.Kinds) > 0 && !slices.Contains(q.Kinds, kind) || len(q.Senders) > 0 && !slices.Contains(q.Senders, h.Sender) ||
		q.From != 0 && h.TS < q.From || q.To != 0 && h.TS >= q.To {
		return false
	}
	for _, f := range q.Flags {
		has := false
		switch f {
		case "file":
			has = h.File != ""
		case "edit":
			has = h.Target != ""
		case "superseded":
			has = h.Edited && h.Target == ""
		case "redacted":
			has = h.Deleted
		}
		if !has {
			return false
		}
	}
	return true
}

// scan looks through a deleted room in the archive itself, newest first: its messages are not in the index any more.
func (c *Console) scan(ctx context.Context, q *Query) (*Found, error) {
	found := &Found{Facets: map[string][]Bucket{}}
	if q.Words != "" {
		w, err := c.Words(q.Words)
		if err != nil {
			return nil, err
		}
		found.Matches, found.Highlight = w.Matches, w.Highlight
	}
	counts := map[string]map[string]int64{"sender": {}, "room": {}, "kind": {}, "day": {}}
	before := int64(1 << 62)
	if q.After != nil && !q.Count {
		before = q.After.TS // the cursor of a scan is the place in the room
	}
	for scanned := 0; ; {
		var hits []hit
		n := 0
		err := c.Store.Read(ctx, func(tx *store.Tx) error {
			rows, err := tx.ArchiveAround(q.Rooms[0], -1<<62, before, true, scanChunk)
			if err != nil || len(rows) == 0 {
				n = 0
				return err
			}
			n, before = len(rows), rows[len(rows)-1].Ord
			hits, err = c.describeAll(tx, rows)
			return err
		})
		if err != nil {
			return nil, err
		}
		for i := range hits {
			h := &hits[i]
			if !q.wants(h) || found.Matches != nil && !found.Matches(h.Text, h.File) {
				continue
			}
			found.Total++
			for field, value := range map[string]string{"sender": h.Sender, "kind": kindOf(h), "room": strconv.FormatInt(h.Room, 10), "day": strconv.FormatInt(h.TS/86_400_000, 10)} {
				counts[field][value]++
			}
			if len(found.Hits) < q.Limit && (q.After == nil || h.Ord < q.After.TS) {
				found.Hits = append(found.Hits, Cursor{TS: h.Ord, NID: h.NID})
			}
		}
		scanned += n
		if n < scanChunk || !q.Count && len(found.Hits) == q.Limit {
			break
		}
		if scanned >= maxScan {
			found.AtLeast = true
			if len(found.Hits) == q.Limit || q.Count {
				break
			}
		}
	}
	for field, values := range counts {
		for value, n := range values {
			found.Facets[field] = append(found.Facets[field], Bucket{value, n})
		}
		slices.SortFunc(found.Facets[field], func(a, b Bucket) int {
			if field == "day" {
				x, _ := strconv.ParseInt(a.Value, 10, 64)
				y, _ := strconv.ParseInt(b.Value, 10, 64)
				return cmp.Compare(x, y)
			}
			return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Value, b.Value))
		})
		if field != "day" {
			found.Facets[field] = found.Facets[field][:min(len(found.Facets[field]), facetSize)]
		}
	}
	return found, nil
}
