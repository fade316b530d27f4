package main

import (
	"context"
	"fmt"

	"github.com/moothall/moothall/compliance/archive"
	"github.com/moothall/moothall/homeserver"
)

type archiveCmd struct {
	Verify archiveVerifyCmd `cmd:"" help:"Check that nobody changed, removed or inserted entries of the archive."`
}

type archiveVerifyCmd struct {
	Head string `help:"A head that an earlier verification showed: the archive must still have it." placeholder:"NUMBER:HASH"`
}

// Run is called by kong.
func (v archiveVerifyCmd) Run(ctx context.Context, c *cli) error {
	cfg, log, err := c.load()
	if err != nil {
		return err
	}
	return homeserver.WithArchive(ctx, cfg, log, "verify", func(ctx context.Context, a *archive.Archive) error {
		r, err := a.Verify(ctx, v.Head)
		if err != nil {
			return err
		}
		fmt.Printf("checked %d entries in %d batches against %d heads noted elsewhere; %d events wait to be archived\n", r.Entries, r.Batches, r.Noted, r.Pending)
		if len(r.Problems) > 0 {
			for _, p := range r.Problems {
				fmt.Println(p)
			}
			return fmt.Errorf("the archive is not what was written: %v", r.Problems[0])
		}
		fmt.Println("nothing was changed. Note this head elsewhere, for later verifications (--head):")
		fmt.Println(r.Head)
		return nil
	})
}
