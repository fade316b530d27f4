//go:build !linux

package account

import "os/exec"

func lowPriority(*exec.Cmd) {}

func lowerPriority(int) {}
