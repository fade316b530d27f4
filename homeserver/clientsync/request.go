package clientsync

import (
	"context"
	"net/http"
	"strconv"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/filter"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/web"
)

// longestPoll bounds what a client may ask for as timeout.
const longestPoll = 5 * time.Minute

// request is a GET /sync.
type request struct {
	who        *web.Identity
	user       id.UserID
	device     id.DeviceID
	since      token
	initial    bool // without since
	filter     *filter.Filter
	fullState  bool
	stateAfter bool
	timeout    time.Duration
	presence   presenceState
}

// getSync handles GET /_matrix/client/v3/sync.
// Spec: client-server API, "Syncing".
func (s *Sync) getSync(w http.ResponseWriter, r *http.Request) error {
	req, err := s.readRequest(r)
	if err != nil {
		return err
	}
	return s.serve(r, w, req)
}

func (s *Sync) readRequest(r *http.Request) (*request, error) {
	who := web.Requester(r)
	req := &request{who: who, user: who.UserID, device: who.DeviceID}
	var err error
	if req.fullState, err = web.QueryBool(r, "full_state", false); err != nil {
		return nil, err
	}
	if req.stateAfter, err = web.QueryBool(r, "use_state_after", false); err != nil {
		return nil, err
	}
	ms, err := web.QueryInt(r, "timeout", 0, 0, int(longestPoll.Milliseconds()))
	if err != nil {
		return nil, err
	}
	req.timeout = time.Duration(ms) * time.Millisecond
	req.presence = online
	if p := web.QueryString(r, "set_presence"); p != "" {
		var ok bool
		if req.presence, ok = parsePresence(p); !ok {
			return nil, mxerr.InvalidParam("query parameter 'set_presence' must be online, unavailable or offline")
		}
	}
	if req.filter, err = s.filterOf(r.Context(), who.UserID, web.QueryString(r, "filter")); err != nil {
		return nil, err
	}
	since := web.QueryString(r, "since")
	if req.initial = since == ""; req.initial {
		return req, nil
	}
	t, err := parseToken(since)
	if err != nil {
		return nil, err
	}
	req.since, err = s.arrive(r.Context(), t)
	return req, err
}

// arrive makes a token one of this process: it is cut back to what its epoch has in common with the current one, and
// where it is ahead of this process, the process catches up. A token that is ahead even then was given out before the
// database lost its newest part, in a way that left no epoch behind: it goes back to the beginning.
func (s *Sync) arrive(ctx context.Context, t token) (token, error) {
	t = t.cut(s.d.Store.Epochs())
	if t.pos > s.d.Store.Applied() {
		if err := s.d.Store.CatchUp(ctx); err != nil {
			return t, err
		}
		if t.pos > s.d.Store.Applied() {
			t.pos = 0
		}
		t.toDevice = min(t.toDevice, t.pos)
	}
	return t, nil
}

// buffers are reused: a response is built in one and written at once.
var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 8<<10); return &b }}

const keepBuffer = 4 << 20

func release(b *[]byte) {
	if cap(*b) <= keepBuffer {
		*b = (*b)[:0]
		buffers.Put(b)
	}
}

// serve answers at once if there is anything to tell, else when there is, or at the end of the time.
func (s *Sync) serve(r *http.Request, w http.ResponseWriter, req *request) error {
	user, err := s.d.Rooms.User(r.Context(), req.user)
	if err != nil {
		return err
	}
	s.presence.begin(req.user, req.device, req.presence)
	s.acknowledge(req)
	p := &poll{
		s: s, who: req.who, user: user, timeout: req.timeout, once: req.initial || req.fullState || req.timeout == 0,
		answer: func(ctx context.Context, w http.ResponseWriter, now bool) (bool, error) {
			return s.answer(ctx, w, req, now)
		},
	}
	return p.run(r, w)
}

// parkAfter is how long a request waits in net/http: whoever hears of something each second stays there.
const parkAfter = 4 * time.Second

// poll is a request that waits for news. It begins with the presence of its device counted.
type poll struct {
	s       *Sync
	who     *web.Identity
	user    *room.User
	timeout time.Duration
	once    bool // it does not wait
	// answer answers if there is something to tell, or if it must be now.
	answer func(ctx context.Context, w http.ResponseWriter, now bool) (done bool, err error)

	watch *room.Watch
	began int64 // the position at which the session was good
}

// run asks for an answer until there is one, and at the end of the time for one that must be. What waits long gives its
// connection away and goes on without r and w.
func (p *poll) run(r *http.Request, w http.ResponseWriter) error {
	ctx := r.Context()
	p.began = p.s.d.Store.Applied()
	if p.once {
		defer p.Over()
		_, err := p.answer(ctx, w, true)
		return err
	}
	end := time.Now().Add(p.timeout)
	p.watch = p.user.Watch() // before the first look, so that nothing falls between them
	parked := false
	defer func() {
		if !parked {
			p.Over()
		}
	}()
	timer := time.NewTimer(min(p.timeout, parkAfter))
	defer timer.Stop()
	for {
		if done, err := p.Look(ctx, w, false); done || err != nil {
			return err
		}
		for waiting := true; waiting; {
			select {
			case <-p.watch.C():
				waiting = false
			case <-timer.C:
				rest := time.Until(end)
				if rest <= 0 {
					_, err := p.answer(ctx, w, true)
					return err
				}
				if at := web.Park(r, end, p); at != nil {
					parked = true
					p.watch.Notify(at.Wake)
					return nil
				}
				timer.Reset(rest)
			case <-p.s.draining:
				_, err := p.answer(ctx, w, true)
				return err
			case <-ctx.Done():
				return nil // nobody reads the answer any more
			}
		}
	}
}

// Look implements web.Waiter: it is what follows each wake-up.
func (p *poll) Look(ctx context.Context, w http.ResponseWriter, last bool) (done bool, err error) {
	s := p.s
	if now := s.d.Store.Applied(); s.d.SessionEnded != nil && s.marks.session(p.who.UserID, p.began) {
		if err := s.d.SessionEnded(ctx, p.who); err != nil {
			return true, err
		}
		p.began = now
	}
	return p.answer(ctx, w, last)
}

// Over implements web.Waiter.
func (p *poll) Over() {
	if p.watch != nil {
		p.watch.Close()
	}
	p.s.presence.done(p.who.UserID, p.who.DeviceID)
}

// answer builds the response and writes it if there is something in it that should not wait, or if it must be now.
func (s *Sync) answer(ctx context.Context, w http.ResponseWriter, req *request, now bool) (done bool, err error) {
	buf := buffers.Get().(*[]byte)
	defer release(buf)
	b := builder{s: s, ctx: ctx, req: req, b: (*buf)[:0]}
	err = b.build()
	*buf = b.b
	if err != nil || (!now && !b.urgent) {
		return false, err
	}
	return true, web.WriteRaw(w, b.b)
}

func appendInt(b []byte, n int64) []byte { return strconv.AppendInt(b, n, 10) }
