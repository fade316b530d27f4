package hooks

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/sync/errgroup"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
)

// Filter chooses the events of a subscription. Empty lists choose all; "*" at the end of a type stands for anything.
type Filter struct {
	Rooms      []id.RoomID `json:"rooms,omitzero"`
	Types      []string    `json:"types,omitzero"`
	Senders    []id.UserID `json:"senders,omitzero"`
	NotSenders []id.UserID `json:"not_senders,omitzero"`
}

// NewSubscription is a subscription to be made.
type NewSubscription struct {
	Name   string `json:"name"`
	URL    string `json:"url"`
	Secret string `json:"secret"` // "" makes one; else in the form of Standard Webhooks
	Filter
}

func (n *NewSubscription) check() error {
	wrong := func(field, format string, args ...any) error {
		return mxerr.BadJSON("'"+field+"' "+fmt.Sprintf(format, args...)).With("path", "/"+field)
	}
	u, err := url.Parse(n.URL)
	switch {
	case !validName.MatchString(n.Name):
		return wrong("name", "must have 1 to 64 of a-z 0-9 . _ - and begin with a letter or digit")
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || len(n.URL) > 2000:
		return wrong("url", "must be an address that begins with https:// and holds no password")
	case n.Secret != "" && len(signingKey(n.Secret)) < minSecret:
		return wrong("secret", "must have the form whsec_BASE64, with %d bytes at least", minSecret)
	}
	for i, r := range n.Rooms {
		if !strings.HasPrefix(string(r), "!") || len(r) > 255 {
			return badField(fmt.Sprintf("/rooms/%d", i), "is %q; a room id was expected", r)
		}
	}
	for i, u := range slices.Concat(n.Senders, n.NotSenders) {
		if !event.ValidUserID(u) {
			return badField(fmt.Sprintf("/senders/%d", i), "is %q; a user id was expected", u)
		}
	}
	return nil
}

// Subscribe makes a subscription and returns its secret, which is shown this once.
func Subscribe(ctx context.Context, s *store.Store, n NewSubscription, creator id.UserID, now int64) (string, error) {
	if err := n.check(); err != nil {
		return "", err
	}
	if n.Secret == "" {
		n.Secret = newSecret(AuthHMAC)
	}
	filter, err := json.Marshal(n.Filter)
	if err != nil {
		return "", err
	}
	return n.Secret, s.Write(ctx, func(tx *store.Tx) error {
		made, err := tx.InsertHookSubscription(store.HookSubscription{ID: n.Name, URL: n.URL, Secret: store.Content(n.Secret), Filter: filter, Creator: creator, Created: now})
		if err != nil {
			return err
		}
		if !made {
			return mxerr.New(http.StatusConflict, "M_UNKNOWN", fmt.Sprintf("there is a subscription %q already", n.Name))
		}
		return audit.Append(ctx, tx, audit.Entry{Action: "hook.subscription.created", Target: n.Name, Details: map[string]any{"url": n.URL, "filter": n.Filter}})
	})
}

// Unsubscribe ends a subscription; what waits for it goes too. False means that there is none.
func Unsubscribe(ctx context.Context, s *store.Store, name string) (bool, error) {
	found := false
	err := s.Write(ctx, func(tx *store.Tx) error {
		list, err := tx.HookSubscriptions(false)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(list, func(s store.HookSubscription) bool { return s.ID == name && s.Config }) {
			return errConfigured(name)
		}
		if found, err = tx.DeleteHookSubscription(name); err != nil || !found {
			return err
		}
		return audit.Append(ctx, tx, audit.Entry{Action: "hook.subscription.deleted", Target: name})
	})
	return found, err
}

// Pause stops the deliveries of a subscription, whose events wait, or lets them go on at once; false means that there is none.
func Pause(ctx context.Context, s *store.Store, name string, on bool) (bool, error) {
	found, action := false, "hook.subscription.resumed"
	if on {
		action = "hook.subscription.paused"
	}
	err := s.Write(ctx, func(tx *store.Tx) error {
		var err error
		if found, err = tx.PauseHookSubscription(name, on); err != nil || !found {
			return err
		}
		return audit.Append(ctx, tx, audit.Entry{Action: action, Target: name})
	})
	return found, err
}

// Replay lets what was given up for a subscription be tried again: one event by its position, or all for 0. It tells how many.
func Replay(ctx context.Context, s *store.Store, name string, pos int64) (int64, error) {
	var n int64
	err := s.Write(ctx, func(tx *store.Tx) error {
		var err error
		if n, err = tx.ReplayHookDeliveries(name, pos); err != nil || n == 0 {
			return err
		}
		return audit.Append(ctx, tx, audit.Entry{Action: "hook.replayed", Target: name, Details: map[string]any{"count": n}})
	})
	return n, err
}

