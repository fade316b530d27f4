package search

import (
	"strings"
	"testing"
	"unicode/utf8"
)

// holds tells whether an expression finds a document with these tokens.
func holds(e *Expr, has map[string]bool) bool {
	switch {
	case e.Token != "":
		return has[e.Field+" "+e.Token]
	case e.Not != nil:
		return !holds(e.Not, has)
	case e.Any != nil:
		for i := range e.Any {
			if holds(&e.Any[i], has) {
				return true
			}
		}
		return false
	}
	for i := range e.All {
		if !holds(&e.All[i], has) {
			return false
		}
	}
	return true
}

// FuzzStretch looks for a stretch of any text in that text: it is found by its tokens, and the text agrees.
func FuzzStretch(f *testing.F) {
	for _, s := range []string{"The quarterly report", "季度报告 v2.xlsx", `he said "hello world" to B`, "a* b** *c", "Straße Ångström ﬁle", "가각 か゛が", "👩‍👩‍👧 x"} {
		f.Add(s, uint8(1), uint8(5))
	}
	f.Fuzz(func(t *testing.T, text string, at, size uint8) {
		if !utf8.ValidString(text) || len(text) > 2000 {
			return
		}
		runes := []rune(text)
		from := min(int(at), len(runes))
		part := string(runes[from:min(from+int(size), len(runes))])
		parsed, err := Parse(part)
		Highlight(text, []string{part}, 10)
		if err != nil || utf8.RuneCountInString(strings.TrimSpace(Fold(part))) < 2 {
			return
		}
		folded := FoldAll(text)
		if !strings.Contains(folded, strings.TrimSpace(Fold(part))) {
			return // cut through what belongs together, such as a letter and its accent
		}
		tokens := Tokenize(folded, 1<<20)
		has := map[string]bool{}
		for _, g := range tokens.Grams {
			has[FieldGram+" "+g] = true
		}
		for _, w := range tokens.Words {
			has[FieldWord+" "+w] = true
		}
		expr := parsed.Expr()
		if !parsed.Matches(folded) {
			t.Errorf("%q does not match %q", part, text)
		}
		if !holds(&expr, has) {
			t.Errorf("the tokens of %q do not find %q", text, part)
		}
		for _, tier := range parsed.Tiers() {
			if holds(&tier, has) && !holds(&expr, has) {
				t.Errorf("%q: a tier finds more than the whole", part)
			}
		}
	})
}

// TestHighlight looks at where words stand in the text as it was written.
func TestHighlight(t *testing.T) {
	for _, tc := range []struct {
		text  string
		words []string
		want  string
	}{
		{"The Résumé and the resume", []string{"resume"}, "The [Résumé] and the [resume]"},
		{"ＦＵＬＬ width", []string{"full"}, "[ＦＵＬＬ] width"},
		{"季度报告已经发到", []string{"报告", "告已"}, "季度[报告已]经发到"},
		{"nothing", []string{"else", ""}, "nothing"},
	} {
		var b strings.Builder
		last := 0
		for _, m := range Highlight(tc.text, tc.words, 10) {
			b.WriteString(tc.text[last:m[0]] + "[" + tc.text[m[0]:m[1]] + "]")
			last = m[1]
		}
		if got := b.String() + tc.text[last:]; got != tc.want {
			t.Errorf("got %q, want %q", got, tc.want)
		}
	}
}
