package hooks

import (
	"strconv"
	"strings"
	"time"

	"github.com/moothall/moothall/homeserver/web"
)

// limit gives the limiter of the hooks that take so many posts a minute.
func (h *Hooks) limit(perMinute int) *web.Limiter {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := h.limits[perMinute]
	if l == nil {
		l = web.NewLimiter(map[web.Rate]web.Bucket{web.RateSend: {PerSecond: float64(perMinute) / 60, Burst: max(perMinute/2, 10)}})
		if h.share.Load() {
			l.Share()
		}
		h.limits[perMinute] = l
	}
	return l
}

// allow draws from a hook's bucket.
func (h *Hooks) allow(hookID string, perMinute int) time.Duration {
	if perMinute <= 0 {
		perMinute = h.d.Config.PerMinute
	}
	return h.limit(perMinute).Allow(web.RateSend, hookID)
}

// wrongProofs begins the names of buckets that are not a hook's but of those who prove nothing.
const wrongProofs = "wrong"

// Share makes the limits remember what they give out, for Draws to tell.
func (h *Hooks) Share() {
	h.share.Store(true)
	h.wrong.Share()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, l := range h.limits {
		l.Share()
	}
}

// Draws takes what other processes should know of the limits, as web.Limiter does.
func (h *Hooks) Draws() []web.Draws {
	var out []web.Draws
	add := func(limiter string, l *web.Limiter) {
		for _, d := range l.Draws() {
			d.Name = limiter + " " + d.Name
			out = append(out, d)
		}
	}
	add(wrongProofs, h.wrong)
	h.mu.Lock()
	defer h.mu.Unlock()
	for perMinute, l := range h.limits {
		add(strconv.Itoa(perMinute), l)
	}
	return out
}

// Count takes in what another process gave out.
func (h *Hooks) Count(list []web.Draws) {
	for _, d := range list {
		limiter, name, _ := strings.Cut(d.Name, " ")
		d.Name = name
		if limiter == wrongProofs {
			h.wrong.Count([]web.Draws{d})
		} else if perMinute, err := strconv.Atoi(limiter); err == nil && perMinute > 0 {
			h.limit(perMinute).Count([]web.Draws{d})
		}
	}
}