// chooses tells whether a subscription wants an event.
func (f *Filter) chooses(p *event.Event) bool {
	has := func(pattern string) bool {
		if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
			return strings.HasPrefix(p.Type(), prefix)
		}
		return pattern == p.Type()
	}
	return (len(f.Rooms) == 0 || slices.Contains(f.Rooms, p.RoomID())) &&
		(len(f.Types) == 0 || slices.ContainsFunc(f.Types, has)) &&
		(len(f.Senders) == 0 || slices.Contains(f.Senders, p.Sender())) && !slices.Contains(f.NotSenders, p.Sender())
}

// queue is the follower: it puts what subscriptions want into their queues, each of which is emptied by itself.
func (h *Hooks) queue(ctx context.Context, entries []store.Entry) error {
	var nids, positions []int64
	for _, e := range entries {
		if e.Kind == store.KindEvent && e.Ref != 0 {
			nids, positions = append(nids, e.Ref), append(positions, e.Pos)
		}
	}
	if len(nids) == 0 {
		return nil
	}
	subs, err := h.subscriptions(ctx, false)
	if err != nil || len(subs) == 0 {
		return err
	}
	events, err := h.d.Rooms.EventsByNID(ctx, nids)
	if err != nil {
		return err
	}
	at := make(map[int64]int64, len(nids))
	for i, nid := range nids {
		at[nid] = positions[i]
	}
	var list []store.HookDelivery
	for i := range subs {
		var f Filter
		if err := json.Unmarshal(subs[i].Filter, &f); err != nil {
			return fmt.Errorf("the filter of subscription %s: %w", subs[i].ID, err)
		}
		for _, e := range events {
			if e != nil && e.Status == store.StatusAccepted && f.chooses(e.PDU) {
				list = append(list, store.HookDelivery{Subscription: subs[i].ID, Pos: at[e.NID], NID: e.NID})
			}
		}
	}
	if len(list) == 0 {
		return nil
	}
	if err := h.d.Store.Write(ctx, func(tx *store.Tx) error { return tx.InsertHookDeliveries(list) }); err != nil {
		return err
	}
	h.wake()
	return nil
}

func (h *Hooks) wake() {
	select {
	case h.kick <- struct{}{}:
	default:
	}
}

func (h *Hooks) subscriptions(ctx context.Context, counted bool) (list []store.HookSubscription, err error) {
	read := h.d.Store.ReadOne // each round of the follower asks
	if counted {
		read = h.d.Store.Read
	}
	err = read(ctx, func(tx *store.Tx) error {
		list, err = tx.HookSubscriptions(counted)
		return err
	})
	return list, err
}

const (
	lookEvery    = time.Second // for what other processes queued
	deliverChunk = 50
	deliverTime  = 15 * time.Second
	firstWait    = time.Second
	longestWait  = 10 * time.Minute
	refusedTimes = 4 // an endpoint that refuses one event so often never gets it
	shownError   = 300
)

// deliverAll empties the queues, each on a goroutine of its own, so that none waits for another.
func (h *Hooks) deliverAll(ctx context.Context) error {
	work, ctx := errgroup.WithContext(ctx)
	ended := make(chan string, 16)
	busy := map[string]bool{}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		subs, err := h.subscriptions(ctx, false)
		if err != nil {
			return errors.Join(err, work.Wait())
		}
		now := h.now()
		for _, s := range subs {
			if busy[s.ID] || s.Paused || s.NextAt > now {
				continue
			}
			busy[s.ID] = true
			work.Go(func() error {
				more, err := h.deliverSome(ctx, s)
				select {
				case ended <- s.ID:
				case <-ctx.Done():
				}
				if more {
					h.wake() // what was queued meanwhile does not wait for the clock
				}
				return err
			})
		}
		select {
		case <-ctx.Done():
			return work.Wait()
		case <-tick.C:
		case <-h.kick:
		}
		for range len(ended) {
			delete(busy, <-ended)
		}
	}
}

// deliverSome delivers what waits for a subscription, in order, until nothing waits or the endpoint does not take it. It tells
// whether there was something and the endpoint takes more.
func (h *Hooks) deliverSome(ctx context.Context, s store.HookSubscription) (more bool, err error) {
	for {
		var list []store.HookDelivery
		err := h.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
			var err error
			list, err = tx.WaitingHookDeliveries(s.ID, deliverChunk)
			return err
		})
		if err != nil || len(list) == 0 {
			return more, err
		}
		for _, d := range list {
			on, err := h.deliverOne(ctx, &s, d)
			if err != nil || !on {
				return false, err
			}
			more = true
		}
	}
}

