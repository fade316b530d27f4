//go:build !unix

package web

import (
	"errors"
	"syscall"
)

const canPark = false

func readable(syscall.RawConn) (bool, error) { return false, errors.ErrUnsupported }

func isTimeout(error) bool { return false }
