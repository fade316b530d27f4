package homeserver

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moothall/moothall/compliance/roomclass"
)

// TestComplianceConfig reads the section, right and wrong.
func TestComplianceConfig(t *testing.T) {
	read := func(text string) (Config, error) {
		t.Helper()
		path := filepath.Join(t.TempDir(), "moothall.yaml")
		if err := os.WriteFile(path, []byte("server_name: example.org\n"+text), 0o600); err != nil {
			t.Fatal(err)
		}
		return LoadConfig(path, nil)
	}
	const classes = "compliance:\n  room_classes:\n    confidential:\n"
	for _, tc := range []struct{ text, says string }{
		{classes + "      encryption: maybe\n", ":5: compliance.room_classes.confidential.encryption is \"maybe\""},
		{classes + "      rules:\n        - preset: chat\n", "preset is \"chat\""},
		{classes + "      rules:\n        - name: '('\n", "no regular expression"},
		{classes + "      rules:\n        - creator_role: king\n", "creator_role is \"king\""},
		{classes + "      rules:\n        - {}\n", "says nothing"},
		{"compliance:\n  sign_in_age: 1s\n", "compliance.sign_in_age"},
		{"compliance:\n  archives: true\n", "archives"},
	} {
		if _, err := read(tc.text); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v, want %q", tc.text, err, tc.says)
		}
	}
	c, err := read(classes + "      rules:\n        - name: '^x'\n          creator_role: security\n    corporate:\n      encryption: forbidden\n")
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.roomClassConfig()
	if err != nil || len(p.Rules) != 1 || p.Rules[0].Class != roomclass.Confidential || len(p.Forbidden) != 1 || p.Forbidden[0] != roomclass.Corporate {
		t.Errorf("policy %+v, %v", p, err)
	}
}