// deliverOne delivers an event; false means that the subscription rests or is over. An event goes out again, under the same id,
// where this process ends between its delivery and the note of it.
func (h *Hooks) deliverOne(ctx context.Context, s *store.HookSubscription, d store.HookDelivery) (bool, error) {
	events, err := h.d.Rooms.EventsByNID(ctx, []int64{d.NID})
	if err != nil {
		return false, err
	}
	if len(events) == 0 || events[0] == nil {
		return true, h.d.Store.Write(ctx, func(tx *store.Tx) error { return tx.DropHookDelivery(s.ID, d.Pos) })
	}
	body, err := h.cloudEvent(events[0])
	if err != nil {
		return false, err
	}
	refused, fault := h.call(ctx, s, d.Pos, body)
	if ctx.Err() != nil {
		return false, nil
	}
	if fault == "" {
		s.Failures, s.FailingSince = 0, 0
		return true, h.d.Store.Write(ctx, func(tx *store.Tx) error { return tx.HookDelivered(s.ID, d.Pos) })
	}
	now := h.now()
	d.Attempts++
	d.Error = shorten(fault, shownError)
	s.Failures++
	if s.FailingSince == 0 {
		s.FailingSince = now
	}
	s.NextAt = now + backOff(s.Failures).Milliseconds()
	if refused && d.Attempts >= refusedTimes || now-s.FailingSince > h.d.Config.GiveUp.Milliseconds() {
		d.Dead = now
	}
	first := s.Failures == 1
	if d.Dead != 0 && refused { // only this event is refused: the next one may not be
		s.NextAt, s.Failures, s.FailingSince = 0, 0, 0
	}
	err = h.d.Store.Write(ctx, func(tx *store.Tx) error {
		if err := tx.HookFailed(d, *s); err != nil || d.Dead == 0 {
			return err
		}
		return audit.Append(ctx, tx, audit.Entry{
			Action: "hook.dead_letter", Target: s.ID, Result: audit.Failed, Reason: d.Error,
			Details: map[string]any{"event_id": events[0].PDU.ID(), "attempts": d.Attempts},
		})
	})
	if first || d.Dead != 0 {
		h.d.Logger.Warn("an endpoint does not take events", "subscription", s.ID, "error", d.Error, "given_up", d.Dead != 0)
	}
	return s.NextAt == 0, err
}

// backOff is how long to wait after so many failures in a row: doubled each time, with a little chance in it.
func backOff(failures int64) time.Duration {
	wait := min(firstWait<<min(failures-1, 20), longestWait)
	return wait + rand.N(wait/4)
}

// cloudEvent is the form in which an event goes out. Spec: CloudEvents 1.0, "JSON Event Format".
func (h *Hooks) cloudEvent(e *room.Event) ([]byte, error) {
	return json.Marshal(struct {
		SpecVersion string         `json:"specversion"`
		ID          id.EventID     `json:"id"`
		Source      string         `json:"source"`
		Type        string         `json:"type"`
		Subject     id.RoomID      `json:"subject"`
		Time        string         `json:"time"`
		ContentType string         `json:"datacontenttype"`
		Data        jsontext.Value `json:"data"`
	}{
		"1.0", e.PDU.ID(), "https://" + h.d.ServerName + "/", "org.moothall.event." + e.PDU.Type(), e.PDU.RoomID(),
		time.UnixMilli(e.PDU.OriginServerTS()).UTC().Format("2006-01-02T15:04:05.000Z"), "application/json", e.AppendClient(nil, &room.Viewer{}),
	})
}

// call posts an event, signed. Spec: Standard Webhooks. It tells what went wrong, "" for nothing, and whether the endpoint
// is well and refused this event.
func (h *Hooks) call(ctx context.Context, s *store.HookSubscription, pos int64, body []byte) (refused bool, fault string) {
	ctx, cancel := context.WithTimeout(ctx, deliverTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL, bytes.NewReader(body))
	if err != nil {
		return true, "the address cannot be read"
	}
	msg, ts := fmt.Sprintf("msg_%s_%d", s.ID, pos), strconv.FormatInt(h.now()/1000, 10)
	req.Header.Set("Content-Type", "application/cloudevents+json; charset=utf-8")
	req.Header.Set("User-Agent", "Moothall")
	req.Header.Set("Webhook-Id", msg)
	req.Header.Set("Webhook-Timestamp", ts)
	req.Header.Set("Webhook-Signature", "v1,"+base64.StdEncoding.EncodeToString(mac(signingKey(string(s.Secret)), msg, ".", ts, ".", string(body))))
	resp, err := h.d.Client.Do(req)
	if err != nil {
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err // without the address, which may hold a secret
		}
		return false, err.Error()
	}
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10) // so that the connection can be used again; what it says does not matter
	_ = resp.Body.Close()
	switch c := resp.StatusCode; {
	case c >= 200 && c < 300:
		return false, ""
	case c == http.StatusBadRequest || c == http.StatusRequestEntityTooLarge || c == http.StatusUnprocessableEntity || c == http.StatusConflict:
		return true, fmt.Sprintf("the endpoint answered %d", c)
	default:
		return false, fmt.Sprintf("the endpoint answered %d", c)
	}
}
