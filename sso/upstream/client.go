package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// maxAnswer is the most bytes that are read of an answer.
const maxAnswer = 1 << 20

// bounded is a RoundTripper whose answers end after maxAnswer bytes with an error.
type bounded struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 500 {
		_ = resp.Body.Close()
		return nil, fmt.Errorf("%w: %s", errAway, resp.Status)
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{&boundedReader{r: resp.Body, left: maxAnswer}, resp.Body}
	return resp, nil
}

type boundedReader struct {
	r    io.Reader
	left int64
}

var errTooLong = errors.New("the answer is too long")

func (b *boundedReader) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errTooLong
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.r.Read(p)
	b.left -= int64(n)
	return n, err
}

func cmpTransport(c *http.Client) http.RoundTripper {
	if c.Transport != nil {
		return c.Transport
	}
	return http.DefaultTransport
}

// noRedirect keeps codes and secrets from going where a redirect points: the addresses are configured or discovered.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// lazy is a document of a provider: fetched when it is needed first and again when it is old, by one caller at a time.
// While a provider is down the old one serves on; without one, callers learn of the failure at once for a few seconds, so
// that a provider that hangs does not make every sign-in hang.
type lazy[T any] struct {
	fetch   func(ctx context.Context) (T, error)
	clock   func() time.Time
	timeout time.Duration
	life    time.Duration

	mu      sync.Mutex
	value   T
	have    bool
	err     error
	next    time.Time     // when it is fetched again
	running chan struct{} // closed when the fetch under way ends; nil: none is
}

// failureLife is how long a failure stands for further callers.
const failureLife = 3 * time.Second

func (l *lazy[T]) get(ctx context.Context) (T, error) {
	l.mu.Lock()
	for {
		if (l.have || l.err != nil) && l.clock().Before(l.next) {
			v, err := l.value, l.err
			if l.have {
				err = nil
			}
			l.mu.Unlock()
			return v, err
		}
		running := l.running
		if running == nil {
			break
		}
		if l.have { // somebody fetches it again already
			v := l.value
			l.mu.Unlock()
			return v, nil
		}
		l.mu.Unlock()
		select {
		case <-running:
		case <-ctx.Done():
			var none T
			return none, ctx.Err()
		}
		l.mu.Lock()
	}
	l.running = make(chan struct{})
	l.mu.Unlock()

	// The browser that happens to ask first may go away: others wait for this.
	fctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.timeout)
	v, err := l.fetch(fctx)
	cancel()

	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.running)
	l.running = nil
	if err != nil {
		l.err, l.next = err, l.clock().Add(failureLife)
		if l.have {
			l.next = l.clock().Add(time.Minute)
			return l.value, nil
		}
		return v, err
	}
	l.value, l.have, l.err, l.next = v, true, nil, l.clock().Add(l.life)
	return v, nil
}
