package store

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
)

// MXC finds the mxc URIs in JSON as it was sent: server and media id.
var MXC = regexp.MustCompile(`mxc:\\?/\\?/([^/"\\]+)\\?/([A-Za-z0-9_-]+)`)

// MediaAge asks for files that nobody has fetched for long.
type MediaAge struct {
	Origin     string
	Before     int64 // ms since 1970: neither fetched nor uploaded since
	Larger     int64 // of more bytes than this
	KeepShown  bool  // leaves out what profiles and rooms show
	KeepMarked bool  // leaves out what administrators hid or protected
	Limit      int   // how many are looked at

	// where the page begins, and what rooms show, once it is known
	after   int64
	afterID string
	rooms   map[string]bool
}

// OldMedia gives a page of old files, the longest unused first, and what to ask for the next page, if there may be more.
func (tx *Tx) OldMedia(q MediaAge) (ids []string, next MediaAge, more bool, err error) {
	owners := map[string][]string{} // files by uploader
	n := 0
	err = tx.Each(`SELECT media_id, usr, accessed FROM media WHERE origin = $1 AND usr <> '' AND expires IS NULL AND accessed < $2 AND size > $3
		AND (accessed > $4 OR accessed = $4 AND media_id > $5) AND ($6 = 0 OR protected = 0 AND quarantined = 0) ORDER BY accessed, media_id LIMIT $7`,
		[]any{q.Origin, q.Before, q.Larger, q.after, q.afterID, q.KeepMarked, q.Limit}, func(r *Row) error {
			var owner string
			if err := r.Scan(&q.afterID, &owner, &q.after); err != nil {
				return err
			}
			ids = append(ids, q.afterID)
			owners[owner] = append(owners[owner], q.afterID)
			n++
			return nil
		})
	if err != nil {
		return nil, q, false, fmt.Errorf("read old files: %w", err)
	}
	if q.KeepShown && n > 0 {
		if q.rooms == nil {
			if q.rooms, err = tx.mediaOfRooms(q.Origin); err != nil {
				return nil, q, false, fmt.Errorf("read what rooms show: %w", err)
			}
		}
		shown, err := tx.mediaOfProfiles(q.Origin, ids, slices.Sorted(maps.Keys(owners)))
		if err != nil {
			return nil, q, false, fmt.Errorf("read what profiles show: %w", err)
		}
		ids = slices.DeleteFunc(ids, func(mediaID string) bool { return shown[mediaID] || q.rooms[mediaID] })
	}
	return ids, q, n == q.Limit, nil
}

// DeleteOldMedia removes those of some files that nobody has fetched since OldMedia gave them, as DeleteMedia does.
func (tx *Tx) DeleteOldMedia(q MediaAge, mediaIDs []string) (deleted []string, hashes [][]byte, err error) {
	var still []string
	err = tx.Each(`SELECT media_id FROM media WHERE origin = $1 AND media_id IN @text($2) AND accessed < $3`, []any{q.Origin, mediaIDs, q.Before}, func(r *Row) error {
		var mediaID string
		err := r.Scan(&mediaID)
		still = append(still, mediaID)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	return tx.DeleteMedia(q.Origin, still)
}

// NoteMediaUse notes that files were fetched.
func (tx *Tx) NoteMediaUse(origin string, mediaIDs []string, now int64) error {
	_, err := tx.Exec(`UPDATE media SET accessed = $3 WHERE origin = $1 AND media_id IN @text($2) AND accessed < $3`, origin, mediaIDs, now)
	return err
}

// mentioned adds the files of a server that JSON names.
func mentioned(files map[string]bool, origin string, json []byte) {
	for _, m := range MXC.FindAllSubmatch(json, -1) {
		if string(m[1]) == origin {
			files[string(m[2])] = true
		}
	}
}

// eachMentioned adds what the bodies of a query name.
func (tx *Tx) eachMentioned(files map[string]bool, origin, sql string, args ...any) error {
	return tx.Each(sql, args, func(r *Row) error {
		var body Content
		if err := r.Scan(&body); err != nil {
			return err
		}
		mentioned(files, origin, body)
		return nil
	})
}

// mediaOfRooms gives the files that rooms show by their current state: avatars, and the images of packs (MSC2545).
func (tx *Tx) mediaOfRooms(origin string) (map[string]bool, error) {
	const chunk = 1000
	out := map[string]bool{}
	for last := int64(-1); ; {
		var rooms []int64
		err := tx.Each(`SELECT nid FROM rooms WHERE nid > $1 ORDER BY nid LIMIT $2`, []any{last, chunk}, func(r *Row) error {
			err := r.Scan(&last)
			rooms = append(rooms, last)
			return err
		})
		if err != nil || len(rooms) == 0 {
			return out, err
		}
		err = tx.eachMentioned(out, origin, `SELECT e.body FROM room_state s JOIN events e ON e.nid = s.nid
			WHERE s.room IN @int($1) AND s.type IN ('m.room.avatar', 'm.room.image_pack', 'im.ponies.room_emotes')`, rooms)
		if err != nil {
			return nil, err
		}
	}
}

// mediaOfProfiles gives those files that are users' avatars, and whatever files their uploaders show: in fields of their
// profiles, as their avatars in single rooms, in their packs of images.
func (tx *Tx) mediaOfProfiles(origin string, mediaIDs, owners []string) (map[string]bool, error) {
	out := map[string]bool{}
	uris := make([]string, len(mediaIDs))
	for i, mediaID := range mediaIDs {
		uris[i] = "mxc://" + origin + "/" + mediaID
	}
	err := tx.Each(`SELECT avatar_url FROM profiles WHERE avatar_url IN @text($1)`, []any{uris}, func(r *Row) error {
		var uri string
		err := r.Scan(&uri)
		mentioned(out, origin, []byte(uri))
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, sql := range []string{
		`SELECT fields FROM profiles WHERE usr IN @text($1) AND fields IS NOT NULL`,
		`SELECT e.body FROM memberships m JOIN events e ON e.nid = m.nid WHERE m.usr IN @text($1) AND m.membership = 2`,
		`SELECT body FROM account_data WHERE usr IN @text($1) AND room = 0 AND type IN ('m.image_pack', 'im.ponies.user_emotes')`,
	} {
		if err := tx.eachMentioned(out, origin, sql, owners); err != nil {
			return nil, err
		}
	}
	return out, nil
}
