// Package rtc is what calls need of a homeserver beside rooms: events that are sent later (MSC4140), which take a member out
// of a call whose client has vanished; the media servers that clients use (MSC4143); and tokens for LiveKit, which are given
// to members of a room that prove who they are by an OpenID token.
package rtc

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// Config is the part of the configuration that is about calls.
type Config struct {
	MaxDelay   time.Duration // of delayed events; 24 h if 0
	MaxDelayed int           // events of a user that may wait; 100 if 0
	LiveKit    LiveKit
	// Transports are further ones, each a JSON object with a type.
	Transports []jsontext.Value
}

// LiveKit names the organisation's own LiveKit server.
type LiveKit struct {
	URL       string // wss://livekit.example.org; "": there is none
	APIKey    string
	APISecret string
}

// Deps is what RTC works with.
type Deps struct {
	Store      *store.Store
	Accounts   *account.Accounts
	Rooms      *room.Rooms
	Logger     *slog.Logger
	ServerName string
	PublicURL  string
	Config     Config
	Now        func() time.Time // nil: time.Now
	// Sent is told of each event that was sent, after the fact; nil: nobody is.
	Sent func(ctx context.Context, roomID id.RoomID, eventType string)
}

// RTC holds the handlers and sends what is due.
type RTC struct {
	Deps
	kick chan struct{}
}

// New makes an RTC. Nothing is sent before Run.
func New(d Deps) *RTC {
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Logger == nil {
		d.Logger = slog.Default()
	}
	if d.Config.MaxDelay == 0 {
		d.Config.MaxDelay = 24 * time.Hour
	}
	if d.Config.MaxDelayed == 0 {
		d.Config.MaxDelayed = 100
	}
	return &RTC{Deps: d, kick: make(chan struct{}, 1)}
}

// Routes is the table of the package's endpoints.
func (s *RTC) Routes() []web.Route {
	const delayed = "/_matrix/client/unstable/org.matrix.msc4140/delayed_events"
	routes := []web.Route{
		{Pattern: "GET " + delayed, Auth: web.User, Rate: web.RateRead, Handler: s.list},
		{Pattern: "POST " + delayed + "/{delayId}", Auth: web.User, AllowSuspended: true, Rate: web.RateRead, Handler: s.update},
		{Pattern: "POST " + delayed + "/{delayId}/{action}", Auth: web.Optional, AllowSuspended: true, Rate: web.RateRead, Handler: s.act},
		{Pattern: "GET /_matrix/client/unstable/org.matrix.msc4143/rtc/transports", Auth: web.User, Rate: web.RateRead, Handler: s.transports},
	}
	if s.Config.LiveKit.URL != "" {
		routes = append(routes,
			web.Route{Pattern: "POST " + livekitPath + "/sfu/get", Auth: web.Public, Rate: web.RateLogin, Handler: s.sfuToken},
			web.Route{Pattern: "POST " + livekitPath + "/get_token", Auth: web.Public, Rate: web.RateLogin, Handler: s.memberToken},
			web.Route{Pattern: "GET " + livekitPath + "/healthz", Auth: web.Public, Handler: s.healthy})
	}
	return routes
}

const (
	keepFinished = 7 * 24 * time.Hour
	listAtMost   = 100
	dueAtOnce    = 100
	longestWait  = 5 * time.Second
	topicKick    = "delayed"
)

// Schedule notes that an event is to be sent after a delay in milliseconds and returns the id by which that can be put off
// or called off. Whether the event may be sent is decided when it is. Errors: M_INVALID_PARAM, M_MAX_DELAY_EXCEEDED by the
// proposal's name, M_LIMIT_EXCEEDED.
func (s *RTC) Schedule(ctx context.Context, roomID id.RoomID, d room.Draft, delay int64) (string, error) {
	if delay <= 0 {
		return "", mxerr.InvalidParam("the delay must be an integer of at least 1: milliseconds")
	}
	if most := s.Config.MaxDelay.Milliseconds(); delay > most {
		return "", mxerr.New(http.StatusBadRequest, "M_UNKNOWN", fmt.Sprintf("the delay must not be longer than %d ms", most)).
			With("org.matrix.msc4140.errcode", "M_MAX_DELAY_EXCEEDED").With("org.matrix.msc4140.max_delay", most)
	}
	now := s.Now().UnixMilli()
	row := store.DelayedEvent{
		ID: newID(), User: d.Sender, Device: d.Device, Room: roomID, Type: d.Type, StateKey: d.StateKey, Content: d.Content,
		Delay: delay, Started: now, Due: now + delay, Txn: d.Txn,
	}
	err := s.Store.Write(ctx, func(tx *store.Tx) error {
		n, err := tx.CountDelayedEvents(d.Sender)
		if err != nil {
			return err
		}
		if n >= int64(s.Config.MaxDelayed) {
			return mxerr.New(http.StatusBadRequest, "M_UNKNOWN", "you have too many delayed events: cancel some or wait").
				With("org.matrix.msc4140.errcode", "M_MAX_DELAYED_EVENTS_EXCEEDED")
		}
		if row.Since, err = tx.LogPosition(); err != nil {
			return err
		}
		row.ID, err = tx.InsertDelayedEvent(row)
		return err
	})
	if err != nil {
		return "", err
	}
	s.Store.Broadcast(topicKick, "")
	return row.ID, nil
}

