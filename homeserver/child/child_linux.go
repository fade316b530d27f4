package child

import (
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// apart puts a command into a group of its own, which ends with this process.
func apart(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// lower changes the priority of all threads of a started command.
func lower(pid, niceness int) { _ = syscall.Setpriority(syscall.PRIO_PGRP, pid, niceness) }

// batch changes the policy thread by thread, as Linux keeps it; threads to come inherit it. The second round finds those that
// were started during the first.
func batch(niceness int) {
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_BATCH, Nice: int32(niceness)}
	for range 2 {
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return
		}
		for _, t := range threads {
			if tid, err := strconv.Atoi(t.Name()); err == nil {
				_ = unix.SchedSetAttr(tid, &attr, 0)
			}
		}
	}
}
