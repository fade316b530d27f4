package sso

import (
	"encoding/json"
	"log/slog"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
)

// TestKeyRotation moves the clock: a new key signs when the old one's time is over, on two nodes the same one, and what the old
// one has signed can be checked for as long as it is good, and no longer.
func TestKeyRotation(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		db, err := store.Open(t.Context(), cfg, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		})
		now := time.Now()
		node := func() *SSO {
			return &SSO{Deps: Deps{
				Store: db, PublicURL: "https://example.org", Clock: func() time.Time { return now },
				Config: Config{OAuth: true, KeyLifetime: 30 * 24 * time.Hour},
			}}
		}
		a, b := node(), node()
		published := func(s *SSO) jose.JSONWebKeySet {
			t.Helper()
			w := httptest.NewRecorder()
			if err := s.keys(w, httptest.NewRequest("GET", "/oauth2/keys", nil)); err != nil {
				t.Fatal(err)
			}
			var set jose.JSONWebKeySet
			if err := json.Unmarshal(w.Body.Bytes(), &set); err != nil {
				t.Fatal(err)
			}
			return set
		}
		token := func(s *SSO) (signed, key string) {
			t.Helper()
			signed, err := s.idToken(httptest.NewRequest("POST", "/oauth2/token", nil), &client{ID: "app"}, "@alice:example.org", codeData{proof: proof{AuthTime: now}})
			if err != nil {
				t.Fatal(err)
			}
			parsed, err := jose.ParseSigned(signed, []jose.SignatureAlgorithm{jose.ES256})
			if err != nil {
				t.Fatal(err)
			}
			return signed, parsed.Signatures[0].Header.KeyID
		}
		// good tells whether a client that reads the keys now takes a token.
		good := func(signed string) bool {
			parsed, err := jose.ParseSigned(signed, []jose.SignatureAlgorithm{jose.ES256})
			if err != nil {
				t.Fatal(err)
			}
			for _, k := range keyed(published(b), parsed.Signatures[0].Header.KeyID) {
				if body, err := parsed.Verify(k); err == nil {
					var claims struct {
						Expires int64 `json:"exp"`
					}
					if err := json.Unmarshal(body, &claims); err != nil {
						t.Fatal(err)
					}
					return claims.Expires > now.Unix()
				}
			}
			return false
		}
		first, k1 := token(a)
		if _, k := token(b); k != k1 || !good(first) {
			t.Fatalf("two nodes sign with %s and %s", k1, k)
		}
		now = now.Add(30*24*time.Hour - time.Minute)
		last, k := token(b)
		if k != k1 {
			t.Error("a key was replaced before its time")
		}
		now = now.Add(2 * time.Minute)
		_, k2 := token(a)
		if _, k := token(b); k2 == k1 || k != k2 {
			t.Errorf("after a key's time %s and %s sign, before it %s did", k2, k, k1)
		}
		if !good(last) || good(first) {
			t.Errorf("after the rotation the old key's last token is good: %v, its first one: %v", good(last), good(first))
		}
		now = now.Add(idTokenLifetime - 5*time.Minute)
		if !good(last) {
			t.Error("a token is not good as long as it says")
		}
		now = now.Add(2 * idTokenLifetime)
		kids := func() (out []string) {
			for _, k := range published(a).Keys {
				out = append(out, k.KeyID)
			}
			return out
		}
		if good(last) || !slices.Equal(kids(), []string{k2}) {
			t.Errorf("long after the rotation the keys are %v, the old token is good: %v", kids(), good(last))
		}
		now = now.Add(200 * 24 * time.Hour) // nobody signed in meanwhile
		if _, k3 := token(b); k3 == k2 {
			t.Error("a key signs long after its time")
		}
	})
}

func keyed(set jose.JSONWebKeySet, id string) []jose.JSONWebKey { return set.Key(id) }
