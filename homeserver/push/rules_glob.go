package push

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// anyRune stands for "?" in a segment of a glob.
const anyRune rune = -1

// Glob is a compiled pattern with * and ?, matched without regard to case. Matching allocates nothing and takes at most
// (length of the value) × (length of the pattern) steps.
type Glob struct {
	segments [][]rune // what stands between the stars; one segment: no star
	literal  string   // the pattern folded, when it has neither * nor ?
	isLit    bool
}

// CompileGlob compiles a pattern. Every string is one. Spec: appendices, "Glob-style matching".
func CompileGlob(pattern string) *Glob {
	g := &Glob{isLit: !strings.ContainsAny(pattern, "*?")}
	for seg := range strings.SplitSeq(pattern, "*") {
		if len(g.segments) > 1 && len(g.segments[len(g.segments)-1]) == 0 {
			g.segments = g.segments[:len(g.segments)-1] // ** is *
		}
		runes := make([]rune, 0, len(seg))
		for _, r := range seg {
			if r == '?' {
				runes = append(runes, anyRune)
			} else {
				runes = append(runes, fold(r))
			}
		}
		g.segments = append(g.segments, runes)
	}
	if g.isLit {
		g.literal = string(g.segments[0])
	}
	return g
}

// Match tells whether the whole value matches.
func (g *Glob) Match(s string) bool {
	segs := g.segments
	end, ok := matchAt(s, 0, segs[0])
	if !ok {
		return false
	}
	if len(segs) == 1 {
		return end == len(s)
	}
	last := segs[len(segs)-1]
	for _, seg := range segs[1 : len(segs)-1] {
		if end, ok = find(s, end, seg); !ok {
			return false
		}
	}
	start := len(s)
	for range last {
		if start <= end {
			return false
		}
		_, n := utf8.DecodeLastRuneInString(s[:start])
		start -= n
	}
	if start < end {
		return false
	}
	_, ok = matchAt(s, start, last)
	return ok
}

// MatchWords tells whether a part of the value that starts and ends at a word boundary matches. Spec: event_match on
// content.body. Segments have a fixed number of characters, so the earliest place of each is always the best.
func (g *Glob) MatchWords(s string) bool {
	first, last := g.segments[0], g.segments[len(g.segments)-1]
	for i := 0; i <= len(s); i += step(s, i) {
		if !boundary(s, i) {
			continue
		}
		end, ok := matchAt(s, i, first)
		if !ok {
			continue
		}
		if len(g.segments) > 1 {
			return g.matchRest(s, end, last)
		}
		if boundary(s, end) {
			return true
		}
	}
	return false
}

func (g *Glob) matchRest(s string, from int, last []rune) bool {
	ok := true
	for _, seg := range g.segments[1 : len(g.segments)-1] {
		if from, ok = find(s, from, seg); !ok {
			return false
		}
	}
	if len(last) == 0 {
		return true // the star runs to the end of the value
	}
	for i := from; i <= len(s); i += step(s, i) {
		if end, ok := matchAt(s, i, last); ok && boundary(s, end) {
			return true
		}
	}
	return false
}

// containsName tells whether the text holds the name as words, without regard to case. Spec: contains_display_name.
func containsName(s, name string) bool {
	if name == "" {
		return false
	}
	for i := 0; i < len(s); i += step(s, i) {
		if !boundary(s, i) {
			continue
		}
		if end, ok := prefixFold(s, i, name); ok && boundary(s, end) {
			return true
		}
	}
	return false
}

// prefixFold tells whether name stands in s at byte i, and where it ends.
func prefixFold(s string, i int, name string) (end int, ok bool) {
	for j := 0; j < len(name); {
		if i >= len(s) {
			return 0, false
		}
		a, n := decode(s, i)
		b, m := decode(name, j)
		if a != b && fold(a) != fold(b) {
			return 0, false
		}
		i, j = i+n, j+m
	}
	return i, true
}

// equalFold compares two strings without regard to case, in the sense of Glob.
func equalFold(a, b string) bool {
	if a == b {
		return true
	}
	end, ok := prefixFold(a, 0, b)
	return ok && end == len(a)
}

// find gives the end of the earliest place of the segment at or after from.
func find(s string, from int, seg []rune) (end int, ok bool) {
	for i := from; i <= len(s); i += step(s, i) {
		if end, ok = matchAt(s, i, seg); ok {
			return end, true
		}
	}
	return 0, false
}

// matchAt tells whether the segment stands in s at byte i, and where it ends.
func matchAt(s string, i int, seg []rune) (end int, ok bool) {
	for _, want := range seg {
		if i >= len(s) {
			return 0, false
		}
		r, n := decode(s, i)
		if want != anyRune && r != want && fold(r) != want {
			return 0, false
		}
		i += n
	}
	return i, true
}

func decode(s string, i int) (rune, int) {
	if c := s[i]; c < utf8.RuneSelf {
		return rune(c), 1
	}
	return utf8.DecodeRuneInString(s[i:])
}

// step is the length of the character at i; one at the end, so that loops that try the end as a place stop after it.
func step(s string, i int) int {
	if i >= len(s) || s[i] < utf8.RuneSelf {
		return 1
	}
	_, n := utf8.DecodeRuneInString(s[i:])
	return n
}

// boundary tells whether i lies on a word boundary: everywhere except between two characters of A-Z, a-z, 0-9 and _. So a
// keyword in a script without spaces is found inside a sentence.
func boundary(s string, i int) bool {
	return i <= 0 || i >= len(s) || !isWord(s[i-1]) || !isWord(s[i])
}

func isWord(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_'
}

func fold(r rune) rune {
	if r < utf8.RuneSelf {
		if r >= 'A' && r <= 'Z' {
			return r + ('a' - 'A')
		}
		return r
	}
	return unicode.ToLower(r)
}
