package ldapsync_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/store/storetest"
)

// benchEnv makes TestLarge measure a company of 5,000 people and 300 groups, which is one of 500 and 30 else.
const benchEnv = "MOOTHALL_DIRECTORY_BENCH"

// TestLarge measures the first comparison of a company with its rooms, one that finds nothing new, how soon a disabled
// account is out, and what messages take meanwhile.
func TestLarge(t *testing.T) {
	users, groups := 500, 30
	if os.Getenv(benchEnv) != "" {
		users, groups = 5000, 300
	}
	c := newCorp(t)
	loadCompany(c, users, groups)
	for _, db := range []string{"sqlite", "postgres"} {
		t.Run(db, func(t *testing.T) {
			options := []hstest.Option{c.option(func(d *homeserver.Directory) { d.Safety.MaxShare = 1 })}
			if db == "postgres" {
				options = append(options, hstest.Postgres(storetest.Postgres(t)))
			}
			idle := hstest.Start(t, options[1:]...)
			quiet := p99(t, idle, nil)
			idle.Stop()

			cfg := hstest.Config(t, options...)
			if db == "postgres" {
				cfg.Database.URL = homeserver.Secret(storetest.Postgres(t))
			}
			s := serve(t, cfg)
			began := time.Now()
			busy := p99(t, s.Server, func() bool { return s.status()["full_at"] != nil })
			s.wait("the first comparison", 5*time.Minute, func() bool { return s.status()["full_at"] != nil })
			first := time.Since(began)
			if got := s.status()["accounts"]; got != float64(users) {
				t.Errorf("%v accounts, want %d", got, users)
			}
			if runs := s.status()["runs"].([]any); len(runs) > 0 {
				t.Logf("first run: took %v, rooms %v", hstest.At(runs[len(runs)-1], "took_ms"), hstest.At(runs[len(runs)-1], "groups"))
			}
			s.following()
			began = time.Now()
			again := s.sync()
			t.Logf("%d people, %d groups: first %v, nothing new %v (%v); sends' p99 %v, meanwhile %v",
				users, groups, first.Round(time.Millisecond), time.Since(began).Round(time.Millisecond), again["took_ms"], quiet, busy)
			if again["created"] != 0.0 || again["updated"] != 0.0 || hstest.At(again, "groups", "join") != 0.0 {
				t.Errorf("the second run changed something: %v", again)
			}
			u := s.login("u7", "pw")
			c.set(c.dn("u7"), "pwdAccountLockedTime", "000001010000Z")
			out := s.wait("u7 to be out", limit, func() bool { return u.Do(t, "GET", "", "/v3/sync").Status == 401 })
			t.Logf("a disabled account is out after %v", out.Round(time.Millisecond))
			c.set(c.dn("u7"), "pwdAccountLockedTime")
		})
	}
}

func loadCompany(c *corp, users, groups int) {
	var b strings.Builder
	for i := range users {
		fmt.Fprintf(&b, "dn: %s\nobjectClass: inetOrgPerson\nuid: u%d\ncn: User %d\nsn: %d\nmail: u%d.%s@corp.example\ntitle: Engineer\nuserPassword: pw\n\n",
			c.dn(fmt.Sprintf("u%d", i)), i, i, i, i, strings.TrimPrefix(strings.SplitN(c.base, ",", 2)[0], "ou="))
	}
	for g := range groups {
		fmt.Fprintf(&b, "dn: cn=g%d,ou=groups,%s\nobjectClass: groupOfNames\ncn: g%d\n", g, c.base, g)
		for i := g; i < users; i += groups {
			fmt.Fprintf(&b, "member: %s\n", c.dn(fmt.Sprintf("u%d", i)))
		}
		b.WriteByte('\n')
	}
	c.load(b.String())
}

// p99 sends messages, some 45 a second, until done says so (for 2 s where it is nil, for 30 s in a measurement), and returns the 99th
// percentile of what they take.
func p99(t *testing.T, hs *hstest.Server, done func() bool) time.Duration {
	t.Helper()
	sender := hs.User("sender")
	room := sender.CreateRoom("private_chat")
	var took []time.Duration
	alone := 2 * time.Second
	if os.Getenv(benchEnv) != "" {
		alone = 30 * time.Second
	}
	for began := time.Now(); ; {
		at := time.Now()
		sender.Text(room, "hello")
		took = append(took, time.Since(at))
		if done == nil && time.Since(began) > alone || done != nil && len(took)%10 == 0 && done() {
			break
		}
		time.Sleep(time.Duration(5+rand.IntN(30)) * time.Millisecond) // at random: else it gets into step with what it measures
	}
	slices.Sort(took)
	return took[len(took)*99/100].Round(100 * time.Microsecond)
}
