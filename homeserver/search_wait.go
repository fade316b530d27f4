package homeserver

import (
	"context"
	"time"
)

// awaitIndex gives the index a moment for what was said just now in the rooms that are searched, so that people find what
// they have sent themselves. Where it is far behind, or elsewhere, there is nothing to wait for.
func (s *Server) awaitIndex(ctx context.Context, upto int64) {
	const longest, far = 600 * time.Millisecond, 1000
	for end := time.Now().Add(longest); time.Now().Before(end); {
		lag := s.search.Lag()
		if lag <= 0 || lag > far || s.store.Applied()-lag >= upto {
			return
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return
		}
	}
}
