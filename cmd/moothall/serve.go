package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/KimMachineGun/automemlimit/memlimit"

	"github.com/moothall/moothall/homeserver"
)

type serveCmd struct{}

// Run is called by kong.
func (serveCmd) Run(ctx context.Context, c *cli) error {
	cfg, log, err := c.load()
	if err != nil {
		return err
	}
	for _, w := range cfg.Warnings {
		log.Warn(w)
	}
	limitMemory(log)
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	cfg.Search.Program, cfg.Search.Attachments.Program, cfg.Passwords.Program = program, program, program
	srv, err := homeserver.New(ctx, cfg, log)
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stdout, "Moothall %s serves %s on %s\n", homeserver.Version(), cfg.ServerName, srv.URL())
	if link := srv.SetupLink(); link != "" {
		fmt.Fprintf(os.Stdout, "There is no administrator yet. Open this link once to make the first one:\n  %s\n", link)
	}
	return srv.Run(ctx)
}

// limitMemory tells the garbage collector of a container's memory limit, unless GOMEMLIMIT is set.
func limitMemory(log *slog.Logger) {
	_, err := memlimit.Set(memlimit.WithRatio(0.9))
	if err != nil && !errors.Is(err, memlimit.ErrNoLimit) && !errors.Is(err, memlimit.ErrNoCgroup) {
		log.Debug("the memory limit of this process is not known", "error", err)
	}
}
