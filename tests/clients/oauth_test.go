package clients_test

import (
	"testing"
	"time"
)

// TestOAuth runs oauth.mjs: the whole OAuth 2.0 flow with oauth4webapi and matrix-js-sdk.
func TestOAuth(t *testing.T) {
	eachServer(t, func(t *testing.T, homeserver string) {
		run(t, 2*time.Minute, []string{"HOMESERVER=" + homeserver}, node(t), "oauth.mjs")
	})
}
