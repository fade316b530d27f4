package account

import (
	"strings"
	"testing"
)

func TestLatin(t *testing.T) {
	for _, tc := range []struct {
		name  string
		wants []string
	}{
		{"王小明", []string{"wangxiaoming", "wxm"}},
		{"重庆 Office 2", []string{"chongqingoffice2", "zhongqingoffice2", "cqoffice2"}},
		{"Alice", nil},
		{"", nil},
		{"李 (财务部)", []string{"licaiwubu", "lcwb"}},
	} {
		got := strings.Fields(latin(tc.name))
		if tc.wants == nil && len(got) > 0 {
			t.Errorf("%s: %v", tc.name, got)
		}
		for _, w := range tc.wants {
			found := false
			for _, g := range got {
				found = found || g == w
			}
			if !found {
				t.Errorf("%s: %q is not among %v", tc.name, w, got)
			}
		}
		if len(got) > 2*maxReadings {
			t.Errorf("%s: %d readings", tc.name, len(got))
		}
	}
	if n := len(latin(strings.Repeat("重", 100))); n > 2*maxReadings*600 {
		t.Errorf("a long name becomes %d bytes", n)
	}
}
