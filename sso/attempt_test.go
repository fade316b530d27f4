package sso

import (
	"reflect"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/sso/upstream"
)

// TestAttemptStored: all that a sign-in under way can hold is stored and read again.
func TestAttemptStored(t *testing.T) {
	a := Attempt{
		Return: "/console", User: "@alice:test", Known: "@alice:test", Need: Need{MaxAge: 12 * time.Hour, Factor: true, Role: account.RoleAuditor},
		Way: "sso:kc", AMR: []string{"pwd"}, Factor: true, Grace: true, Provider: "kc", State: "s", Kept: []byte("k"), StepUp: stepUpAsked,
		Upstream: &upstream.Identity{Provider: "kc", Subject: "1", AuthTime: time.Now().UTC().Round(time.Second)}, Email: &emailProof{SID: "s", Sent: 2},
	}
	b, err := json.Marshal(&a)
	if err != nil {
		t.Fatal(err)
	}
	var back Attempt
	if err := json.Unmarshal(b, &back); err != nil || !reflect.DeepEqual(a, back) {
		t.Errorf("%v: %s", err, b)
	}
}
