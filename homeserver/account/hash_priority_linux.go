package account

import (
	"os/exec"
	"syscall"
)

// niceness of the processes that hash: they get what is left over, and a little when nothing is.
const niceness = 19

// lowPriority prepares a command to run in a group of its own, which ends with this process.
func lowPriority(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// lowerPriority makes all threads of a started command give way to others. Where the system refuses, it stays as it is.
func lowerPriority(pid int) { _ = syscall.Setpriority(syscall.PRIO_PGRP, pid, niceness) }
