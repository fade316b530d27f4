package homeserver

import (
	"context"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/moothall/moothall/homeserver/web"
)

const (
	topicLimits  = "limits"
	limitsEvery  = 200 * time.Millisecond
	limitsAtOnce = 20 // buckets in one broadcast, which holds some kilobytes
)

// runLimits tells the other processes what was given out of rate limits.
func (s *Server) runLimits(ctx context.Context) error {
	if s.store.SQLite() || s.limits == nil {
		return nil
	}
	s.limits.Share()
	tick := time.NewTicker(limitsEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		list := s.limits.Draws()
		for len(list) > 0 {
			n := min(len(list), limitsAtOnce)
			b, err := json.Marshal(list[:n])
			if err != nil {
				s.log.Warn("rate limits cannot be told", "error", err)
				break
			}
			s.store.Broadcast(topicLimits, s.store.Node()+" "+string(b))
			list = list[n:]
		}
	}
}

// onLimits takes in what another process gave out.
func (s *Server) onLimits(topic, payload string) {
	if topic != topicLimits || s.limits == nil {
		return
	}
	node, body, _ := strings.Cut(payload, " ")
	if node == s.store.Node() {
		return // a broadcast comes back to its sender
	}
	var list []web.Draws
	if err := json.Unmarshal([]byte(body), &list); err != nil {
		s.log.Warn("what another process told of rate limits cannot be read", "error", err)
		return
	}
	s.limits.Count(list)
}
