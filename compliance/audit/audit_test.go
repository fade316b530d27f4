package audit_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
)

// bench is a log on an empty database, with a clock that the test moves.
type harness struct {
	*audit.Log
	st   *store.Store
	deps audit.Deps

	mu  sync.Mutex
	now time.Time
}

func (h *harness) clock() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.now
}

func (h *harness) pass(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now = h.now.Add(d)
}

func each(t *testing.T, fn func(t *testing.T, h *harness)) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		st, err := store.Open(t.Context(), cfg, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = st.Close() })
		_, key, _ := ed25519.GenerateKey(nil)
		h := &harness{st: st, now: time.UnixMilli(1_700_000_000_000)}
		h.deps = audit.Deps{Store: st, Logger: slog.New(slog.DiscardHandler), ServerName: "audit.example", Key: event.SigningKey{KeyID: "ed25519:1", Private: key}, Clock: h.clock}
		h.Log = audit.New(h.deps)
		fn(t, h)
	})
}

func (h *harness) write(t *testing.T, n int, e audit.Entry) {
	t.Helper()
	for i := range n {
		if e.Details = map[string]any{"n": i}; e.Time == 0 {
			e.Time = h.clock().UnixMilli()
		}
		if err := h.Record(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		h.pass(time.Millisecond)
		e.Time = 0
	}
}

func (h *harness) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	err := h.st.Write(t.Context(), func(tx *store.Tx) error {
		n, err := tx.Exec(sql, args...)
		if err == nil && n == 0 {
			err = errors.New("nothing was changed")
		}
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func (h *harness) verify(t *testing.T) audit.Report {
	t.Helper()
	r, err := h.Verify(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (h *harness) ids(t *testing.T) []string {
	t.Helper()
	p, err := h.Query(t.Context(), audit.Filter{OldestFirst: true, Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	out := make([]string, len(p.Entries))
	for i, e := range p.Entries {
		out[i] = e.ID
	}
	return out
}

// TestVerify breaks the log in every way and looks whether the first broken entry is named.
func TestVerify(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spoil func(t *testing.T, h *harness, ids []string)
		entry int // index of the entry that is named, -1: a batch
		says  string
	}{
		{"nothing", func(*testing.T, *harness, []string) {}, 0, ""},
		{"text changed", func(t *testing.T, h *harness, ids []string) {
			h.exec(t, `UPDATE audit_log SET target = '@other:x' WHERE id IN @text($1)`, []string{ids[3], ids[7]})
		}, 3, "changed"},
		{"body changed", func(t *testing.T, h *harness, ids []string) {
			h.exec(t, `UPDATE audit_log SET body = $2 WHERE id = $1`, ids[4], store.Content(`{"details":{"n":5}}`))
		}, 4, "changed"},
		{"body removed", func(t *testing.T, h *harness, ids []string) {
			h.exec(t, `UPDATE audit_log SET body = NULL WHERE id = $1`, ids[4])
		}, 4, "changed"},
		{"entry removed", func(t *testing.T, h *harness, ids []string) {
			h.exec(t, `DELETE FROM audit_log WHERE id = $1`, ids[5])
		}, 5, "removed"},
		{"last entry removed", func(t *testing.T, h *harness, ids []string) {
			h.exec(t, `DELETE FROM audit_log WHERE id = $1`, ids[len(ids)-1])
		}, 14, "removed"},
		{"entry inserted", func(t *testing.T, h *harness, ids []string) {
			h.exec(t, `INSERT INTO audit_log SELECT 'zzzzzzzzzzzzzzzzzzzzzzzzzz', ts, actor, kind, device, session, ip, agent, action, target, result, reason, body, batch FROM audit_log WHERE id = $1`, ids[2])
		}, -2, "inserted"},
		{"entry moved", func(t *testing.T, h *harness, ids []string) {
			h.exec(t, `UPDATE audit_log SET batch = 2 WHERE id = $1`, ids[1])
		}, 1, "removed"},
		{"entry of no batch", func(t *testing.T, h *harness, ids []string) {
			h.exec(t, `INSERT INTO audit_log SELECT 'zzzzzzzzzzzzzzzzzzzzzzzzzz', ts, actor, kind, device, session, ip, agent, action, target, result, reason, body, 99 FROM audit_log WHERE id = $1`, ids[2])
		}, -2, "do not exist"},
		{"batch removed", func(t *testing.T, h *harness, ids []string) {
			h.exec(t, `DELETE FROM audit_log WHERE batch = 2`)
			h.exec(t, `DELETE FROM audit_batches WHERE number = 2`)
		}, -1, "batch was removed"},
		{"last batch removed", func(t *testing.T, h *harness, ids []string) {
			h.exec(t, `DELETE FROM audit_log WHERE batch = 3`)
			h.exec(t, `DELETE FROM audit_batches WHERE number = 3`)
		}, -1, "batch was removed"},
		{"batch rewritten without the key", func(t *testing.T, h *harness, ids []string) {
			h.exec(t, `UPDATE audit_batches SET last_ts = last_ts + 1 WHERE number = 2`)
		}, -1, "batch was changed"},
		{"cut without the key", func(t *testing.T, h *harness, ids []string) {
			h.exec(t, `DELETE FROM audit_log WHERE batch = 1`)
			h.exec(t, `DELETE FROM audit_batches WHERE number = 1`)
			h.exec(t, `UPDATE audit_head SET anchor = 1, anchor_hash = (SELECT prev FROM audit_batches WHERE number = 2)`)
		}, -1, "not signed"},
		{"signed by another", func(t *testing.T, h *harness, ids []string) {
			_, key, _ := ed25519.GenerateKey(nil)
			d := h.deps
			d.Key.Private = key
			other := audit.New(d)
			h.write(t, 1, audit.Entry{Action: "x.y"})
			if err := other.Chain(t.Context()); err != nil {
				t.Fatal(err)
			}
		}, -1, "not signed by this server"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			each(t, func(t *testing.T, h *harness) {
				for range 3 {
					h.write(t, 5, audit.Entry{Action: "user.locked", Target: "@a:x", Source: audit.Source{Actor: "@admin:x"}})
					if err := h.Chain(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				ids := h.ids(t)
				if len(ids) != 15 {
					t.Fatalf("%d entries", len(ids))
				}
				tc.spoil(t, h, ids)
				r := h.verify(t)
				if tc.says == "" {
					if len(r.Problems) > 0 || r.Batches != 3 || r.Entries != 15 || r.Pending != 0 {
						t.Fatalf("report %+v", r)
					}
					return
				}
				if len(r.Problems) == 0 {
					t.Fatal("nothing was found")
				}
				first := r.Problems[0]
				want := ""
				switch {
				case tc.entry >= 0:
					want = ids[tc.entry]
				case tc.entry == -2:
					want = strings.Repeat("z", 26)
				}
				if first.Entry != want || !strings.Contains(first.What, tc.says) {
					t.Errorf("found first: %v; want entry %q, %q", first, want, tc.says)
				}
			})
		})
	}
}

// TestRewrittenWithTheKey shows what a noted head is good for: against those who have the key.
func TestRewrittenWithTheKey(t *testing.T) {
	each(t, func(t *testing.T, h *harness) {
		h.write(t, 3, audit.Entry{Action: "a.b"})
		if err := h.Chain(t.Context()); err != nil {
			t.Fatal(err)
		}
		noted := h.verify(t).Head
		h.exec(t, `DELETE FROM audit_log WHERE id = $1`, h.ids(t)[1])
		h.exec(t, `UPDATE audit_log SET batch = NULL`)
		h.exec(t, `DELETE FROM audit_batches`)
		h.exec(t, `DELETE FROM audit_head`)
		if err := h.Chain(t.Context()); err != nil {
			t.Fatal(err)
		}
		if r := h.verify(t); len(r.Problems) != 0 {
			t.Fatalf("a rewritten chain is a good one by itself: %v", r.Problems)
		}
		r, err := h.VerifyHead(t.Context(), noted)
		if err != nil || len(r.Problems) == 0 || !strings.Contains(r.Problems[0].What, "noted elsewhere") {
			t.Fatalf("%v, %v", r.Problems, err)
		}
		if _, err := h.VerifyHead(t.Context(), "x"); err == nil {
			t.Error("a head that is none is taken")
		}
	})
}

func TestCut(t *testing.T) {
	each(t, func(t *testing.T, h *harness) {
		h.write(t, 4, audit.Entry{Action: "old.one"})
		if err := h.Chain(t.Context()); err != nil {
			t.Fatal(err)
		}
		first := h.verify(t).Head
		h.pass(100 * 24 * time.Hour)
		h.write(t, 2, audit.Entry{Action: "old.two"})
		if err := h.Chain(t.Context()); err != nil {
			t.Fatal(err)
		}
		second := h.verify(t).Head
		h.pass(300 * 24 * time.Hour)
		h.write(t, 1, audit.Entry{Action: "new.one"})
		if err := errors.Join(h.Chain(t.Context()), h.Cut(t.Context()), h.Chain(t.Context())); err != nil {
			t.Fatal(err)
		}
		r := h.verify(t)
		if len(r.Problems) != 0 || r.Cut != 1 || r.Entries != 4 {
			t.Fatalf("after the cut: %+v", r)
		}
		p, err := h.Query(t.Context(), audit.Filter{})
		if err != nil || len(p.Entries) != 4 || p.Entries[0].Action != "audit.cut" && p.Entries[1].Action != "audit.cut" {
			t.Fatalf("%+v %v", p, err)
		}
		for _, noted := range []string{first, second} {
			if r, err := h.VerifyHead(t.Context(), noted); err != nil || len(r.Problems) > 0 {
				t.Errorf("noted head %s: %v %v", noted, r.Problems, err)
			}
		}
		// Whoever sets the time to keep to a day keeps six months all the same.
		d := h.deps
		d.Config.Keep = 24 * time.Hour
		h.pass(100 * 24 * time.Hour)
		if err := audit.New(d).Cut(t.Context()); err != nil {
			t.Fatal(err)
		}
		if r := h.verify(t); len(r.Problems) != 0 || r.Cut != 2 {
			t.Fatalf("after the second cut: %+v", r)
		}
		if n := len(h.ids(t)); n != 3 {
			t.Errorf("%d entries are left", n)
		}
	})
}

// TestTwoProcesses lets two processes chain at the same time while entries come in.
func TestTwoProcesses(t *testing.T) {
	each(t, func(t *testing.T, h *harness) {
		other := audit.New(h.deps)
		var wg sync.WaitGroup
		for i, l := range []*audit.Log{h.Log, other} {
			wg.Go(func() {
				for n := range 30 {
					if err := l.Record(t.Context(), audit.Entry{Action: "a.b", Target: fmt.Sprint(i, n)}); err != nil {
						t.Error(err)
					}
				}
			})
			wg.Go(func() {
				for range 10 {
					if err := l.Chain(t.Context()); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if err := h.Chain(t.Context()); err != nil {
			t.Fatal(err)
		}
		if r := h.verify(t); len(r.Problems) != 0 || r.Entries != 60 || r.Pending != 0 {
			t.Fatalf("%+v", r)
		}
	})
}

func TestQuery(t *testing.T) {
	each(t, func(t *testing.T, h *harness) {
		start := h.clock()
		alice, bob := id.UserID("@alice:x"), id.UserID("@bob:x")
		h.write(t, 10, audit.Entry{Action: "signin.password", Source: audit.Source{Actor: alice, IP: "192.0.2.1"}})
		h.write(t, 10, audit.Entry{Action: "signin.refused", Target: string(bob), Result: audit.Refused, Reason: "M_FORBIDDEN"})
		h.write(t, 5, audit.Entry{Action: "signing.else", Target: "!room:x"})
		middle := h.clock()
		h.write(t, 5, audit.Entry{Action: "user.locked", Target: string(bob), Source: audit.Source{Actor: alice, Kind: audit.KindAdmin}, Before: "Grüße", After: "再见"})
		for _, tc := range []struct {
			name string
			f    audit.Filter
			want int
		}{
			{"all", audit.Filter{}, 30},
			{"actor", audit.Filter{Actor: alice}, 15},
			{"target", audit.Filter{Target: string(bob)}, 15},
			{"both", audit.Filter{Actor: alice, Target: string(bob)}, 5},
			{"group", audit.Filter{Actions: []string{"signin"}}, 20},
			{"action", audit.Filter{Actions: []string{"signin.refused"}}, 10},
			{"two", audit.Filter{Actions: []string{"signin.refused", "user"}}, 15},
			{"no such group", audit.Filter{Actions: []string{"sign"}}, 0},
			{"result", audit.Filter{Result: audit.Refused}, 10},
			{"kind", audit.Filter{Kind: audit.KindAdmin}, 5},
			{"address", audit.Filter{IP: "192.0.2.1"}, 10},
			{"from", audit.Filter{From: middle}, 5},
			{"to", audit.Filter{To: middle}, 25},
			{"none", audit.Filter{From: start.Add(time.Hour)}, 0},
			{"text", audit.Filter{Text: "GRÜSSE"}, 0},
			{"text in any case", audit.Filter{Text: "grüße"}, 5},
			{"text in Chinese", audit.Filter{Text: "再见"}, 5},
			{"text and more", audit.Filter{Text: "@bob:x", Result: audit.Refused}, 10},
		} {
			for _, limit := range []int{0, 1, 4, 5, 7, 1000} {
				for _, oldest := range []bool{false, true} {
					f := tc.f
					f.Limit, f.OldestFirst = limit, oldest
					got := 0
					last := ""
					for pages := 0; ; pages++ {
						p, err := h.Query(t.Context(), f)
						if err != nil || pages > 40 {
							t.Fatalf("%s: %v", tc.name, err)
						}
						got += len(p.Entries)
						for _, e := range p.Entries {
							if last != "" && (e.ID > last) != oldest {
								t.Errorf("%s: out of order", tc.name)
							}
							last = e.ID
						}
						if f.Page = p.Next; p.Next == "" {
							break
						}
					}
					if got != tc.want {
						t.Errorf("%s, pages of %d: %d entries, want %d", tc.name, limit, got, tc.want)
					}
				}
			}
		}
		if _, err := h.Query(t.Context(), audit.Filter{Page: "x"}); err == nil {
			t.Error("a page that is none is taken")
		}
	})
}

// TestNoSecrets passes secrets in every place.
func TestNoSecrets(t *testing.T) {
	each(t, func(t *testing.T, h *harness) {
		token := "mht_" + strings.Repeat("aB3-_", 8) + "xyz"
		err := h.Record(t.Context(), audit.Entry{
			Action: "a.b", Reason: "bad " + token, Target: token, Source: audit.Source{Agent: "curl " + token + "\x00\n\xff"},
			Before: map[string]any{"password": "hunter2"}, After: []any{map[string]any{"client_secret": "hunter3", "n": token}},
			Details: map[string]any{"refresh_token": "hunter4", "deep": map[string]any{"Password": "hunter5", "errcode": "M_X"}},
		})
		if err != nil {
			t.Fatal(err)
		}
		p, err := h.Query(t.Context(), audit.Filter{})
		if err != nil || len(p.Entries) != 1 {
			t.Fatal(err, p)
		}
		b, err := p.Entries[0].MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "hunter") || strings.Contains(string(b), token) || !strings.Contains(string(b), "M_X") {
			t.Errorf("stored: %s", b)
		}
	})
}

// TestAppendFails takes the table away: the act must not happen.
func TestAppendFails(t *testing.T) {
	each(t, func(t *testing.T, h *harness) {
		h.exec2(t, `ALTER TABLE audit_log RENAME TO away`)
		err := h.st.Write(t.Context(), func(tx *store.Tx) error {
			if err := tx.PutSetting("act", []byte("done")); err != nil {
				return err
			}
			return audit.Append(t.Context(), tx, audit.Entry{Action: "a.b"})
		})
		if err == nil {
			t.Error("an entry was written without a table")
		}
		if err := h.Record(t.Context(), audit.Entry{Action: "a.b"}); err == nil {
			t.Error("Record tells of no error")
		}
		err = h.st.Read(t.Context(), func(tx *store.Tx) error {
			_, found, err := tx.Setting("act")
			if found {
				t.Error("the act happened without its entry")
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		h.exec2(t, `ALTER TABLE away RENAME TO audit_log`)
		if err := h.Record(t.Context(), audit.Entry{}); err == nil {
			t.Error("an entry without an action is written")
		}
	})
}

func (h *harness) exec2(t *testing.T, sql string) {
	t.Helper()
	if err := h.st.Write(t.Context(), func(tx *store.Tx) error { _, err := tx.Exec(sql); return err }); err != nil {
		t.Fatal(err)
	}
}

// TestRefusals is refused a lot of times and counts the entries.
func TestRefusals(t *testing.T) {
	each(t, func(t *testing.T, h *harness) {
		refuse := func(n int, e audit.Entry) {
			t.Helper()
			e.Action, e.Reason = "signin.refused", "M_FORBIDDEN"
			for range n {
				if err := h.Refusal(t.Context(), e); err != nil {
					t.Fatal(err)
				}
			}
		}
		count := func() (entries int, acts float64) {
			for _, e := range h.all(t) {
				entries++
				if n, ok := e.Details["count"].(float64); ok {
					acts += n
				} else {
					acts++
				}
			}
			return entries, acts
		}
		refuse(500, audit.Entry{Target: "@a:x", Source: audit.Source{IP: "192.0.2.1"}})
		refuse(1, audit.Entry{Target: "@a:x", Source: audit.Source{IP: "192.0.2.2"}})
		if n, _ := count(); n != 2 {
			t.Errorf("%d entries at once, want 2", n)
		}
		for i := range 300 { // one address tries many names
			refuse(2, audit.Entry{Target: fmt.Sprintf("@u%d:x", i), Source: audit.Source{IP: fmt.Sprintf("2001:db8::%x", i)}})
		}
		for i := range 3000 { // many addresses
			refuse(1, audit.Entry{Target: "@a:x", Source: audit.Source{IP: fmt.Sprintf("10.0.%d.%d", i/250, i%250)}})
		}
		h.pass(2 * time.Minute)
		refuse(1, audit.Entry{Target: "@z:x", Source: audit.Source{IP: "192.0.2.9"}})
		entries, acts := count()
		if acts != 500+1+600+3000+1 {
			t.Errorf("%v refusals are told of", acts)
		}
		if entries > 250 {
			t.Errorf("%d entries were written", entries)
		}
	})
}

func (h *harness) all(t *testing.T) []audit.Stored {
	t.Helper()
	var out []audit.Stored
	f := audit.Filter{Limit: 1000}
	for {
		p, err := h.Query(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, p.Entries...)
		if f.Page = p.Next; p.Next == "" {
			return out
		}
	}
}

// TestRun lets the log take care of itself and exports it to a syslog collector.
func TestRun(t *testing.T) {
	each(t, func(t *testing.T, h *harness) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = ln.Close() }()
		var mu sync.Mutex
		var got bytes.Buffer
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				b := make([]byte, 4096)
				for {
					n, err := c.Read(b)
					mu.Lock()
					got.Write(b[:n])
					mu.Unlock()
					if errors.Is(err, io.EOF) {
						break
					} else if err != nil {
						return
					}
				}
			}
		}()
		d := h.deps
		d.Config.Export = "tcp://" + ln.Addr().String()
		l := audit.New(d)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx) }()
		h.write(t, 3, audit.Entry{Action: "user.locked", Target: "@a:x"})
		for range 100 {
			mu.Lock()
			s := got.String()
			mu.Unlock()
			if strings.Contains(s, `"head":"1:`) {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		if err := l.Refusal(ctx, audit.Entry{Action: "a.refused"}); err != nil {
			t.Error(err)
		}
		if err := l.Refusal(ctx, audit.Entry{Action: "a.refused"}); err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		mu.Lock()
		s := got.String()
		mu.Unlock()
		if strings.Count(s, `"action":"user.locked"`) != 3 || !strings.Contains(s, "<109>1 ") || !strings.Contains(s, `"head":"1:`) {
			t.Errorf("the collector got %q", s)
		}
		r := h.verify(t)
		if r.Pending != 0 || r.Entries != 5 || len(r.Problems) != 0 {
			t.Errorf("after the end: %+v", r)
		}
	})
}

func TestCheckExport(t *testing.T) {
	for to, ok := range map[string]bool{
		"": true, "log": true, "udp://h:514": true, "tcp://h:1": true, "tls://h:6514": true, "unix:///dev/log": true,
		"h:514": false, "tcp://h": false, "http://h:1": false, "unix://": false,
	} {
		if err := audit.CheckExport(to); (err == nil) != ok {
			t.Errorf("%q: %v", to, err)
		}
	}
}
