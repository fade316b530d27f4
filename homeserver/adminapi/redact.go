package adminapi

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"math"
	"net/http"
	"sync"

	"github.com/go-json-experiment/json"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// redacts are the redactions of all of somebody's messages that run or have run in this process.
type redacts struct {
	mu   sync.Mutex
	byID map[string]*redaction
	ids  []string
}

type redaction struct {
	Status string            `json:"status"`
	Failed map[string]string `json:"failed_redactions"`
}

const (
	keepJobs     = 200 // outcomes that are remembered
	redactAtMost = 1000
	redactPage   = 100
)

func newJobID() string {
	var b [12]byte
	_, _ = rand.Read(b[:]) // crypto/rand never fails on supported systems
	return hex.EncodeToString(b[:])
}

// redactUser handles POST /_synapse/admin/v1/user/{userId}/redact: in the background, as the administrator where that may,
// else as the user.
func (a *API) redactUser(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSON[struct {
		Rooms  []id.RoomID `json:"rooms"`
		Reason string      `json:"reason"`
		Limit  *int        `json:"limit"`
	}](r)
	if err != nil {
		return err
	}
	limit := redactAtMost
	if req.Limit != nil {
		if limit = *req.Limit; limit <= 0 {
			return mxerr.InvalidParam("'limit' must be greater than 0")
		}
	}
	user, err := a.userPath(r)
	if err != nil {
		return err
	}
	if req.Rooms == nil {
		return mxerr.MissingParam("'rooms' is required: a list of room ids, empty for all rooms of the user")
	}
	rooms := req.Rooms
	if len(rooms) == 0 {
		err := a.Store.ReadOne(r.Context(), func(tx *store.Tx) error {
			return tx.UserMemberships(user, func(roomID string, _ int64) { rooms = append(rooms, id.RoomID(roomID)) })
		})
		if err != nil {
			return err
		}
	}
	if err := a.audited(r, "admin.user.redacted", string(user), map[string]any{"rooms": len(rooms), "reason": req.Reason}); err != nil {
		return err
	}
	job := newJobID()
	x := &redaction{Status: "active", Failed: map[string]string{}}
	a.redacts.mu.Lock()
	a.redacts.byID[job] = x
	a.redacts.ids = append(a.redacts.ids, job)
	for len(a.redacts.ids) > keepJobs {
		delete(a.redacts.byID, a.redacts.ids[0])
		a.redacts.ids = a.redacts.ids[1:]
	}
	a.redacts.mu.Unlock()
	go a.redactAll(context.WithoutCancel(r.Context()), x, user, rooms, req.Reason, limit)
	return web.WriteJSON(w, map[string]string{"redact_id": job})
}

// redactAll redacts up to limit messages of a user in each room.
func (a *API) redactAll(ctx context.Context, x *redaction, user id.UserID, rooms []id.RoomID, reason string, limit int) {
	content, err := json.Marshal(map[string]string{"reason": reason})
	if err != nil {
		content = []byte(`{}`)
	}
	for _, roomID := range rooms {
		rm, err := a.Rooms.Room(ctx, roomID)
		if err != nil {
			continue
		}
		q := room.TimelineQuery{From: math.MaxInt64, Backwards: true, Limit: redactPage, Match: func(e *room.Event) bool {
			_, state := e.PDU.StateKey()
			return e.PDU.Sender() == user && !state && e.RedactedBy == 0 && e.PDU.Type() != "m.room.redaction"
		}}
		for left := limit; left > 0; {
			page, err := a.Rooms.Timeline(ctx, rm, q)
			if err != nil {
				a.Logger.Error("redact all messages of a user", "room_id", roomID, "error", err)
				break
			}
			for _, e := range page.Events[:min(left, len(page.Events))] {
				_, err := a.Rooms.Send(ctx, roomID, room.Draft{Type: "m.room.redaction", Content: content, Redacts: e.ID(), Sender: user})
				if err != nil {
					a.redacts.mu.Lock()
					x.Failed[string(e.ID())] = err.Error()
					a.redacts.mu.Unlock()
				}
			}
			left -= len(page.Events)
			if q.From = page.End; !page.More {
				break
			}
		}
	}
	a.redacts.mu.Lock()
	x.Status = "complete"
	a.redacts.mu.Unlock()
}

// redactStatus handles GET /_synapse/admin/v1/user/redact_status/{redactId}.
func (a *API) redactStatus(w http.ResponseWriter, r *http.Request) error {
	a.redacts.mu.Lock()
	defer a.redacts.mu.Unlock()
	x := a.redacts.byID[web.PathParam(r, "redactId")]
	if x == nil {
		return mxerr.NotFound("this server knows no such redaction")
	}
	return web.WriteJSON(w, x)
}
