package ldapsync

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/go-ldap/ldap/v3"
)

// streams are the searches of a directory that are held open (RFC 4533, refreshAndPersist), one for each kind of entries.
type streams struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// stop ends the searches and waits for them.
func (s *streams) stop() {
	if s != nil {
		s.cancel()
		s.wg.Wait()
	}
}

// openStreams begins the searches from where they stopped last.
func (f *follower) openStreams(ctx context.Context) *streams {
	ctx, cancel := context.WithCancel(ctx)
	s := &streams{cancel: cancel}
	for _, spec := range f.searches() {
		st := &stream{d: f.directory, spec: spec, cookie: f.s.Cookies[spec.name], out: f.batches}
		s.wg.Go(func() { st.run(ctx) })
	}
	return s
}

// stream is one search that is held open.
type stream struct {
	d      *directory
	spec   searchSpec
	cookie []byte
	out    chan<- batch
}

// run keeps the search open until ctx ends. What went wrong is told, and tried again.
func (s *stream) run(ctx context.Context) {
	wait := time.Duration(0)
	for ctx.Err() == nil {
		began := time.Now()
		err := s.hold(ctx)
		if ctx.Err() != nil {
			return
		}
		if ldap.IsErrorWithCode(err, ldap.LDAPResultSyncRefreshRequired) {
			s.cookie = nil // the server no longer knows what happened since: it tells of everything
			continue
		}
		if !s.send(ctx, batch{search: s.spec.name, err: fmt.Errorf("%s: %w", s.spec.name, err)}) {
			return
		}
		if time.Since(began) > retryMax {
			wait = 0
		}
		wait = min(max(2*wait, retryMin/4), retryMax)
		pause(ctx, wait)
	}
}

func (s *stream) send(ctx context.Context, b batch) bool {
	select {
	case s.out <- b:
		return true
	case <-ctx.Done():
		return false
	}
}

// refresh is what a search tells of until it has told what was missed.
type refresh struct {
	batch
	complete bool            // there was no cookie: it tells of everything
	told     map[string]bool // ids of entries that are there
	presence bool            // entries that were not told of are gone
}

// hold is one search, from its begin to its end.
func (s *stream) hold(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, server, done, err := s.d.dialer.service(ctx)
	if err != nil {
		return err
	}
	defer done()
	conn.SetTimeout(0) // the answer never ends; whether the server is there the connection's probes tell
	req := s.spec.request()
	res := conn.Syncrepl(ctx, &req, refreshPiece, ldap.SyncRequestModeRefreshAndPersist, s.cookie, false)
	messages := make(chan message)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { pump(ctx, res, messages) })

	first, err := s.refresh(ctx, messages)
	if err != nil {
		return fmt.Errorf("%s: %w", server, err)
	}
	if !s.deliver(ctx, first) {
		return ctx.Err()
	}
	return s.persist(ctx, server, messages)
}

// message is one message of a search.
type message struct {
	entry    *ldap.Entry
	controls []ldap.Control
	err      error
}

var errEnded = errors.New("the server ended the search")

// pump passes messages on until the search ends.
func pump(ctx context.Context, res ldap.Response, out chan<- message) {
	defer close(out)
	for res.Next() {
		select {
		case out <- message{res.Entry(), res.Controls(), nil}:
		case <-ctx.Done():
			return
		}
	}
	err := res.Err()
	if err == nil {
		err = errEnded
	}
	select {
	case out <- message{err: err}:
	case <-ctx.Done():
	}
}

// refreshPiece is how many messages are taken at a time of what was missed, and how many may wait to be.
const refreshPiece = 32

// refresh reads until the server has told what was missed.
func (s *stream) refresh(ctx context.Context, messages <-chan message) (batch, error) {
	r := &refresh{batch: batch{search: s.spec.name, kind: s.spec.kind, caughtUp: true}, complete: len(s.cookie) == 0, told: map[string]bool{}}
	for began, n := time.Now(), 1; ; n++ {
		m, err := next(ctx, messages)
		if err != nil {
			return r.batch, err
		}
		if s.note(m, r) {
			break
		}
		if n%refreshPiece == 0 {
			rest(ctx, time.Since(began))
			began = time.Now()
		}
	}
	if r.complete || r.presence {
		r.present = r.told
	}
	if len(r.nameless) > 0 {
		r.present = nil // nobody knows who these are
	}
	return r.batch, nil
}

func next(ctx context.Context, messages <-chan message) (message, error) {
	select {
	case <-ctx.Done():
		return message{}, ctx.Err()
	case m, ok := <-messages:
		if !ok {
			return m, errEnded
		}
		return m, m.err
	}
}

