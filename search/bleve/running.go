package bleve

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/moothall/moothall/homeserver/child"
)

// running is a started process of Child.
type running struct {
	cmd    *exec.Cmd
	began  time.Time
	stdin  *os.File
	stderr *logged
	dead   chan struct{} // closed when it has ended

	sending sync.Mutex

	mu      sync.Mutex
	last    uint64
	waiting map[uint64]chan *response
	wanted  bool // its end
	why     string
}

// start starts a process. died is called when it ends by itself.
func start(program string, log *slog.Logger, died func(*running, string)) (*running, error) {
	theirs, stdin, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = theirs.Close() }()
	stdout, out, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, stdin.Close())
	}
	defer func() { _ = out.Close() }()
	r := &running{
		cmd: child.Command(context.Background(), program, childEnv+"=1", "GOTRACEBACK=single"), began: time.Now(), stdin: stdin,
		stderr: &logged{log: log}, dead: make(chan struct{}), waiting: map[uint64]chan *response{},
	}
	r.cmd.Stdin, r.cmd.Stdout, r.cmd.Stderr = theirs, out, r.stderr
	r.cmd.WaitDelay = time.Second
	if err := child.Start(r.cmd, childNiceness); err != nil {
		return nil, errors.Join(err, stdin.Close(), stdout.Close())
	}
	go r.read(stdout, died)
	return r, nil
}

// read gives responses to those who wait for them, until the process ends.
func (r *running) read(stdout *os.File, died func(*running, string)) {
	in := bufio.NewReaderSize(stdout, 64<<10)
	var err error
	for {
		a := &response{}
		if err = readFrame(in, a); err != nil {
			break
		}
		r.mu.Lock()
		c := r.waiting[a.ID]
		delete(r.waiting, a.ID)
		r.mu.Unlock()
		if c != nil {
			c <- a // it has room for one
		}
	}
	if !errors.Is(err, io.EOF) {
		_ = r.cmd.Process.Kill() // what comes from it makes no sense
	}
	_ = stdout.Close()
	_ = r.stdin.Close()
	ended := r.cmd.Wait()
	r.mu.Lock()
	wanted := r.wanted
	if r.why == "" && ended != nil {
		r.why = ended.Error()
	}
	why := r.why
	r.mu.Unlock()
	close(r.dead)
	if !wanted {
		died(r, why+r.stderr.tail())
	}
}

// gone tells whether the process has ended.
func (r *running) gone() bool {
	select {
	case <-r.dead:
		return true
	default:
		return false
	}
}

// busy tells whether requests are under way.
func (r *running) busy() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.waiting) > 0
}

// fail ends a process that does not do its part.
func (r *running) fail(why string) {
	r.mu.Lock()
	if r.why == "" {
		r.why = why
	}
	r.mu.Unlock()
	_ = r.cmd.Process.Kill()
}

// kill ends the process and waits for it.
func (r *running) kill() {
	r.mu.Lock()
	r.wanted = true
	r.mu.Unlock()
	_ = r.cmd.Process.Kill()
	<-r.dead
}

// end lets the process finish what it does and write what it has.
func (r *running) end(within time.Duration) error {
	r.mu.Lock()
	r.wanted = true
	r.mu.Unlock()
	_ = r.stdin.Close()
	select {
	case <-r.dead:
		if !r.cmd.ProcessState.Success() {
			return fmt.Errorf("the process of the search index ended with %s%s", r.cmd.ProcessState, r.stderr.tail())
		}
		return nil
	case <-time.After(within):
		r.kill()
		return fmt.Errorf("the process of the search index did not end within %s and was killed", within)
	}
}

// send writes one message. One that is not taken in time ends the process: nobody knows how much of it has arrived.
func (r *running) send(q *request, until time.Time) error {
	raw, err := frame(q)
	if err != nil {
		return err
	}
	r.sending.Lock()
	defer r.sending.Unlock()
	if err := r.stdin.SetWriteDeadline(until); err != nil {
		return fmt.Errorf("write to the process of the search index: %w", err)
	}
	if _, err := r.stdin.Write(raw); err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			r.fail("it took no more requests")
		}
		return fmt.Errorf("write to the process of the search index: %w", err)
	}
	return nil
}

// ask sends a request and waits for its response. A process that does not answer in time is ended.
func (r *running) ask(ctx context.Context, q *request, within time.Duration) (*response, error) {
	until := time.Now().Add(within)
	c := make(chan *response, 1)
	r.mu.Lock()
	r.last++
	q.ID = r.last
	r.waiting[q.ID] = c
	r.mu.Unlock()
	forget := func() {
		r.mu.Lock()
		delete(r.waiting, q.ID)
		r.mu.Unlock()
	}
	if err := r.send(q, until); err != nil {
		forget()
		return nil, err
	}
	limit := time.NewTimer(time.Until(until))
	defer limit.Stop()
	select {
	case a := <-c:
		return a, nil
	case <-r.dead:
		forget()
		return nil, errors.New("the process of the search index ended before it answered")
	case <-ctx.Done():
		forget()
		_ = r.send(&request{ID: q.ID, Op: opCancel}, time.Now().Add(requestTime)) // whoever asked has gone: the answer is not needed
		return nil, ctx.Err()
	case <-limit.C:
		forget()
		r.fail("it did not answer within " + within.String())
		return nil, errors.New("the process of the search index did not answer in time")
	}
}

// logged passes on what the process writes to standard error, line by line, and keeps the end of it.
type logged struct {
	log *slog.Logger
	mu  sync.Mutex
	end []byte
}

const keptStderr = 2 << 10

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.end = append(l.end, p...)
	if n := len(l.end) - keptStderr; n > 0 {
		l.end = l.end[:copy(l.end, l.end[n:])]
	}
	if len(p) < keptStderr {
		l.log.Warn("search index", "said", strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

// tail is the end of what was written, to be put behind a reason.
func (l *logged) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.end) == 0 {
		return ""
	}
	return ": " + strings.TrimSpace(string(l.end))
}
