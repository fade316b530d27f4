package main

import (
	"context"
	"fmt"
	"time"

	"github.com/moothall/moothall/homeserver"
)

type hrCmd struct {
	Token hrTokenCmd `cmd:"" help:"Tokens by which an HR system uses SCIM and announces."`
}

type hrTokenCmd struct {
	Create hrTokenCreateCmd `cmd:"" help:"Make a token and print it, this once."`
	List   hrTokenListCmd   `cmd:"" help:"List tokens."`
	Revoke hrTokenRevokeCmd `cmd:"" help:"End a token."`
}

type hrTokenCreateCmd struct {
	Name string `arg:"" help:"What the audit log calls the HR system, such as workday."`
}

// Run is called by kong.
func (c hrTokenCreateCmd) Run(ctx context.Context, cli *cli) error {
	cfg, log, err := cli.load()
	if err != nil {
		return err
	}
	tokenID, secret, err := homeserver.CreateHRToken(ctx, cfg, log, c.Name)
	if err != nil {
		return err
	}
	fmt.Printf("id     %s\ntoken  %s\nurl    %s/scim/v2\n", tokenID, secret, cfg.PublicURL)
	return nil
}

type hrTokenListCmd struct{}

// Run is called by kong.
func (hrTokenListCmd) Run(ctx context.Context, cli *cli) error {
	cfg, log, err := cli.load()
	if err != nil {
		return err
	}
	list, err := homeserver.HRTokens(ctx, cfg, log)
	if err != nil {
		return err
	}
	for _, t := range list {
		used := "never used"
		if !t.Used.IsZero() {
			used = "used " + t.Used.Format(time.DateTime)
		}
		fmt.Printf("%s  %s  made %s, %s\n", t.ID, t.Name, t.Created.Format(time.DateTime), used)
	}
	return nil
}

type hrTokenRevokeCmd struct {
	ID string `arg:"" help:"The token's id, as list shows it."`
}

// Run is called by kong.
func (c hrTokenRevokeCmd) Run(ctx context.Context, cli *cli) error {
	cfg, log, err := cli.load()
	if err != nil {
		return err
	}
	return homeserver.RevokeHRToken(ctx, cfg, log, c.ID)
}
