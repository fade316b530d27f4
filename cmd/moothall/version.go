package main

import (
	"fmt"

	"github.com/moothall/moothall/homeserver"
)

type versionCmd struct{}

// Run is called by kong.
func (versionCmd) Run() error {
	fmt.Println("moothall", homeserver.Version())
	return nil
}
