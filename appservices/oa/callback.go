package oa

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/tidwall/gjson"
	"golang.org/x/sync/errgroup"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/store"
)

const (
	callbackChunk   = 50
	callbacksAtOnce = 4
	firstBackOff    = time.Second
	longestBackOff  = 10 * time.Minute
	maxAnswer       = 64 << 10 // bytes that are read of an answer
	shownAnswer     = 200      // bytes of it that people see
)

// callbackKey is what an OA system knows a repetition by.
func callbackKey(system, externalID string, version int64, kind string) string {
	key := system + "/" + externalID + "/" + strconv.FormatInt(version, 10)
	if kind != kindDecided {
		key += "/" + kind
	}
	return key
}

// backOff is how long to wait after a number of tries.
func backOff(tries int64) time.Duration {
	if tries > 10 {
		return longestBackOff
	}
	return min(firstBackOff<<max(tries-1, 0), longestBackOff)
}

// callbacks tells a system what is due, and says when something is due next (ms).
func (o *OA) callbacks(ctx context.Context, s *system) (int64, error) {
	for {
		var due []store.OACallback
		err := o.d.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
			due, err = tx.OACallbacksDue(s.ID, o.now(), callbackChunk)
			return err
		})
		if err != nil {
			return 0, err
		}
		if len(due) == 0 {
			break
		}
		work, ctx := errgroup.WithContext(ctx)
		work.SetLimit(callbacksAtOnce)
		for _, c := range due {
			work.Go(func() error { return o.callback(ctx, s, c) })
		}
		if err := work.Wait(); err != nil {
			return 0, err
		}
	}
	var next int64
	err := o.d.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
		next, err = tx.NextOACallback(s.ID)
		return err
	})
	return next, err
}

// callback makes one attempt and notes what became of it.
func (o *OA) callback(ctx context.Context, s *system, c store.OACallback) error {
	state, answer := o.deliver(ctx, s, &c)
	if ctx.Err() != nil {
		return nil // the server stops: the attempt is repeated, and known by its key
	}
	c.Tries++
	c.State, c.Answer, c.Next = state, answer, o.now()+backOff(c.Tries).Milliseconds()
	if state == store.OACallbackWaiting && o.now()-c.Created > s.Callback.GiveUp.Milliseconds() {
		c.State = store.OACallbackGivenUp
	}
	err := o.d.Store.Write(ctx, func(tx *store.Tx) error {
		if err := tx.TriedOACallback(c); err != nil {
			return err
		}
		if c.State == store.OACallbackWaiting && c.Tries > 1 {
			return nil // the card says already that it waits
		}
		if err := tx.DueOACard(c.Task, o.now()); err != nil {
			return err
		}
		if c.State == store.OACallbackWaiting {
			return nil
		}
		e := audit.Entry{Action: "oa.callback", Target: shortID(c.Task), Details: map[string]any{
			"system": c.System, "version": c.Version, "kind": c.Kind, "state": callbackStates[c.State], "tries": c.Tries,
		}}
		if c.State != store.OACallbackDone {
			e.Result, e.Reason = audit.Failed, c.Answer
		}
		return audit.Append(ctx, tx, e)
	})
	if err == nil {
		o.wake(loopCards)
	}
	if c.State != store.OACallbackDone {
		o.d.Logger.Warn("an OA system was not told of an approval", "system", c.System, "task", shortID(c.Task), "tries", c.Tries, "state", callbackStates[c.State], "answer", c.Answer)
	}
	return err
}

// deliver makes the request of a callback.
func (o *OA) deliver(ctx context.Context, s *system, c *store.OACallback) (state int64, answer string) {
	ctx, cancel := context.WithTimeout(ctx, s.Callback.Timeout)
	defer cancel()
	req, err := o.callbackRequest(ctx, s, c)
	if err != nil {
		return store.OACallbackGivenUp, "the request cannot be made: " + err.Error()
	}
	resp, err := o.d.Client.Do(req)
	if err != nil {
		return store.OACallbackWaiting, transport(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return store.OACallbackWaiting, transport(err)
	}
	answer = "HTTP " + strconv.Itoa(resp.StatusCode)
	if text := strings.TrimSpace(strings.ToValidUTF8(strings.ReplaceAll(string(body[:min(len(body), shownAnswer)]), "\x00", ""), "")); text != "" {
		answer += ": " + text
	}
	switch code := resp.StatusCode; {
	case code >= 200 && code < 300:
		if p := s.Callback.OK; p != "" {
			if got := gjson.GetBytes(body, p); !got.Exists() || got.String() != s.Callback.OKValue {
				return store.OACallbackRefused, answer
			}
		}
		return store.OACallbackDone, answer
	case code == http.StatusRequestTimeout, code == http.StatusTooEarly, code == http.StatusTooManyRequests, code >= 500,
		code == http.StatusUnauthorized, code == http.StatusForbidden, code == http.StatusNotFound: // which an operator can put right
		return store.OACallbackWaiting, answer
	}
	return store.OACallbackRefused, answer
}

// transport says in short why there was no answer, without the address, which may hold a secret.
func transport(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return "no answer in time"
	}
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return "no connection: " + err.Error()
		}
		err = next
	}
}

func (o *OA) callbackRequest(ctx context.Context, s *system, c *store.OACallback) (*http.Request, error) {
	var data map[string]any
	if err := json.Unmarshal(c.Body, &data); err != nil {
		return nil, err
	}
	target, err := expand(s.Callback.URL, data)
	if err != nil {
		return nil, err
	}
	body := []byte(c.Body)
	if s.Callback.Body != "" {
		text, err := expand(s.Callback.Body, data)
		if err != nil {
			return nil, err
		}
		body = []byte(text)
	}
	method := s.Callback.Method
	if method == "" {
		method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return nil, errors.New("its address is not valid")
	}
	kind := s.Callback.ContentType
	if kind == "" {
		kind = "application/json"
	}
	key := fmt.Sprint(data["idempotency_key"])
	req.Header.Set("Content-Type", kind)
	req.Header.Set("Idempotency-Key", key)
	if s.Callback.Secret != "" {
		seconds := strconv.FormatInt(o.d.Clock().Unix(), 10)
		req.Header.Set("Webhook-Id", key)
		req.Header.Set("Webhook-Timestamp", seconds)
		req.Header.Set("Webhook-Signature", sign(s.Callback.Secret, key, seconds, body))
	}
	return req, setHeaders(req, s.Callback.Headers, data)
}

func setHeaders(req *http.Request, headers []Header, data any) error {
	for _, h := range headers {
		v, err := expand(h.Value, data)
		if err != nil {
			return err
		}
		req.Header.Set(h.Name, v)
	}
	return nil
}

const (
	pageWait = time.Second // how long the page waits for the OA system's answer
	lookWait = 50 * time.Millisecond
)

// awaitCallback waits a moment for the OA system to hear of a decision, so that the page can say so. nil: it is not told.
func (o *OA) awaitCallback(ctx context.Context, t *task) *store.OACallback {
	for end := time.Now().Add(pageWait); ; {
		_, cb, err := o.findBy(ctx, func(tx *store.Tx) (store.OATask, bool, error) { return tx.OATask(t.NID) })
		if err != nil || cb == nil || cb.State != store.OACallbackWaiting || cb.Tries > 0 || time.Now().After(end) {
			return cb
		}
		select {
		case <-ctx.Done():
			return cb
		case <-time.After(lookWait):
		}
	}
}
