package appservices

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/moothall/moothall/homeserver/store"
)

const (
	txnTime  = time.Minute      // a service has to take a transaction within
	longest  = 5 * time.Minute  // between two attempts
	lookOver = 30 * time.Second // what waits is found also when nobody tells of it
	together = 100              // transactions that may become one
)

// retryAfter doubles from one second to five minutes.
func retryAfter(failures int64) time.Duration {
	d := longest
	if failures < 10 {
		d = min(d, time.Second<<max(0, failures-1))
	}
	return d/2 + rand.N(d/2+1)
}

// worker delivers to one service: what others do does not concern it.
type worker struct {
	kick  chan struct{} // something waits
	retry chan struct{} // the service is back
}

// work delivers a service's transactions one after the other, until ctx ends or the service is not registered any more.
func (s *Services) work(ctx context.Context, service string, w *worker) error {
	var failures int64
	wait, err := s.firstPause(ctx, service, &failures)
	if err != nil {
		s.warn(ctx, "read the state of an application service", service, err)
	}
	var done *store.ServiceTxn
	for s.pause(ctx, w, wait) {
		x := s.current().byID[service]
		if x == nil || x.url == "" {
			return nil
		}
		next, err := s.claim(ctx, service, done, failures)
		if err != nil {
			s.warn(ctx, "read what waits for an application service", service, err)
			wait = time.Second
			continue
		}
		if done != nil && failures > 0 {
			s.Logger.Info("an application service takes its transactions again", "appservice", service, "failures", failures)
			failures = 0
		}
		done, wait = nil, 0
		if next == nil {
			if !s.idle(ctx, w) {
				return nil
			}
			continue
		}
		if err := s.send(ctx, x, next); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			failures++
			wait = s.retryAfter(failures)
			s.failed(ctx, service, failures, wait, err)
			continue
		}
		done = next
	}
	return nil
}

// firstPause is what remains of the pause after an attempt of another process.
func (s *Services) firstPause(ctx context.Context, service string, failures *int64) (wait time.Duration, err error) {
	err = s.Store.Read(ctx, func(tx *store.Tx) error {
		states, err := tx.ServiceStates()
		if err != nil {
			return err
		}
		*failures = states[service].Failures
		wait = time.Duration(states[service].NextTry-s.Now().UnixMilli()) * time.Millisecond
		return nil
	})
	return min(wait, longest), err
}

// pause waits, unless the service is said to be back; false when ctx ended.
func (s *Services) pause(ctx context.Context, w *worker, wait time.Duration) bool {
	if wait <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-w.retry:
	case <-t.C:
	}
	return true
}

// idle waits for something to do.
func (s *Services) idle(ctx context.Context, w *worker) bool {
	t := time.NewTimer(lookOver)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-w.kick:
	case <-w.retry:
	case <-t.C:
	}
	return true
}

// claim removes what was taken, and makes the next transaction final: what waits and was never tried is put together.
func (s *Services) claim(ctx context.Context, service string, done *store.ServiceTxn, failures int64) (*store.ServiceTxn, error) {
	var next *store.ServiceTxn
	err := s.Store.Write(ctx, func(tx *store.Tx) error {
		next = nil
		if done != nil {
			if err := tx.ServiceTxnDone(service, done.Txn, failures > 0); err != nil {
				return err
			}
		}
		list, err := tx.ServiceTxns(service, together)
		if err != nil || len(list) == 0 {
			return err
		}
		next = &list[0]
		if next.Tried {
			return nil
		}
		last, err := merge(list)
		if err != nil {
			return err
		}
		next.Tried = true
		return tx.BeginServiceTxn(*next, last)
	})
	return next, err
}

// merge puts into the first transaction what fits of those that follow, and gives the number of the last one.
func merge(list []store.ServiceTxn) (int64, error) {
	first := &list[0]
	var p payload
	if err := json.Unmarshal(first.Body, &p, jsontext.AllowInvalidUTF8(true), jsontext.AllowDuplicateNames(true)); err != nil {
		return 0, fmt.Errorf("transaction %d: %w", first.Txn, err)
	}
	last := first.Txn
	for i := 1; i < len(list) && !list[i].Tried && !p.full(); i++ {
		var next payload
		if err := json.Unmarshal(list[i].Body, &next, jsontext.AllowInvalidUTF8(true), jsontext.AllowDuplicateNames(true)); err != nil {
			return 0, fmt.Errorf("transaction %d: %w", list[i].Txn, err)
		}
		if !p.join(&next) {
			break
		}
		last = list[i].Txn
	}
	if last == first.Txn {
		return last, nil
	}
	var err error
	first.Events = int64(p.size())
	first.Body, err = json.Marshal(&p, jsontext.AllowInvalidUTF8(true), jsontext.AllowDuplicateNames(true))
	return last, err
}

// send makes one attempt. Spec: application service API, PUT /_matrix/app/v1/transactions/{txnId}.
func (s *Services) send(ctx context.Context, x *Service, t *store.ServiceTxn) error {
	var p payload
	if err := json.Unmarshal(t.Body, &p, jsontext.AllowInvalidUTF8(true), jsontext.AllowDuplicateNames(true)); err != nil {
		return fmt.Errorf("transaction %d: %w", t.Txn, err)
	}
	body, err := s.render(ctx, x, &p)
	if err != nil {
		return err
	}
	if body == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, txnTime)
	defer cancel()
	status, _, err := s.request(ctx, x, http.MethodPut, "/_matrix/app/v1/transactions/"+txnID(t), nil, body)
	switch {
	case err != nil:
		return err
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return fmt.Errorf("it answered with status %d: its hs_token may not be that of its registration here", status)
	case status < 200 || status > 299:
		return fmt.Errorf("it answered with status %d", status)
	}
	return nil
}

// failed notes an attempt in vain, for whoever delivers then. The operator gets a line for the first, and then for ever
// fewer of them.
func (s *Services) failed(ctx context.Context, service string, failures int64, wait time.Duration, cause error) {
	if failures&(failures-1) == 0 {
		s.Logger.Warn("an application service did not take a transaction; it is tried again", "appservice", service, "failures", failures,
			"again_in", wait.Round(time.Millisecond), "error", cause)
	}
	err := s.Store.Write(ctx, func(tx *store.Tx) error {
		return tx.ServiceFailed(service, failures, s.Now().Add(wait).UnixMilli())
	})
	s.warn(ctx, "note a failure of an application service", service, err)
}

func (s *Services) warn(ctx context.Context, what, service string, err error) {
	if err != nil && ctx.Err() == nil {
		s.Logger.Warn(what, "appservice", service, "error", err)
	}
}