// note takes one message into what is collected; true when the server has told all that was missed.
func (s *stream) note(m message, r *refresh) (caughtUp bool) {
	for _, c := range m.controls {
		switch c := c.(type) {
		case *ldap.ControlSyncState:
			s.state(m.entry, c, r)
		case *ldap.ControlSyncInfo:
			if s.info(c, r) {
				caughtUp = true
			}
		case *ldap.ControlSyncDone:
			r.keep(c.Cookie)
		}
	}
	return caughtUp
}

func (r *refresh) keep(cookie []byte) {
	if len(cookie) > 0 {
		r.cookie = cookie
	}
}

// state takes an entry with its control.
func (s *stream) state(e *ldap.Entry, c *ldap.ControlSyncState, r *refresh) {
	entryID := strings.ToLower(c.EntryUUID.String())
	r.keep(c.Cookie)
	switch c.State {
	case ldap.SyncStatePresent:
		r.told[entryID] = true
	case ldap.SyncStateDelete:
		delete(r.told, entryID)
		r.gone = append(r.gone, entryID)
	case ldap.SyncStateAdd, ldap.SyncStateModify:
		if e == nil {
			return
		}
		parsed := s.spec.parse(e)
		if parsed.id == "" {
			r.nameless = append(r.nameless, EntryError{e.DN, "the attribute " + s.d.cfg.Users.ID + " cannot be read"})
			return
		}
		r.told[parsed.id] = true
		r.add(parsed)
	}
}

// add takes an entry; the newest form of it counts.
func (r *refresh) add(e *entry) {
	for i := range r.gone {
		if r.gone[i] == e.id {
			r.gone = append(r.gone[:i], r.gone[i+1:]...)
			break
		}
	}
	r.entries = append(r.entries, e)
}

// info takes a message about the search itself.
func (s *stream) info(c *ldap.ControlSyncInfo, r *refresh) (caughtUp bool) {
	switch {
	case c.NewCookie != nil:
		r.keep(c.NewCookie.Cookie)
	case c.RefreshDelete != nil:
		r.keep(c.RefreshDelete.Cookie)
		return c.RefreshDelete.RefreshDone
	case c.RefreshPresent != nil:
		r.keep(c.RefreshPresent.Cookie)
		r.presence = true
		return c.RefreshPresent.RefreshDone
	case c.SyncIdSet != nil:
		r.keep(c.SyncIdSet.Cookie)
		for _, u := range c.SyncIdSet.SyncUUIDs {
			entryID := strings.ToLower(u.String())
			if c.SyncIdSet.RefreshDeletes {
				r.gone = append(r.gone, entryID)
			} else {
				r.told[entryID] = true
			}
		}
	}
	return false
}

// deliver passes what was collected on, each entry in its newest form, and remembers where to go on from.
func (s *stream) deliver(ctx context.Context, b batch) bool {
	newest := map[string]int{}
	for i, e := range b.entries {
		newest[e.id] = i
	}
	kept := b.entries[:0:0]
	for i, e := range b.entries {
		if newest[e.id] == i {
			kept = append(kept, e)
		}
	}
	b.entries = kept
	if !s.send(ctx, b) {
		return false
	}
	if b.cookie != nil {
		s.cookie = b.cookie
	}
	return true
}

// persist passes changes on as they come, those that belong together at once.
func (s *stream) persist(ctx context.Context, server string, messages <-chan message) error {
	for {
		m, err := next(ctx, messages)
		if err != nil {
			return fmt.Errorf("%s: %w", server, err)
		}
		r := &refresh{batch: batch{search: s.spec.name, kind: s.spec.kind}, told: map[string]bool{}}
		s.note(m, r)
		ended := s.collect(ctx, messages, r)
		if len(r.entries) > 0 || len(r.gone) > 0 || len(r.nameless) > 0 || r.cookie != nil {
			if !s.deliver(ctx, r.batch) {
				return ctx.Err()
			}
		}
		if ended != nil {
			return fmt.Errorf("%s: %w", server, ended)
		}
	}
}

// collect takes what comes within a moment.
func (s *stream) collect(ctx context.Context, messages <-chan message, r *refresh) error {
	moment := time.NewTimer(settleFor)
	defer moment.Stop()
	for len(r.entries) < flushSize {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-moment.C:
			return nil
		case m, ok := <-messages:
			if !ok {
				return errEnded
			}
			if m.err != nil {
				return m.err
			}
			s.note(m, r)
		}
	}
	return nil
}
