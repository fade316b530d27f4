package room

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/tidwall/gjson"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/store"
)

var plainRoom, spaceRoom = "", "m.space" // what nearly all rooms are

// createdType is the type that a room is made with by its m.room.create. It never changes: this event alone is never redacted here.
func createdType(create *event.Event) string {
	if t := gjson.GetBytes(create.Content(), "type"); t.Type == gjson.String {
		return t.String()
	}
	return plainRoom
}

func (r *Room) noteType(t string) {
	switch t {
	case plainRoom:
		r.made.Store(&plainRoom)
	case spaceRoom:
		r.made.Store(&spaceRoom)
	default:
		r.made.Store(&t)
	}
}

// KnownType is the type that the room was made with, "" for rooms without one; ok is false where this process does not know it. Unlike
// Type, it needs no loaded room.
func (r *Room) KnownType() (t string, ok bool) {
	if p := r.made.Load(); p != nil {
		return *p, true
	}
	return "", false
}

// typesAtOnce bounds the transactions of NoteTypes.
const typesAtOnce = 500

// NoteTypes keeps the types of rooms of which they were not known, in memory and for rooms from before types were noted
// also in the database.
func (rs *Rooms) NoteTypes(ctx context.Context, types map[*Room]string) error {
	byNID := make(map[int64]string, len(types))
	nids := make([]int64, 0, len(types))
	for r, t := range types {
		r.noteType(t)
		if strings.Contains(t, "\x00") {
			continue // PostgreSQL's texts cannot hold it
		}
		byNID[r.nid] = t
		nids = append(nids, r.nid)
	}
	err := rs.d.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
		nids, err = tx.RoomsWithoutType(nids)
		return err
	})
	if err != nil {
		return fmt.Errorf("rooms without a type: %w", err)
	}
	slices.Sort(nids)
	for chunk := range slices.Chunk(nids, typesAtOnce) {
		err := rs.d.Store.Write(ctx, func(tx *store.Tx) error {
			for _, nid := range chunk {
				if err := tx.SetRoomType(nid, byNID[nid]); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("note the types of rooms: %w", err)
		}
	}
	return nil
}
