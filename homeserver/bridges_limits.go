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

// limited is a part with rate limits that hold for all processes together.
type limited interface {
	Share()
	Draws() []web.Draws
	Count(list []web.Draws)
}

// limitedParts are the parts with rate limits, by the names under which processes tell of them.
func (s *Server) limitedParts() map[string]limited {
	out := map[string]limited{"hooks": s.hooks, "hr": s.hr.Limits(), "oa": s.oa.Limits()}
	if s.limits != nil {
		out["web"] = s.limits
	}
	return out
}

// runLimits tells the other processes what was given out of rate limits.
func (s *Server) runLimits(ctx context.Context) error {
	if s.store.SQLite() {
		return nil
	}
	parts := s.limitedParts()
	for _, part := range parts {
		part.Share()
	}
	tick := time.NewTicker(limitsEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		for name, part := range parts {
			s.tellLimits(name, part.Draws())
		}
	}
}

func (s *Server) tellLimits(name string, list []web.Draws) {
	for len(list) > 0 {
		n := min(len(list), limitsAtOnce)
		b, err := json.Marshal(list[:n])
		if err != nil {
			s.log.Warn("rate limits cannot be told", "error", err)
			return
		}
		s.store.Broadcast(topicLimits, s.store.Node()+" "+name+" "+string(b))
		list = list[n:]
	}
}

// onLimits takes in what another process gave out.
func (s *Server) onLimits(topic, payload string) {
	if topic != topicLimits {
		return
	}
	node, rest, _ := strings.Cut(payload, " ")
	if node == s.store.Node() {
		return // a broadcast comes back to its sender
	}
	name, body, _ := strings.Cut(rest, " ")
	part := s.limitedParts()[name]
	if part == nil {
		return
	}
	var list []web.Draws
	if err := json.Unmarshal([]byte(body), &list); err != nil {
		s.log.Warn("what another process told of rate limits cannot be read", "error", err)
		return
	}
	part.Count(list)
}
