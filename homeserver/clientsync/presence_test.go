package clientsync

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"maunium.net/go/mautrix/id"
)

// TestStatusAcrossNodes: a process tells of each user who is online there, also before it has heard of a status message
// that another one took; the message that was set last holds on both, whatever their clocks and whatever came first.
func TestStatusAcrossNodes(t *testing.T) {
	const alice = id.UserID("@alice:test")
	node := func(name string, ahead time.Duration) *presence {
		return newPresence(name, new(atomic.Int64), func() time.Time { return time.Now().Add(ahead) })
	}
	set := func(p *presence, status string) { p.set(alice, "A", online, &status) }
	told := func(p *presence) (out []string) {
		for _, c := range p.casts([]id.UserID{alice}) {
			b, err := json.Marshal(c)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, string(b))
		}
		return out
	}
	hear := func(p *presence, casts []string) {
		for _, c := range casts {
			if err := p.receive(c); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, ahead := range []time.Duration{0, time.Hour, -time.Hour} {
		one, two := node("one", 0), node("two", ahead)
		shows := func(what, want string) {
			t.Helper()
			for _, p := range []*presence{one, two} {
				if v, _ := p.get(alice); v.state != online || v.status != want {
					t.Errorf("%s, clocks %s apart: %s shows %s %q, want %q", what, ahead, p.node, v.state, v.status, want)
				}
			}
		}
		two.begin(alice, "B", online)
		set(one, "here")
		before := told(two)
		hear(two, told(one))
		hear(one, before)
		hear(two, told(one))
		shows("crossed", "here")

		before = told(one)
		set(two, "there")
		hear(two, before)
		hear(one, told(two))
		shows("set on the other node", "there")

		set(one, "")
		before = told(two)
		hear(one, before)
		hear(two, told(one))
		shows("cleared", "")
	}
}
