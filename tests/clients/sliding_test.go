package clients_test

import (
	"testing"
	"time"
)

// TestJavaScriptSDKSlidingSync runs sliding.mjs: two users whose clients know rooms by sliding sync alone.
func TestJavaScriptSDKSlidingSync(t *testing.T) {
	eachServer(t, func(t *testing.T, homeserver string) {
		run(t, 2*time.Minute, []string{"HOMESERVER=" + homeserver}, node(t), "sliding.mjs")
	})
}
