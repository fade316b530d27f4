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

	user    string
	changed int64 // ms: when it began or ended
}

// redactOrder says what of a user is redacted.
type redactOrder struct {
	user, as      id.UserID // as: who redacts
	rooms         []id.RoomID
	reason        string
	limit         int   // in each room
	after, before int64 // ms
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

// redactUser handles POST /_synapse/admin/v1/user/{userId}/redact, in the background: as the user, or with use_admin as the
// administrator, who then needs the power for it in the rooms.
func (a *API) redactUser(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSON[struct {
		Rooms    []id.RoomID `json:"rooms"`
		Reason   string      `json:"reason"`
		Limit    *int        `json:"limit"`
		UseAdmin bool        `json:"use_admin"`
		After    *int64      `json:"after_ts"`
		Before   *int64      `json:"before_ts"`
	}](r)
	if err != nil {
		return err
	}
	o := redactOrder{rooms: req.Rooms, reason: req.Reason, limit: redactAtMost, before: math.MaxInt64}
	if req.Limit != nil {
		if o.limit = *req.Limit; o.limit <= 0 {
			return mxerr.InvalidParam("'limit' must be greater than 0")
		}
	}
	if req.After != nil {
		o.after = *req.After
	}
	if req.Before != nil {
		o.before = *req.Before
	}
	if o.user, err = a.userPath(r); err != nil {
		return err
	}
	if o.as = o.user; req.UseAdmin {
		o.as = web.Requester(r).UserID
	}
	if req.Rooms == nil {
		return mxerr.MissingParam("'rooms' is required: a list of room ids, empty for all rooms of the user")
	}
	if len(o.rooms) == 0 {
		err := a.Store.ReadOne(r.Context(), func(tx *store.Tx) error {
			return tx.UserMemberships(o.user, func(roomID string, _ int64) { o.rooms = append(o.rooms, id.RoomID(roomID)) })
		})
		if err != nil {
			return err
		}
	}
	if err := a.audited(r, "admin.user.redacted", string(o.user), map[string]any{"rooms": len(o.rooms), "reason": req.Reason}); err != nil {
		return err
	}
	job := newJobID()
	x := &redaction{Status: "active", Failed: map[string]string{}, user: string(o.user), changed: a.nowMS()}
	a.redacts.mu.Lock()
	a.redacts.byID[job] = x
	a.redacts.ids = append(a.redacts.ids, job)
	for len(a.redacts.ids) > keepJobs {
		delete(a.redacts.byID, a.redacts.ids[0])
		a.redacts.ids = a.redacts.ids[1:]
	}
	a.redacts.mu.Unlock()
	go a.redactAll(context.WithoutCancel(r.Context()), x, o)
	return web.WriteJSON(w, map[string]string{"redact_id": job})
}

// redactAll redacts up to the limit of messages of a user in each room.
func (a *API) redactAll(ctx context.Context, x *redaction, o redactOrder) {
	content := []byte(`{}`)
	if reason, err := json.Marshal(map[string]string{"reason": o.reason}); err == nil && o.reason != "" {
		content = reason
	}
	for _, roomID := range o.rooms {
		rm, err := a.Rooms.Room(ctx, roomID)
		if err != nil {
			continue
		}
		q := room.TimelineQuery{From: math.MaxInt64, Backwards: true, Limit: redactPage, Match: func(e *room.Event) bool {
			_, state := e.PDU.StateKey()
			ts := e.PDU.OriginServerTS()
			return e.PDU.Sender() == o.user && !state && e.RedactedBy == 0 && e.PDU.Type() != "m.room.redaction" && ts >= o.after && ts <= o.before
		}}
		for left := o.limit; left > 0; {
			page, err := a.Rooms.Timeline(ctx, rm, q)
			if err != nil {
				a.Logger.Error("redact all messages of a user", "room_id", roomID, "error", err)
				break
			}
			for _, e := range page.Events[:min(left, len(page.Events))] {
				_, err := a.Rooms.Send(ctx, roomID, room.Draft{Type: "m.room.redaction", Content: content, Redacts: e.ID(), Sender: o.as})
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
	x.Status, x.changed = "complete", a.nowMS()
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
