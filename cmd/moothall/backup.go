package main

import (
	"context"
	"fmt"

	"github.com/moothall/moothall/homeserver"
)

type backupCmd struct {
	Dir string `arg:"" help:"Directory to make; it must not exist or be empty." type:"path"`
}

// Run is called by kong.
func (b backupCmd) Run(ctx context.Context, c *cli) error {
	cfg, log, err := c.load()
	if err != nil {
		return err
	}
	if err := homeserver.Backup(ctx, cfg, log, b.Dir); err != nil {
		return err
	}
	fmt.Println("The backup is complete:", b.Dir)
	return nil
}
