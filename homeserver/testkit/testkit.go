// Package testkit is what tests of every layer need: partners that ./scripts/test brings, and patience.
package testkit

import (
	"os"
	"strings"
	"testing"
	"time"
)

// Partner is what a variable of the environment says of a program that a test needs and that ./scripts/test installs or
// starts. Without it the test is skipped, and fails in CI.
func Partner(t testing.TB, env string) string {
	t.Helper()
	value := os.Getenv(env)
	if value == "" && os.Getenv("CI") != "" {
		t.Fatalf("%s is not set: run this test by ./scripts/test", env)
	}
	if value == "" {
		t.Skipf("%s is not set: ./scripts/test does that", env)
	}
	return value
}

// PartnerValues is Partner for a variable that holds pairs such as url=http://127.0.0.1:1 user=alice.
func PartnerValues(t testing.TB, env string) map[string]string {
	t.Helper()
	values := map[string]string{}
	for pair := range strings.FieldsSeq(Partner(t, env)) {
		name, value, _ := strings.Cut(pair, "=")
		values[name] = value
	}
	return values
}

// Patience is far longer than anything that a test waits for takes, so that a machine with much else to do fails none.
const Patience = 60 * time.Second

// Eventually waits until something holds that has no time to keep.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	Within(t, Patience, what, ok)
}

// Within waits until something holds that has a time to keep.
func Within(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}
