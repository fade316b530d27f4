package clients_test

import (
	"testing"
	"time"
)

// TestJavaScriptSDK runs e2e.mjs: two users on matrix-js-sdk with Rust crypto.
func TestJavaScriptSDK(t *testing.T) {
	eachServer(t, func(t *testing.T, homeserver string) {
		run(t, 3*time.Minute, []string{"HOMESERVER=" + homeserver}, node(t), "e2e.mjs")
	})
}
