package account

import (
	"context"
	"encoding/gob"
	"errors"
	"io"
	"os"
	"os/exec"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"

	"github.com/moothall/moothall/homeserver/child"
)

// Hashing a password takes a core and 19 MiB for some 30 ms by design. In the process that serves chat it would hold up
// the scheduler and the garbage collector; so it is done in another process of low priority, which is this program again.

const hashEnv = "MOOTHALL_HASH_PASSWORDS"

// hashNiceness lets hashes have what is left over, and a little when nothing is.
const hashNiceness = 19

// hashIdle is after how much time without work a process for hashing ends.
const hashIdle = time.Minute

// hashJob is what is to be computed: an argon2id key, or where Bcrypt is set whether the password fits that hash.
type hashJob struct {
	Password, Salt []byte
	Cost           Argon2
	KeyLength      uint32
	Bcrypt         []byte
}

type hashResult struct {
	Key   []byte
	Fits  bool
	Error string
}

func (j *hashJob) do() hashResult {
	if j.Bcrypt == nil {
		return hashResult{Key: argon2.IDKey(j.Password, j.Salt, j.Cost.Time, j.Cost.MemoryKiB, j.Cost.Threads, j.KeyLength)}
	}
	switch err := bcrypt.CompareHashAndPassword(j.Bcrypt, j.Password); {
	case err == nil:
		return hashResult{Fits: true}
	case errors.Is(err, bcrypt.ErrMismatchedHashAndPassword), len(j.Password) > 72:
		return hashResult{}
	default:
		return hashResult{Error: err.Error()}
	}
}

// HashChild hashes passwords where this process was started for that, and ends it; else it does nothing. It is the first
// thing in main.
func HashChild() {
	if os.Getenv(hashEnv) == "" {
		return
	}
	debug.SetGCPercent(400)
	in, out := gob.NewDecoder(os.Stdin), gob.NewEncoder(os.Stdout)
	for {
		var j hashJob
		if err := in.Decode(&j); err != nil {
			os.Exit(0) // the parent has ended, or wants no more
		}
		if err := out.Encode(j.do()); err != nil {
			os.Exit(1)
		}
	}
}

// hashProcesses are the processes that hash; each does one thing at a time.
type hashProcesses struct {
	program string // "": hash in this process
	mu      sync.Mutex
	idle    []*hashProcess
}

type hashProcess struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	in    *gob.Encoder
	out   *gob.Decoder
	timer *time.Timer
}

// do computes a job, in this process where no other can be had.
func (p *hashProcesses) do(_ context.Context, j hashJob) hashResult {
	if p.program == "" {
		return j.do()
	}
	w := p.take()
	if w == nil {
		return j.do()
	}
	var r hashResult
	if err := w.in.Encode(j); err != nil {
		w.end()
		return j.do()
	}
	if err := w.out.Decode(&r); err != nil {
		w.end()
		return j.do()
	}
	p.give(w)
	return r
}

// take gives a process that has nothing to do, or starts one; nil where that fails.
func (p *hashProcesses) take() *hashProcess {
	p.mu.Lock()
	if n := len(p.idle); n > 0 {
		w := p.idle[n-1]
		p.idle = p.idle[:n-1]
		w.timer.Stop()
		p.mu.Unlock()
		return w
	}
	p.mu.Unlock()
	cmd := child.Command(context.Background(), p.program, hashEnv+"=1", "GOTRACEBACK=none")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil
	}
	if err := child.Start(cmd, hashNiceness); err != nil {
		return nil
	}
	return &hashProcess{cmd: cmd, stdin: stdin, in: gob.NewEncoder(stdin), out: gob.NewDecoder(stdout)}
}

// give puts a process back; it ends after a while without work.
func (p *hashProcesses) give(w *hashProcess) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.idle = append(p.idle, w)
	w.timer = time.AfterFunc(hashIdle, func() {
		p.mu.Lock()
		for i, x := range p.idle {
			if x == w {
				p.idle = append(p.idle[:i], p.idle[i+1:]...)
				p.mu.Unlock()
				w.end()
				return
			}
		}
		p.mu.Unlock() // it was taken meanwhile
	})
}

// close ends the processes that have nothing to do.
func (p *hashProcesses) close() {
	p.mu.Lock()
	idle := p.idle
	p.idle = nil
	p.mu.Unlock()
	for _, w := range idle {
		w.timer.Stop()
		w.end()
	}
}

// end lets a process go: it ends when its input does.
func (w *hashProcess) end() {
	_ = w.stdin.Close()
	go func() { _ = w.cmd.Wait() }() // reaped; its exit code says nothing of use
}
