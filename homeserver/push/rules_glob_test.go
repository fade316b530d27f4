package push

import (
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestGlobMatch(t *testing.T) {
	for _, tc := range []struct {
		pattern, value string
		want           bool
	}{
		{"lunc?*", "Lunch plans", true},
		{"lunc?*", "LUNCH", true},
		{"lunc?*", " lunch", false},
		{"lunc?*", "lunc", false},
		{"", "", true},
		{"", "x", false},
		{"*", "", true},
		{"**", "anything", true},
		{"a*b*c", "aXbYc", true},
		{"a*b*c", "abc", true},
		{"a*b*c", "acb", false},
		{"a*a", "a", false},
		{"?", "张", true},
		{"??", "张", false},
		{"*三", "张三", true},
		{"ÄPFEL", "äpfel", true},
		{"a.c", "abc", false},
		{"[ab]", "a", false},
	} {
		if got := CompileGlob(tc.pattern).Match(tc.value); got != tc.want {
			t.Errorf("%q on %q: %v", tc.pattern, tc.value, got)
		}
	}
}

func TestGlobWords(t *testing.T) {
	for _, tc := range []struct {
		pattern, value string
		want           bool
	}{
		{"ex*ple", "An example event.", true},
		{"ex*ple", "exple", true},
		{"ex*ple", "An exciting triple-whammy", true},
		{"ex*ple", "anexample", false},
		{"cake", "CAKE!", true},
		{"cake", "cakes", false},
		{"cake", "pancake cake", true},
		{"cake", "cake_", false},
		{"cake*lie", "the cake is a lie.", true},
		{"cake*lie", "the cake is a lied", false},
		{"cake*lie", "lie cake", false},
		{"?ake", "the lake", true},
		{"会议", "明天的会议改到下午", true},
		{"会议", "会", false},
		{"张三", "hi张三bye", true},
		{"ab", "aab", false},
		{"a*", "b a", true},
		{"", "anything", true},
	} {
		if got := CompileGlob(tc.pattern).MatchWords(tc.value); got != tc.want {
			t.Errorf("%q in %q: %v", tc.pattern, tc.value, got)
		}
	}
}

func TestContainsName(t *testing.T) {
	for _, tc := range []struct {
		body, name string
		want       bool
	}{
		{"hello Alice!", "alice", true},
		{"hello Alice!", "ALICE", true},
		{"malice", "alice", false},
		{"alices", "alice", false},
		{"你好张三在吗", "张三", true},
		{"Hi J. R. here", "J. R.", true},
		{"anything", "", false},
		{"glob", "g*b", false},
		{"the g*b", "g*b", true},
	} {
		if got := containsName(tc.body, tc.name); got != tc.want {
			t.Errorf("%q in %q: %v", tc.name, tc.body, got)
		}
	}
}

// globRegexp is an independent reading of the same patterns.
func globRegexp(pattern string) *regexp.Regexp {
	var b strings.Builder
	for _, r := range pattern {
		switch r {
		case '*':
			b.WriteString(`.*`)
		case '?':
			b.WriteString(`.`)
		default:
			b.WriteString(regexp.QuoteMeta(string(fold(r))))
		}
	}
	return regexp.MustCompile(`(?s)^(?:` + b.String() + `)$`)
}

func foldString(s string) string { return strings.Map(fold, s) }

// wordsOracle tries every part of the value.
func wordsOracle(pattern, s string) bool {
	re := globRegexp(pattern)
	for i := 0; i <= len(s); i++ {
		if i < len(s) && !utf8.RuneStart(s[i]) || !boundary(s, i) {
			continue
		}
		for j := i; j <= len(s); j++ {
			if j < len(s) && !utf8.RuneStart(s[j]) || !boundary(s, j) {
				continue
			}
			if re.MatchString(foldString(s[i:j])) {
				return true
			}
		}
	}
	return false
}

func FuzzGlob(f *testing.F) {
	for _, p := range []string{"", "*", "a*b?c", "**?*", "会*议", "ſK", "a*a*a*b"} {
		for _, s := range []string{"", "abc", "A会议B", "aaaaaaaaab", "kſ K"} {
			f.Add(p, s)
		}
	}
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if len(pattern) > 24 || len(s) > 48 || !utf8.ValidString(pattern) || !utf8.ValidString(s) {
			return
		}
		g := CompileGlob(pattern)
		if got, want := g.Match(s), globRegexp(pattern).MatchString(foldString(s)); got != want {
			t.Errorf("Match(%q, %q) = %v", pattern, s, got)
		}
		if got, want := g.MatchWords(s), wordsOracle(pattern, s); got != want {
			t.Errorf("MatchWords(%q, %q) = %v", pattern, s, got)
		}
	})
}
