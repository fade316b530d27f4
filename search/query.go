package search

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/moothall/moothall/homeserver/mxerr"
)

// Limits of a query: what is longer is refused with a sentence that says so.
const (
	MaxTerm  = 1000 // characters of a whole query
	MaxTerms = 32   // words and phrases
	maxGrams = 40   // grams looked up for one word or phrase
	allGrams = 12   // characters up to which every gram is looked up; of more every third one
)

// The fields of tokens.
const (
	FieldGram = "t"
	FieldWord = "w"
)

// Expr is what engines look up: a token of a field, or a combination. The zero value matches everything.
type Expr struct {
	Field, Token string
	All          []Expr // all of them
	Any          []Expr // at least one of them
	Not          *Expr
}

// Empty tells whether the expression lets everything through.
func (e *Expr) Empty() bool {
	return e.Token == "" && e.All == nil && e.Any == nil && e.Not == nil
}

// Text is a parsed search term. Words are found wherever they stand, also inside of other words, and all of them must be
// there; a phrase in quotes is found as it is; a star behind a word asks for words that begin with it. Whatever the term,
// a text that holds it literally is found.
type Text struct {
	terms   []textTerm
	literal string // the whole term, folded; "" where the terms say as much
	words   []string
}

type textTerm struct {
	text   string // folded, without blanks at its ends
	prefix bool   // at the beginning of a word
	alone  bool   // a single letter or digit: it stands by itself
	noise  bool   // a single mark of punctuation: not looked for
}

// closing gives the mark that ends a phrase.
func closing(open rune) rune {
	switch open {
	case '"', '＂':
		return open
	case '“', '”', '„':
		return '”'
	case '「':
		return '」'
	case '«':
		return '»'
	}
	return 0
}

// Parse reads a search term. Errors are for the person who typed it.
func Parse(term string) (*Text, error) {
	if !utf8.ValidString(term) {
		return nil, mxerr.InvalidParam("the search term is not valid UTF-8")
	}
	if n := utf8.RuneCountInString(term); n > MaxTerm {
		return nil, mxerr.InvalidParam(fmt.Sprintf("the search term has %d characters; the most is %d", n, MaxTerm))
	}
	if strings.TrimSpace(Fold(term)) == "" {
		return nil, mxerr.InvalidParam("the search term is empty: give at least one word or character to look for")
	}
	t := &Text{}
	weak := false
	for _, raw := range split(term) {
		x := newTerm(raw)
		if x.text == "" {
			continue
		}
		weak = weak || x.alone || x.noise
		t.terms = append(t.terms, x)
	}
	if len(t.terms) > MaxTerms {
		return nil, mxerr.InvalidParam(fmt.Sprintf("the search term has %d words; the most is %d. Put quotes around a whole sentence", len(t.terms), MaxTerms))
	}
	if weak {
		t.literal = literal(term)
	}
	if utf8.RuneCountInString(t.literal) < 2 {
		t.literal = ""
	}
	if t.literal == "" && !t.strong() {
		return nil, mxerr.InvalidParam("the search term holds nothing but a punctuation mark: give a word, or at least two characters")
	}
	for _, x := range t.terms {
		if !x.noise {
			t.words = append(t.words, x.text)
		}
	}
	if len(t.words) == 0 {
		t.words = []string{strings.TrimSpace(t.literal)}
	}
	return t, nil
}

// literal folds the whole term and keeps a blank at an end only where the term has one.
func literal(term string) string {
	f := Fold(term)
	if !startsBlank(term) {
		f = strings.TrimPrefix(f, " ")
	}
	if !endsBlank(term) {
		f = strings.TrimSuffix(f, " ")
	}
	return f
}

func startsBlank(s string) bool {
	r, _ := utf8.DecodeRuneInString(s)
	return strings.TrimSpace(string(r)) == ""
}

func endsBlank(s string) bool {
	r, _ := utf8.DecodeLastRuneInString(s)
	return strings.TrimSpace(string(r)) == ""
}

// strong tells whether the terms say anything.
func (t *Text) strong() bool {
	for _, x := range t.terms {
		if !x.noise {
			return true
		}
	}
	return false
}

// split cuts a term at blanks, and phrases at their quotes. A quote inside a word, or one that nobody closes, is a character.
func split(term string) []string {
	var out []string
	var word strings.Builder
	flush := func() {
		if word.Len() > 0 {
			out = append(out, word.String())
			word.Reset()
		}
	}
	rest := term
	for len(rest) > 0 {
		r, n := utf8.DecodeRuneInString(rest)
		if mark := closing(r); mark != 0 && word.Len() == 0 {
			if end := strings.IndexRune(rest[n:], mark); end > 0 {
				out = append(out, `"`+rest[n:n+end])
				rest = rest[n+end+utf8.RuneLen(mark):]
				continue
			}
		}
		if strings.TrimSpace(string(r)) == "" {
			flush()
		} else {
			word.WriteRune(r)
		}
		rest = rest[n:]
	}
	flush()
	return out
}

