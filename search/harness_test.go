package search_test

import (
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/testkit"
)

func roomID(s string) id.RoomID { return id.RoomID(s) }

// clusters are the engines outside of the process.
var clusters = []string{"elasticsearch", "opensearch"}

// cluster is the address of one of them.
func cluster(t testing.TB, name string) string {
	t.Helper()
	return testkit.Partner(t, "MOOTHALL_TEST_"+strings.ToUpper(name))
}

// onCluster makes a server search by a cluster.
func onCluster(t testing.TB, url string) hstest.Option {
	p := prefix()
	t.Cleanup(func() {
		if x, err := openCluster(url, p); err == nil {
			dropAll(t, x)
		}
	})
	return func(c *homeserver.Config) {
		c.Search.Elasticsearch.URL, c.Search.Elasticsearch.Prefix = url, p
	}
}

// each runs a test on every database with the engine inside of the process, and with every cluster.
func each(t *testing.T, fn func(t *testing.T, hs *hstest.Server), options ...hstest.Option) {
	t.Helper()
	hstest.Each(t, fn, options...)
	for _, name := range clusters {
		t.Run(name, func(t *testing.T) {
			fn(t, hstest.Start(t, append([]hstest.Option{onCluster(t, cluster(t, name))}, options...)...))
		})
	}
}
