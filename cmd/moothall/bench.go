package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/moothall/moothall/bench"
)

type benchCmd struct {
	URL      []string      `arg:"" optional:"" default:"http://127.0.0.1:8008" help:"Server on this machine, with open registration and without rate limits; several addresses for several processes of one server."`
	Phase    []string      `help:"Phases to run: ${phases}." placeholder:"NAME,..."`
	PID      []int         `name:"pid" help:"Processes whose CPU and memory count, with their children: the server's, and its database's." placeholder:"PID"`
	Duration time.Duration `default:"10s" help:"Length of each sending phase."`
	Members  int           `default:"2000" help:"Members of the room that grows."`
	Idle     int           `default:"10000" help:"Clients of the idle phase."`
	Messages int           `default:"10000" help:"Messages of the fill phase."`
	Disk     string        `default:"." help:"Folder on the server's disk, to time its fsync."`
	JSON     bool          `name:"json" help:"Print the results as JSON."`
}

// Run is called by kong.
func (b benchCmd) Run(ctx context.Context) error {
	if b.Duration <= 0 || b.Duration > 10*time.Minute || b.Members < 20 || b.Idle < 1 || b.Messages < 1 {
		return errors.New("--duration must be between 0 and 10m, --members at least 20, --idle and --messages at least 1")
	}
	results, err := bench.Run(ctx, bench.Config{URLs: b.URL, PIDs: b.PID, Phases: b.Phase, Duration: b.Duration, Idle: b.Idle, Members: b.Members, Messages: b.Messages, Disk: b.Disk, Progress: os.Stderr})
	write := bench.WriteTable
	if b.JSON {
		write = bench.WriteJSON
	}
	if werr := write(os.Stdout, results); err == nil {
		err = werr
	}
	return err
}

// benchPhases lists the phases for the help text.
func benchPhases() string {
	out := ""
	for i, p := range bench.Phases() {
		if i > 0 {
			out += ", "
		}
		out += fmt.Sprintf("%s (%s)", p[0], p[1])
	}
	return out
}