// newTerm folds one word, or a phrase, which begins with a quote.
func newTerm(raw string) textTerm {
	phrase, quoted := strings.CutPrefix(raw, `"`)
	if quoted && phrase != "" {
		raw = phrase
	}
	x := textTerm{text: strings.TrimSpace(Fold(raw))}
	if core, ok := strings.CutSuffix(x.text, "*"); ok && !quoted && utf8.RuneCountInString(core) >= 2 && !strings.HasSuffix(core, "*") {
		x.text, x.prefix = core, true
	}
	if r, n := utf8.DecodeRuneInString(x.text); n == len(x.text) && n > 0 {
		x.alone = wordy(r)
		x.noise = !x.alone && !single(r)
	}
	return x
}

// grams is the expression for a stretch of text.
func grams(s string) Expr {
	var at []int
	for i := range s {
		at = append(at, i)
	}
	at = append(at, len(s))
	n := len(at) - 1
	size := min(n, 3)
	step := 1
	if n > allGrams {
		step = max(3, n/maxGrams+1)
	}
	var all []Expr
	seen := map[string]bool{}
	add := func(i int) {
		if g := s[at[i]:at[i+size]]; !seen[g] && !strings.Contains(g, part) {
			seen[g] = true
			all = append(all, Expr{Field: FieldGram, Token: g})
		}
	}
	for i := 0; i+size <= n; i += step {
		add(i)
	}
	add(n - size)
	if len(all) == 1 {
		return all[0]
	}
	return Expr{All: all}
}

func (t *Text) combine(one func(x textTerm) Expr) Expr {
	var all []Expr
	for _, x := range t.terms {
		if x.noise {
			continue
		}
		if e := one(x); e.All != nil {
			all = append(all, e.All...)
		} else {
			all = append(all, e)
		}
	}
	return Expr{All: all}
}

// Expr is what finds all texts that match, and perhaps some more: Matches has the last word.
func (t *Text) Expr() Expr {
	terms := t.combine(func(x textTerm) Expr { return grams(x.text) })
	if t.literal == "" {
		return terms
	}
	if !t.strong() {
		return grams(t.literal)
	}
	return Expr{Any: []Expr{terms, grams(t.literal)}}
}

// Tiers are narrower expressions, the narrowest first: what they find is closer to what was asked for. First texts with all
// words as whole words next to each other, then those with all of them as whole words.
func (t *Text) Tiers() []Expr {
	whole := false
	words := t.combine(func(x textTerm) Expr {
		if !x.prefix && isWord(x.text) {
			whole = true
			return Expr{Field: FieldWord, Token: x.text}
		}
		return grams(x.text)
	})
	var out []Expr
	if len(t.words) > 1 {
		next := grams(strings.Join(t.words, " "))
		out = append(out, Expr{All: []Expr{words, next}})
	}
	if whole {
		out = append(out, words)
	}
	return out
}

// isWord tells whether a text is one word that is a token as a whole.
func isWord(s string) bool {
	n := 0
	for _, r := range s {
		if !wordy(r) {
			return false
		}
		n++
	}
	return n > 1 && n <= maxWord
}

// Matches tells whether a folded text is what was searched for.
func (t *Text) Matches(folded string) bool {
	if t.literal != "" && strings.Contains(folded, t.literal) {
		return true
	}
	if !t.strong() {
		return false
	}
	for _, x := range t.terms {
		if !x.noise && !x.matches(folded) {
			return false
		}
	}
	return true
}

func (x *textTerm) matches(folded string) bool {
	if !x.prefix && !x.alone {
		return strings.Contains(folded, x.text)
	}
	for from := 0; ; {
		i := strings.Index(folded[from:], x.text)
		if i < 0 {
			return false
		}
		i += from
		from = i + len(x.text)
		before, _ := utf8.DecodeLastRuneInString(folded[:i])
		after, _ := utf8.DecodeRuneInString(folded[from:])
		starts := i == 0 || !wordy(before)
		if x.prefix && (starts || after == '*') || x.alone && starts && (from == len(folded) || !wordy(after)) {
			return true
		}
		from = i + 1
		for from < len(folded) && !utf8.RuneStart(folded[from]) {
			from++
		}
	}
}

// Words are what to highlight, folded.
func (t *Text) Words() []string { return t.words }
