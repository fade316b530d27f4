// Package child starts this program again for work that must not disturb the process that serves: another process has a heap
// and a scheduler of its own, a low priority, and takes nobody along when it dies.
package child

import (
	"context"
	"os/exec"
)

// Command prepares this program, or another one whose main knows the variable, to run with env and nothing else of this
// process's environment. It ends with ctx and with this process, and signals of the terminal do not reach it.
func Command(ctx context.Context, program string, env ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program)
	cmd.Env = env
	apart(cmd)
	return cmd
}

// Start starts a command at a priority, from 0 (that of this process) to 19 (what nobody else wants). Where the system refuses
// the priority, it runs at that of this process.
func Start(cmd *exec.Cmd, niceness int) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	lower(cmd.Process.Pid, niceness)
	return nil
}

// Batch tells the system that this process works in the background: it never takes the processor from another that has just
// become ready. Called by the started process itself, first of all.
func Batch(niceness int) { batch(niceness) }
