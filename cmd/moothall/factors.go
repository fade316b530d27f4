package main

import (
	"context"
	"fmt"

	"github.com/moothall/moothall/homeserver"
)

type userResetFactorsCmd struct {
	Name string `arg:"" help:"Username, such as alice."`
}

// Run is called by kong.
func (u userResetFactorsCmd) Run(ctx context.Context, c *cli) error {
	cfg, log, err := c.load()
	if err != nil {
		return err
	}
	user, n, err := homeserver.ResetFactors(ctx, cfg, log, u.Name)
	if err != nil {
		return err
	}
	fmt.Printf("%s: %d second factors removed\n", user, n)
	return nil
}
