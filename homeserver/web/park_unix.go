//go:build unix

package web

import (
	"errors"
	"net"
	"os"
	"syscall"
)

const canPark = true

// readable waits until a connection can be read, and leaves what came in the system's buffer. false: the other side has gone.
func readable(c syscall.RawConn) (bytes bool, err error) {
	var failed error
	err = c.Read(func(fd uintptr) bool {
		var one [1]byte
		for {
			n, _, err := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
			switch {
			case errors.Is(err, syscall.EINTR):
				continue
			case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.EWOULDBLOCK):
				return false
			}
			bytes, failed = n > 0, err
			return true
		}
	})
	if err == nil {
		err = failed
	}
	return bytes, err
}

// isTimeout tells a deadline that has passed from a connection that has failed.
func isTimeout(err error) bool {
	var ne net.Error
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &ne) && ne.Timeout()
}
