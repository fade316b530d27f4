package extract

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/moothall/moothall/homeserver/child"
)

// Runner finds texts in a process of its own, which is this program again, with limits that the system enforces: what breaks
// out of a reader finds no memory, little time and no files.
type Runner struct {
	Program string // a program whose main calls Child first; "": files are read in this process
	Memory  int64  // bytes
	Timeout time.Duration
	MaxSize int64 // of files, in bytes
}

const childEnv = "MOOTHALL_EXTRACT_TEXT"

// Child does the work where this process was started for it by a Runner, and ends it; else it does nothing. It is the first
// thing in main.
func Child() {
	job := os.Getenv(childEnv)
	if job == "" {
		return
	}
	os.Exit(work(job))
}

// niceness lets readers have what is left over: a file is found a moment later.
const niceness = 19

const exitNoText = 3 // the file is damaged: there is no use in trying again

func work(job string) int {
	kind, rest, _ := strings.Cut(job, " ")
	memory, err := strconv.ParseInt(rest, 10, 64)
	if err != nil {
		return 2
	}
	if err := limit(memory); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	debug.SetMemoryLimit(memory * 3 / 4)
	file, err := io.ReadAll(os.Stdin)
	if err != nil {
		return 2
	}
	text, err := Text(kind, file)
	if err != nil {
		return exitNoText
	}
	if _, err := io.WriteString(os.Stdout, text); err != nil {
		return 2
	}
	return 0
}

// Text finds the text of a file. ErrNoText is in the chain of errors that are final.
func (r *Runner) Text(ctx context.Context, kind string, file io.Reader, size int64) (string, error) {
	if size > r.MaxSize {
		return "", fmt.Errorf("%w: it has %d bytes, the most is %d", ErrNoText, size, r.MaxSize)
	}
	ctx, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	if r.Program == "" {
		b, err := io.ReadAll(io.LimitReader(file, r.MaxSize))
		if err != nil {
			return "", err
		}
		return Text(kind, b)
	}
	cmd := child.Command(ctx, r.Program, childEnv+"="+kind+" "+strconv.FormatInt(r.Memory, 10), "GOTRACEBACK=none")
	cmd.Stdin = io.LimitReader(file, r.MaxSize)
	out := &bounded{max: MaxText + 1024}
	cmd.Stdout = out
	cmd.Dir = "/"
	cmd.WaitDelay = time.Second
	err := child.Start(cmd, niceness)
	if err == nil {
		err = cmd.Wait()
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
		return strings.ToValidUTF8(out.String(), ""), nil
	case ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded):
		return "", ctx.Err()
	case ctx.Err() != nil:
		return "", fmt.Errorf("%w: its text was not found within %s", ErrNoText, r.Timeout)
	case errors.As(err, &exit):
		// a damaged file, or one that needs more memory or time than there is: the next try would end the same way
		return "", fmt.Errorf("%w (%s)", ErrNoText, exit.ProcessState)
	}
	return "", fmt.Errorf("start the reader of files: %w", err)
}

// bounded keeps what fits.
type bounded struct {
	bytes.Buffer
	max int
}

func (b *bounded) Write(p []byte) (int, error) {
	if left := b.max - b.Len(); len(p) > left {
		b.Buffer.Write(p[:max(left, 0)])
		return len(p), nil
	}
	return b.Buffer.Write(p)
}
