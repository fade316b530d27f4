package search_test

import (
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
)

func roomID(s string) id.RoomID { return id.RoomID(s) }

// each runs a test on every database with the engine inside of the process.
func each(t *testing.T, fn func(t *testing.T, hs *hstest.Server), options ...hstest.Option) {
	t.Helper()
	hstest.Each(t, fn, append(options, func(c *homeserver.Config) { c.ServerName = "localhost" })...)
}
