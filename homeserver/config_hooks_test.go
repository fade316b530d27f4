package homeserver_test

import (
	"strings"
	"testing"
)

// TestHookSubscriptions names what is wrong with endpoints of the configuration, and its line.
func TestHookSubscriptions(t *testing.T) {
	const good = "hooks:\n  subscriptions:\n    - name: crm\n      url: https://crm.example.org/\n      secret: whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3\n      types: [m.room.message]\n"
	if c, err := load(t, good); err != nil || len(c.HooksConfig().Subscriptions) != 1 || c.HooksConfig().Subscriptions[0].Types[0] != "m.room.message" {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, yaml, want string }{
		{"no name", strings.Replace(good, "crm\n", "\"\"\n", 1), "moothall.yaml:3: hooks.subscriptions[0].name is wrong"},
		{"no address", strings.Replace(good, "https://crm.example.org/", "crm", 1), "moothall.yaml:4: hooks.subscriptions[0].url is wrong"},
		{"a short secret", strings.Replace(good, "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3", "MDEy", 1), "moothall.yaml:5: hooks.subscriptions[0].secret is wrong"},
		{"no secret", strings.Replace(good, "      secret: whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3\n", "", 1), "hooks.subscriptions[0].secret is wrong"},
		{"twice", good + strings.TrimPrefix(good, "hooks:\n  subscriptions:\n"), "moothall.yaml:7: hooks.subscriptions[1].name is"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := load(t, tc.yaml); err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got  %v\nwant %s", err, tc.want)
			}
		})
	}
}
