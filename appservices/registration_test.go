package appservices

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRegistrations names the file and what is wrong with it.
func TestRegistrations(t *testing.T) {
	const good = "id: a\nurl: http://localhost:1\nas_token: 0123456789\nhs_token: 9876543210\nsender_localpart: bot\nnamespaces:\n  users: [{exclusive: true, regex: \"@a_.*\"}]\n"
	other := strings.NewReplacer("id: a", "id: b", "0123456789", "abcdefghij", "bot", "bot2", "@a_", "@b_").Replace(good)
	for _, c := range []struct {
		name, want string
		files      []string
	}{
		{"two good ones", "", []string{good, other}},
		{"no YAML", "0.yaml", []string{"id: ["}},
		{"no id", "id is missing", []string{strings.Replace(good, "id: a\n", "", 1)}},
		{"no token", "as_token is missing", []string{strings.Replace(good, "as_token: 0123456789\n", "", 1)}},
		{"a short token", "8 characters", []string{strings.Replace(good, "0123456789", "abc", 1)}},
		{"one token", "must not be the same", []string{strings.Replace(good, "0123456789", "9876543210", 1)}},
		{"a wrong url", "url is", []string{strings.Replace(good, "http://localhost:1", "localhost", 1)}},
		{"a wrong expression", "namespaces.users[0].regex", []string{strings.Replace(good, "@a_.*", "@a_(", 1)}},
		{"two of one id", "the same id", []string{good, strings.Replace(other, "id: b", "id: a", 1)}},
		{"two of one token", "the same as_token", []string{good, strings.Replace(other, "abcdefghij", "0123456789", 1)}},
		{"two of one name", "the same sender_localpart", []string{good, strings.Replace(other, "bot2", "bot", 1)}},
		{"two of one namespace", "for themselves alone", []string{good, strings.Replace(other, "@b_", "@a_", 1)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			var paths []string
			for i, text := range c.files {
				path := filepath.Join(dir, string(rune('0'+i))+".yaml")
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				paths = append(paths, path)
			}
			at, err := Check(paths)
			switch {
			case c.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("error %v, want one with %q", err, c.want)
			case err != nil && at != len(c.files)-1:
				t.Errorf("the error is about path %d", at)
			}
		})
	}
	if _, err := Check([]string{"/there/is/none.yaml"}); err == nil {
		t.Error("a file that is not there is taken")
	}
}

// TestMerge puts small transactions together up to the bound, in order.
func TestMerge(t *testing.T) {
	a, b := &payload{Events: make([]int64, 60)}, &payload{Events: make([]int64, 41)}
	if a.join(b) {
		t.Error("101 events are one transaction")
	}
	b.Events = b.Events[:40]
	b.change("@x:test")
	a.leave("@x:test")
	if !a.join(b) || len(a.Events) != 100 || len(a.Left) != 0 || len(a.Changed) != 1 || !a.full() {
		t.Errorf("together they are %+v", a)
	}
}
