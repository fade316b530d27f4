package clientsync

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

const (
	receiptBatch = 2000
	// receiptPause lets receipts gather when many come: a message in a large room is answered by one from every reader.
	receiptPause = 15 * time.Millisecond
	receiptMany  = 8
)

// receiptWriter commits receipts in groups. Whoever sends one waits for its commit.
type receiptWriter struct {
	store *store.Store
	kick  chan struct{}

	mu      sync.Mutex
	pending []receiptJob
	ended   bool
}

type receiptJob struct {
	receipt store.Receipt
	done    chan error
}

func newReceiptWriter(s *store.Store) *receiptWriter {
	return &receiptWriter{store: s, kick: make(chan struct{}, 1)}
}

// write returns after the receipts were committed.
func (w *receiptWriter) write(ctx context.Context, list ...store.Receipt) error {
	done := make(chan error, len(list))
	w.mu.Lock()
	if w.ended {
		w.mu.Unlock()
		return mxerr.Unavailable("the server is shutting down")
	}
	for _, r := range list {
		w.pending = append(w.pending, receiptJob{r, done})
	}
	w.mu.Unlock()
	nudge(w.kick)
	for range list {
		select {
		case err := <-done:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// run commits until ctx ends and nothing waits any more.
func (w *receiptWriter) run(ctx context.Context, log *slog.Logger) error {
	for {
		select {
		case <-w.kick:
		case <-ctx.Done():
			w.mu.Lock()
			w.ended = true
			w.mu.Unlock()
		}
		for {
			jobs := w.take()
			if len(jobs) == 0 {
				break
			}
			// what was taken is finished even while shutting down
			err := w.commit(context.WithoutCancel(ctx), jobs)
			if err != nil {
				log.Warn("receipts were not written", "receipts", len(jobs), "error", err)
			}
			for _, j := range jobs {
				j.done <- err
			}
			if len(jobs) >= receiptMany {
				select {
				case <-time.After(receiptPause):
				case <-ctx.Done():
				}
			}
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

func (w *receiptWriter) take() []receiptJob {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := min(len(w.pending), receiptBatch)
	out := w.pending[:n:n]
	w.pending = w.pending[n:]
	if len(w.pending) == 0 {
		w.pending = nil
	}
	return out
}

type receiptKey struct {
	user   string
	room   int64
	typ    int64
	thread string
}

func keyOf(r *store.Receipt) receiptKey { return receiptKey{r.User, r.Room, r.Type, r.Thread} }

// commit writes the receipts that go forward; each room's come under one entry of the log.
func (w *receiptWriter) commit(ctx context.Context, jobs []receiptJob) error {
	best := make(map[receiptKey]*store.Receipt, len(jobs))
	users := make([]string, 0, len(jobs))
	rooms := make(map[int64]struct{}, 4)
	for i := range jobs {
		r := &jobs[i].receipt
		users = append(users, r.User)
		rooms[r.Room] = struct{}{}
		if old := best[keyOf(r)]; old == nil || r.Ord > old.Ord {
			best[keyOf(r)] = r
		}
	}
	nids := make([]int64, 0, len(rooms))
	for nid := range rooms {
		nids = append(nids, nid)
	}
	return w.store.Write(ctx, func(tx *store.Tx) error {
		stored, err := tx.UserReceipts(users, nids)
		if err != nil {
			return err
		}
		at := make(map[receiptKey]int64, len(stored))
		for _, r := range stored {
			at[keyOf(r)] = r.Ord
		}
		byRoom := make(map[int64][]*store.Receipt, len(rooms))
		for k, r := range best {
			if ord, ok := at[k]; !ok || r.Ord > ord {
				c := *r // this func may run again while others hold what it announced before
				byRoom[k.room] = append(byRoom[k.room], &c)
			}
		}
		var all []*store.Receipt
		for nid, list := range byRoom {
			pos, err := tx.Announce(store.Entry{Kind: store.KindReceipt, Room: nid, Payload: list})
			if err != nil {
				return err
			}
			for _, r := range list {
				r.Pos = pos
			}
			all = append(all, list...)
		}
		return tx.SaveReceipts(all)
	})
}

// postReceipt handles POST /_matrix/client/v3/rooms/{roomId}/receipt/{receiptType}/{eventId}.
// Spec: client-server API, "Receipts".
func (s *Sync) postReceipt(w http.ResponseWriter, r *http.Request) error {
	who := web.Requester(r)
	typ, eventID := web.PathParam(r, "receiptType"), id.EventID(web.PathParam(r, "eventId"))
	body, err := web.ReadOptionalJSON[struct {
		Thread jsontext.Value `json:"thread_id"`
	}](r)
	if err != nil {
		return err
	}
	thread, err := receiptThread(typ, body.Thread)
	if err != nil {
		return err
	}
	rm, err := s.joinedRoom(r, who.UserID)
	if err != nil {
		return err
	}
	if typ == "m.fully_read" {
		err = s.markFullyRead(r.Context(), who.UserID, rm, eventID)
	} else {
		err = s.receipt(r.Context(), who.UserID, rm, map[string]id.EventID{typ: eventID}, thread)
	}
	if err != nil {
		return err
	}
	return web.WriteRaw(w, []byte("{}"))
}

// receiptThread checks the type of a receipt and its thread_id, "" where there is none.
func receiptThread(typ string, raw jsontext.Value) (string, error) {
	switch typ {
	case "m.read", "m.read.private", "m.fully_read":
	default:
		return "", mxerr.InvalidParam("the receipt type must be m.read, m.read.private or m.fully_read")
	}
	if raw == nil {
		return "", nil
	}
	var thread string
	if raw.Kind() != '"' || json.Unmarshal(raw, &thread) != nil || thread == "" {
		return "", mxerr.InvalidParam("'thread_id' must be a string that is not empty")
	}
	if typ == "m.fully_read" {
		return "", mxerr.InvalidParam("'thread_id' does not go with m.fully_read")
	}
	if thread != mainThread && (thread[0] != '$' || len(thread) > 255 || strings.IndexByte(thread, 0) >= 0) {
		return "", mxerr.InvalidParam("'thread_id' must be main or the event id of the thread's root")
	}
	return thread, nil
}

// receipt sets receipts by their types.
func (s *Sync) receipt(ctx context.Context, user id.UserID, rm *room.Room, events map[string]id.EventID, thread string) error {
	var list []store.Receipt
	for typ, eventID := range events {
		e, err := s.eventOf(ctx, rm, eventID)
		if err != nil {
			return err
		}
		if thread != "" && e.RedactedBy == 0 && !s.inThread(e, thread) {
			return mxerr.InvalidParam("the event is not in the thread of 'thread_id'")
		}
		out := store.Receipt{User: string(user), Room: rm.NID(), Type: store.ReceiptRead, Thread: thread,
			EventID: string(eventID), Ord: e.Ord, TS: s.d.Now().UnixMilli()}
		if typ == "m.read.private" {
			out.Type = store.ReceiptReadPrivate
		}
		list = append(list, out)
	}
	s.presence.active(user)
	return s.writer.write(ctx, list...)
}

// inThread tells whether an event may be read under a thread id. A thread's root is in the main timeline, but clients
// that show only the thread mark it there.
func (s *Sync) inThread(e *room.Event, thread string) bool {
	if s.d.Thread == nil {
		return true
	}
	of := s.d.Thread(e.Features)
	if thread == mainThread {
		return of == ""
	}
	return of == thread || string(e.ID()) == thread
}

// eventOf finds an accepted event of a room.
func (s *Sync) eventOf(ctx context.Context, rm *room.Room, eventID id.EventID) (*room.Event, error) {
	if e := rm.Recent(eventID); e != nil {
		return e, nil
	}
	e, err := s.d.Rooms.EventByID(ctx, eventID)
	if err != nil {
		return nil, err
	}
	if e == nil || e.Room != rm.NID() || e.Status != store.StatusAccepted {
		return nil, mxerr.InvalidParam("this room has no event " + string(eventID))
	}
	return e, nil
}

// postReadMarkers handles POST /_matrix/client/v3/rooms/{roomId}/read_markers.
// Spec: client-server API, "Fully read markers".
func (s *Sync) postReadMarkers(w http.ResponseWriter, r *http.Request) error {
	who := web.Requester(r)
	body, err := web.ReadJSON[struct {
		FullyRead   id.EventID `json:"m.fully_read"`
		Read        id.EventID `json:"m.read"`
		ReadPrivate id.EventID `json:"m.read.private"`
	}](r)
	if err != nil {
		return err
	}
	rm, err := s.joinedRoom(r, who.UserID)
	if err != nil {
		return err
	}
	events := make(map[string]id.EventID, 2)
	if body.Read != "" {
		events["m.read"] = body.Read
	}
	if body.ReadPrivate != "" {
		events["m.read.private"] = body.ReadPrivate
	}
	if body.FullyRead != "" {
		if err := s.markFullyRead(r.Context(), who.UserID, rm, body.FullyRead); err != nil {
			return err
		}
	}
	if len(events) > 0 {
		if err := s.receipt(r.Context(), who.UserID, rm, events, ""); err != nil {
			return err
		}
	}
	return web.WriteRaw(w, []byte("{}"))
}

// markFullyRead moves the user's fully read marker, which is account data of the room.
func (s *Sync) markFullyRead(ctx context.Context, user id.UserID, rm *room.Room, eventID id.EventID) error {
	if _, err := s.eventOf(ctx, rm, eventID); err != nil {
		return err
	}
	content := append([]byte(nil), `{"event_id":`...)
	content = append(event.AppendCanonicalString(content, string(eventID)), '}')
	return s.d.Data.SetRoomAccountData(ctx, user, rm.NID(), "m.fully_read", content)
}
