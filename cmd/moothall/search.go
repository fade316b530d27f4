package main

import (
	"context"
	"os"

	"github.com/moothall/moothall/homeserver"
)

type searchCmd struct {
	Reindex searchReindexCmd `cmd:"" help:"Have the running server build a new search index beside the old one, and show how far it is."`
	Status  searchStatusCmd  `cmd:"" help:"Show the search engine and its last rebuilding."`
}

type searchReindexCmd struct{}

// Run is called by kong.
func (searchReindexCmd) Run(ctx context.Context, c *cli) error {
	cfg, log, err := c.load()
	if err != nil {
		return err
	}
	return homeserver.Reindex(ctx, cfg, log, os.Stdout)
}

type searchStatusCmd struct{}

// Run is called by kong.
func (searchStatusCmd) Run(ctx context.Context, c *cli) error {
	cfg, log, err := c.load()
	if err != nil {
		return err
	}
	return homeserver.SearchStatus(ctx, cfg, log, os.Stdout)
}
