package main

import (
	"context"
	"fmt"

	"github.com/moothall/moothall/homeserver"
)

type restoreCmd struct {
	Dir string `arg:"" help:"Directory of the backup." type:"existingdir"`
}

// Run is called by kong.
func (b restoreCmd) Run(ctx context.Context, c *cli) error {
	cfg, log, err := c.load()
	if err != nil {
		return err
	}
	if err := homeserver.Restore(ctx, cfg, log, b.Dir); err != nil {
		return err
	}
	fmt.Println("The backup was restored:", b.Dir)
	return nil
}
