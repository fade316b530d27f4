package appservices

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
)

// night is a service's address that nobody answers at until a time.
type night struct {
	until    time.Time
	attempts []attempt
	taken    []attempt
}

type attempt struct {
	at   time.Time
	path string
	body string
}

func (n *night) RoundTrip(r *http.Request) (*http.Response, error) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	a := attempt{time.Now(), r.URL.Path, string(b)}
	if time.Now().Before(n.until) {
		n.attempts = append(n.attempts, a)
		return nil, errors.New("connection refused")
	}
	n.taken = append(n.taken, a)
	return &http.Response{StatusCode: 200, Body: io.NopCloser(bytes.NewReader([]byte("{}"))), Request: r}, nil
}

// TestADayAway keeps a service away for a whole day of virtual time, in which what concerns it goes on and the server starts anew:
// the first transaction is tried again and again as it was, never more than five minutes apart, and all arrives once, in order,
// within five minutes of its return.
func TestADayAway(t *testing.T) {
	db := storetest.Open(t, store.Config{DataDir: t.TempDir()})
	// What packs stored texts is made when it is used first, and would belong to the bubble else.
	err := db.Write(t.Context(), func(tx *store.Tx) error {
		if err := tx.AddServices([]string{"other"}); err != nil {
			return err
		}
		if err := tx.AppendService("other", []store.ServiceTxn{{Service: "other", Body: bytes.Repeat([]byte("x"), 4096)}}); err != nil {
			return err
		}
		list, err := tx.ServiceTxns("other", 1)
		if len(list) != 1 {
			t.Errorf("%d transactions", len(list))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		const id = "away"
		begin := time.Now()
		back := begin.Add(24 * time.Hour)
		service := &night{until: back}
		s := &Services{Deps: Deps{Store: db, Now: time.Now, Logger: slog.New(slog.DiscardHandler), Client: &http.Client{Transport: service}}, retryAfter: retryAfter}
		x := &Service{Registration: Registration{ID: id}, url: "http://away.example"}
		s.set.Store(&set{all: []*Service{x}, byID: map[string]*Service{id: x}})
		number := 0
		add := func() {
			number++
			body, err := json.Marshal(&payload{ToDevice: []jsontext.Value{jsontext.Value(fmt.Sprintf(`{"n":%d}`, number))}})
			if err != nil {
				t.Fatal(err)
			}
			err = db.Write(t.Context(), func(tx *store.Tx) error {
				return tx.AppendService(id, []store.ServiceTxn{{Service: id, Created: time.Now().UnixMilli(), Events: 1, Body: body}})
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := db.Write(t.Context(), func(tx *store.Tx) error { return tx.AddServices([]string{id}) }); err != nil {
			t.Fatal(err)
		}
		start := func() (stop func()) {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- s.work(ctx, id, &worker{kick: make(chan struct{}, 1), retry: make(chan struct{}, 1)}) }()
			return func() {
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
		}
		stop := start()
		for range 24 * 4 {
			add()
			time.Sleep(15 * time.Minute)
			if number%30 == 0 {
				stop()
				stop = start()
			}
		}
		time.Sleep(longest + time.Second)
		stop()

		last := begin
		for _, a := range service.attempts {
			if a.path != service.attempts[0].path || a.body != service.attempts[0].body {
				t.Fatalf("%v: another transaction is tried: %s %s, first %s %s", a.at.Sub(begin), a.path, a.body, service.attempts[0].path, service.attempts[0].body)
			}
			if a.at.Sub(last) > longest+time.Second {
				t.Errorf("nothing was tried between %v and %v", last.Sub(begin), a.at.Sub(begin))
			}
			last = a.at
		}
		if n := len(service.attempts); n < 24*12 || n > 24*30 {
			t.Errorf("%d attempts in a day", n)
		}
		var got, want strings.Builder
		paths := map[string]bool{}
		for _, a := range service.taken {
			var body struct {
				ToDevice []struct {
					N int `json:"n"`
				} `json:"to_device"`
			}
			if err := json.Unmarshal([]byte(a.body), &body); err != nil {
				t.Fatal(err)
			}
			if paths[a.path] {
				t.Errorf("transaction %s came twice", a.path)
			}
			paths[a.path] = true
			for _, d := range body.ToDevice {
				fmt.Fprint(&got, d.N, " ")
			}
		}
		for i := range number {
			fmt.Fprint(&want, i+1, " ")
		}
		if got.String() != want.String() {
			t.Errorf("came: %s\nwant: %s", got.String(), want.String())
		}
		t.Logf("%d attempts in a day, then %d transactions with %d messages", len(service.attempts), len(service.taken), number)
	})
}