func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // crypto/rand never fails on supported systems
	return "syd_" + hex.EncodeToString(b[:])
}

// OnBroadcast hears that something was scheduled.
func (s *RTC) OnBroadcast(topic string) {
	if topic != topicKick {
		return
	}
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// Run sends what is due, on one process at a time, until ctx ends.
func (s *RTC) Run(ctx context.Context) error { return s.Store.RunLeased(ctx, "delayed_events", s.run) }

func (s *RTC) run(ctx context.Context) error {
	swept := time.Time{}
	for {
		now := s.Now()
		var due []store.DelayedEvent
		var next int64
		err := s.Store.Read(ctx, func(tx *store.Tx) (err error) {
			due, next, err = tx.DueDelayedEvents(now.UnixMilli(), dueAtOnce)
			return err
		})
		if err != nil {
			return err
		}
		for _, d := range due {
			if err := s.send(ctx, d, "delay"); err != nil {
				return err
			}
		}
		if now.Sub(swept) > time.Hour {
			swept = now
			err := s.Store.Write(ctx, func(tx *store.Tx) error { return tx.SweepDelayedEvents(now.Add(-keepFinished).UnixMilli()) })
			if err != nil {
				return err
			}
		}
		wait := longestWait
		if next != 0 {
			wait = min(wait, max(time.Duration(next-s.Now().UnixMilli())*time.Millisecond, 0))
		}
		if len(due) == dueAtOnce {
			wait = 0
		}
		select {
		case <-time.After(wait):
		case <-s.kick:
		case <-ctx.Done():
			return nil
		}
	}
}

// send sends an event and notes what became of it. It may run twice for one event, also on two processes: the transaction
// id makes the second time give the first one's event. The error is that of a database that is away.
func (s *RTC) send(ctx context.Context, d store.DelayedEvent, reason string) error {
	outdated, err := s.outdated(ctx, d)
	if err != nil {
		return err
	}
	d.Finished, d.Outcome, d.Reason = s.Now().UnixMilli(), "send", reason
	if outdated {
		d.Outcome, d.Reason = "cancel", "error"
		d.Error = store.Content(`{"errcode":"M_UNKNOWN","error":"another user has set this state since"}`)
	} else {
		d.EventID, err = s.Rooms.Send(ctx, d.Room, room.Draft{
			Type: d.Type, StateKey: d.StateKey, Content: d.Content, Sender: d.User, Device: d.Device, Txn: "delayed/" + d.ID,
		})
		refused := mxerr.As(err)
		switch {
		case err != nil && (refused == nil || refused.Status >= http.StatusInternalServerError):
			return err
		case err != nil:
			d.Outcome, d.Reason = "cancel", "error"
			if d.Error, err = json.Marshal(map[string]string{"errcode": refused.Code, "error": refused.Message}); err != nil {
				return err
			}
		case s.Sent != nil:
			s.Sent(ctx, d.Room, d.Type)
		}
	}
	return s.Store.Write(ctx, func(tx *store.Tx) error { _, err := tx.FinishDelayedEvent(d); return err })
}

// outdated tells whether another user has set the state that an event would set since it was scheduled.
func (s *RTC) outdated(ctx context.Context, d store.DelayedEvent) (bool, error) {
	if d.StateKey == nil {
		return false, nil
	}
	rm, err := s.Rooms.Room(ctx, d.Room)
	if mxerr.Is(err, "M_NOT_FOUND") {
		return false, nil // sending it will say so
	}
	if err != nil {
		return false, err
	}
	e, err := rm.StateEvent(ctx, d.Type, *d.StateKey)
	return e != nil && e.Pos > d.Since && e.PDU.Sender() != d.User, err
}

var errUnknownDelay = mxerr.NotFound("there is no scheduled event of this id")

// update handles POST …/delayed_events/{delayId}, the older form with the action in the body.
func (s *RTC) update(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSON[struct {
		Action *string `json:"action"`
	}](r)
	if err != nil {
		return err
	}
	if req.Action == nil {
		return mxerr.MissingParam("'action' is required: send, restart or cancel")
	}
	return s.perform(w, r, *req.Action)
}

// act handles POST …/delayed_events/{delayId}/{action}. The id is a secret: whoever knows it may act.
func (s *RTC) act(w http.ResponseWriter, r *http.Request) error {
	return s.perform(w, r, web.PathParam(r, "action"))
}

func (s *RTC) perform(w http.ResponseWriter, r *http.Request, action string) error {
	ctx, delayID := r.Context(), web.PathParam(r, "delayId")
	if action != "send" && action != "restart" && action != "cancel" {
		return mxerr.New(http.StatusNotFound, "M_UNRECOGNIZED", "the action must be send, restart or cancel")
	}
	var d store.DelayedEvent
	err := s.Store.Write(ctx, func(tx *store.Tx) error {
		var ok bool
		var err error
		if d, ok, err = tx.LockDelayedEvent(delayID); err != nil {
			return err
		}
		if !ok {
			return errUnknownDelay
		}
		switch action {
		case "restart":
			return tx.RestartDelayedEvent(delayID, s.Now().UnixMilli())
		case "cancel":
			d.Finished, d.Outcome, d.Reason = s.Now().UnixMilli(), "cancel", "action"
			_, err = tx.FinishDelayedEvent(d)
		}
		return err
	})
	if err == nil && action == "send" {
		err = s.send(ctx, d, "action")
	}
	if err != nil {
		return err
	}
	return web.WriteJSON(w, struct{}{})
}

type delayedJSON struct {
	DelayID  string         `json:"delay_id"`
	RoomID   id.RoomID      `json:"room_id"`
	Type     string         `json:"type"`
	StateKey *string        `json:"state_key,omitzero"`
	Delay    int64          `json:"delay"`
	Started  int64          `json:"running_since"`
	Content  jsontext.Value `json:"content"`
}

type finishedJSON struct {
	Event   delayedJSON    `json:"delayed_event"`
	Outcome string         `json:"outcome"`
	Reason  string         `json:"reason"`
	Error   jsontext.Value `json:"error,omitzero"`
	EventID id.EventID     `json:"event_id,omitzero"`
	TS      int64          `json:"origin_server_ts"`
}

func newDelayedJSON(d store.DelayedEvent) delayedJSON {
	return delayedJSON{d.ID, d.Room, d.Type, d.StateKey, d.Delay, d.Started, jsontext.Value(d.Content)}
}

// list handles GET …/delayed_events. The member delayed_events is that of the proposal's first form.
func (s *RTC) list(w http.ResponseWriter, r *http.Request) error {
	status := web.QueryString(r, "status")
	if status != "" && status != "scheduled" && status != "finalised" {
		return mxerr.InvalidParam("query parameter 'status' must be scheduled or finalised")
	}
	only := web.QueryStrings(r, "delay_id")
	user := web.Requester(r).UserID
	out := map[string]any{}
	err := s.Store.Read(r.Context(), func(tx *store.Tx) error {
		if status != "finalised" {
			waiting, err := tx.DelayedEventsOf(user, false, listAtMost)
			if err != nil {
				return err
			}
			list := []delayedJSON{}
			for _, d := range waiting {
				if wanted(only, d.ID) {
					list = append(list, newDelayedJSON(d))
				}
			}
			out["scheduled"], out["delayed_events"] = list, list
		}
		if status == "scheduled" {
			return nil
		}
		finished, err := tx.DelayedEventsOf(user, true, listAtMost)
		if err != nil {
			return err
		}
		list := []finishedJSON{}
		for _, d := range finished {
			if wanted(only, d.ID) {
				list = append(list, finishedJSON{newDelayedJSON(d), d.Outcome, d.Reason, jsontext.Value(d.Error), d.EventID, d.Finished})
			}
		}
		out["finalised"] = list
		return nil
	})
	if err != nil {
		return err
	}
	return web.WriteJSON(w, out)
}

func wanted(only []string, delayID string) bool {
	for _, o := range only {
		if o == delayID {
			return true
		}
	}
	return len(only) == 0
}

// Transports are the media servers that clients use, the organisation's own LiveKit first.
func (s *RTC) Transports() []jsontext.Value {
	out := make([]jsontext.Value, 0, 1+len(s.Config.Transports))
	if s.Config.LiveKit.URL != "" {
		v, err := json.Marshal(struct {
			Type string `json:"type"`
			URL  string `json:"livekit_service_url"`
		}{"livekit", strings.TrimSuffix(s.PublicURL, "/") + livekitPath})
		if err == nil { // strings always marshal
			out = append(out, v)
		}
	}
	return append(out, s.Config.Transports...)
}

// transports handles GET …/org.matrix.msc4143/rtc/transports.
func (s *RTC) transports(w http.ResponseWriter, _ *http.Request) error {
	return web.WriteJSON(w, map[string]any{"rtc_transports": s.Transports()})
}
