package account

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/store"
)

const (
	directoryDefault = 10
	directoryMax     = 100
	// directoryScan is how many candidates are ranked at most: the shortest names come first from the store.
	directoryScan = 500
	maxSearchTerm = 256 // bytes; what is behind is not looked at
)

// DirectoryResult is a user whom a search found.
type DirectoryResult struct {
	UserID      id.UserID `json:"user_id"`
	DisplayName *string   `json:"display_name,omitzero"`
	AvatarURL   *string   `json:"avatar_url,omitzero"`
}

// Search finds users whose local part or display name holds every word of a term somewhere, in any letter case, or whose
// user id begins with the term. They share a room with the searcher or are in a public one. limit 0 means 10; limited
// tells that there are more. Exact names come first, then beginnings of names and of words, then the rest.
// Spec: client-server API, "User Directory".
func (p *Profiles) Search(ctx context.Context, searcher id.UserID, term string, limit int) (results []DirectoryResult, limited bool, err error) {
	if limit <= 0 {
		limit = directoryDefault
	}
	limit = min(limit, directoryMax)
	term = strings.TrimSpace(Fold(cutBytes(strings.ReplaceAll(term, "\x00", ""), maxSearchTerm)))
	words := strings.Fields(term)
	if len(words) == 0 {
		return nil, false, nil
	}
	longest := slices.MaxFunc(words, func(a, b string) int { return cmp.Compare(len(a), len(b)) })
	pattern := "%" + likeEscaper.Replace(longest) + "%"
	userID := "@" + likeEscaper.Replace(strings.TrimPrefix(term, "@")) + "%"
	var found []store.DirectoryEntry
	err = p.Store.Read(ctx, func(tx *store.Tx) error {
		if found, err = tx.SearchDirectory(searcher, pattern, userID, directoryScan); err != nil {
			return err
		}
		limited = len(found) == directoryScan
		if p.Everyone {
			return nil
		}
		found, err = p.open.visible(tx, found)
		return err
	})
	if err != nil {
		return nil, false, err
	}
	found = slices.DeleteFunc(found, func(e store.DirectoryEntry) bool { return rank(e, term, words) == rankNone })
	slices.SortStableFunc(found, func(a, b store.DirectoryEntry) int {
		return cmp.Or(
			cmp.Compare(rank(a, term, words), rank(b, term, words)),
			cmp.Compare(bare(a), bare(b)),
			cmp.Compare(a.Folded, b.Folded),
			cmp.Compare(a.User, b.User),
		)
	})
	if len(found) > limit {
		found, limited = found[:limit], true
	}
	for _, e := range found {
		results = append(results, DirectoryResult{e.User, e.DisplayName, e.AvatarURL})
	}
	return results, limited, nil
}

// likeEscaper keeps the special characters of LIKE from their meaning.
var likeEscaper = strings.NewReplacer("!", "!!", "%", "!%", "_", "!_")

func cutBytes(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "")
}

// bare is 1 for users without profile information, who come behind those of the same rank.
func bare(e store.DirectoryEntry) int {
	if e.DisplayName == nil && e.AvatarURL == nil {
		return 1
	}
	return 0
}

// How well a user fits a term, best first.
const (
	rankExact = iota
	rankPrefix
	rankWord
	rankPart
	rankNone
)

func rank(e store.DirectoryEntry, term string, words []string) int {
	userID := strings.TrimPrefix(string(e.User), "@")
	bareTerm := strings.TrimPrefix(term, "@")
	switch {
	case e.Folded == term, e.Localpart == bareTerm, userID == bareTerm, slices.Contains(strings.Fields(e.Latin), term):
		return rankExact
	case strings.HasPrefix(e.Folded, term), strings.HasPrefix(userID, bareTerm), strings.HasPrefix(" "+e.Latin, " "+term):
		return rankPrefix
	}
	out := rankWord
	for _, word := range words {
		switch {
		case strings.HasPrefix(e.Folded, word), strings.Contains(e.Folded, " "+word), strings.HasPrefix(e.Localpart, word), strings.Contains(" "+e.Latin, " "+word):
		case strings.Contains(e.Folded, word), strings.Contains(e.Localpart, word), strings.Contains(e.Latin, word):
			out = rankPart
		default:
			return rankNone
		}
	}
	return out
}

const maxOpenEvents = 100_000

// openEvents remembers of join rules and history visibility whether they open their room to everybody. An event never
// changes what it says of that, even when it is redacted.
type openEvents struct {
	mu    sync.Mutex
	known map[int64]bool // by the event's nid
}

// visible leaves out the users whom the searcher may not know of: who share no room with the searcher and are in no room
// that is published, may be joined by all, or can be read by all.
func (o *openEvents) visible(tx *store.Tx, found []store.DirectoryEntry) ([]store.DirectoryEntry, error) {
	var strangers []string
	for _, e := range found {
		if !e.Known {
			strangers = append(strangers, string(e.User))
		}
	}
	if len(strangers) == 0 {
		return found, nil
	}
	events, err := tx.OpennessOf(strangers)
	if err != nil {
		return nil, err
	}
	open, err := o.of(tx, events)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(found, func(e store.DirectoryEntry) bool {
		return !e.Known && !slices.ContainsFunc(events[e.User], func(nid int64) bool { return open[nid] })
	}), nil
}

// of tells of all events whether they open their room.
func (o *openEvents) of(tx *store.Tx, events map[id.UserID][]int64) (map[int64]bool, error) {
	open := map[int64]bool{}
	var unread []int64
	o.mu.Lock()
	for _, nids := range events {
		for _, nid := range nids {
			if v, ok := o.known[nid]; ok {
				open[nid] = v
			} else if _, listed := open[nid]; !listed {
				open[nid] = false
				unread = append(unread, nid)
			}
		}
	}
	o.mu.Unlock()
	if len(unread) == 0 {
		return open, nil
	}
	err := tx.EventBodies(unread, func(nid int64, body []byte) {
		open[nid] = gjson.GetBytes(body, "content.join_rule").String() == "public" ||
			gjson.GetBytes(body, "content.history_visibility").String() == "world_readable"
	})
	if err != nil {
		return nil, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.known)+len(unread) > maxOpenEvents {
		clear(o.known) // what is needed is read again
	}
	for _, nid := range unread {
		o.known[nid] = open[nid]
	}
	return open, nil
}
