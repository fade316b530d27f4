package web

import (
	"fmt"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
)

func TestLimiter(t *testing.T) {
	l := NewLimiter(map[Rate]Bucket{RateSend: {PerSecond: 10, Burst: 3}})
	key := limitKey{rate: RateSend, user: "@a:x"}
	now := time.Second
	for i := range 3 {
		if wait := l.draw(key, now); wait != 0 {
			t.Fatalf("draw %d waits %v", i, wait)
		}
	}
	if wait := l.draw(key, now); wait != 100*time.Millisecond {
		t.Errorf("the fourth waits %v, want 100ms", wait)
	}
	if wait := l.draw(limitKey{rate: RateSend, user: "@b:x"}, now); wait != 0 {
		t.Errorf("another user waits %v", wait)
	}
	if wait := l.draw(limitKey{rate: RateRead, user: "@a:x"}, now); wait != 0 {
		t.Errorf("an unlimited class waits %v", wait)
	}
	if wait := l.draw(key, now+100*time.Millisecond); wait != 0 {
		t.Errorf("after the wait it still waits %v", wait)
	}
	if wait := l.draw(key, now+150*time.Millisecond); wait != 50*time.Millisecond {
		t.Errorf("half an interval later it waits %v", wait)
	}
	for i := range 3 {
		if wait := l.draw(key, now+time.Hour); wait != 0 {
			t.Errorf("a rested bucket's draw %d waits %v", i, wait)
		}
	}
	var none *Limiter
	if wait := none.Allow(RateSend, "x"); wait != 0 {
		t.Errorf("no limiter waits %v", wait)
	}
}

func TestLimiterIsBounded(t *testing.T) {
	l := NewLimiter(map[Rate]Bucket{RateLogin: {PerSecond: 0.001, Burst: 1}})
	for i := range 3 * limiterShards * limiterEntries {
		l.draw(limitKey{rate: RateLogin, name: fmt.Sprint(i)}, time.Duration(i))
	}
	total := 0
	for i := range l.shards {
		total += len(l.shards[i].full)
	}
	if total > limiterShards*limiterEntries || total == 0 {
		t.Errorf("%d entries are kept", total)
	}
}

func TestLimiterWhom(t *testing.T) {
	l := NewLimiter(map[Rate]Bucket{RateRead: {PerSecond: 0.001, Burst: 1}})
	alice := &Identity{UserID: id.UserID("@alice:x")}
	ip := netip.MustParseAddr
	for i, tc := range []struct {
		who  *Identity
		ip   string
		free bool
	}{
		{alice, "192.0.2.1", true}, {alice, "192.0.2.2", false}, // a user is the same from anywhere
		{nil, "192.0.2.1", true}, {nil, "192.0.2.1", false}, {nil, "192.0.2.2", true},
		{nil, "2001:db8::1", true}, {nil, "2001:db8::2", false}, {nil, "2001:db8:0:1::1", true}, // one /64 is one client
		{&Identity{UserID: "@bot:x", Unlimited: true}, "192.0.2.1", true}, {&Identity{UserID: "@bot:x", Unlimited: true}, "192.0.2.1", true},
	} {
		if wait := l.allowRequest(RateRead, tc.who, ip(tc.ip)); (wait == 0) != tc.free {
			t.Errorf("case %d waits %v", i, wait)
		}
	}
}

func TestLimitedRoute(t *testing.T) {
	srv := newServer(t, Config{Limits: NewLimiter(map[Rate]Bucket{RateLogin: {PerSecond: 0.01, Burst: 2}})}, []Route{
		{Pattern: "POST /_matrix/client/v3/login", Rate: RateLogin, Handler: echo("login")},
		{Pattern: "GET /_matrix/client/v3/login", Handler: echo("flows")},
	})
	for i, want := range []int{200, 200, 429} {
		got := call(t, srv, http.MethodPost, "/_matrix/client/v3/login", "{}")
		if got.StatusCode != want {
			t.Errorf("call %d: %d, want %d", i, got.StatusCode, want)
		}
		if want == 429 && (got.errcode() != "M_LIMIT_EXCEEDED" || got.Header.Get("Retry-After") != "100") {
			t.Errorf("refused with %v %s", got.Header, got.body)
		}
	}
	if got := call(t, srv, http.MethodGet, "/_matrix/client/v3/login", ""); got.StatusCode != 200 {
		t.Errorf("a free route answers %d", got.StatusCode)
	}
}
