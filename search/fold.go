// Package search finds messages: the text analysis that all engines share, the documents, the indexer that follows the log,
// and what a user may ask. The engines are search/bleve and search/elastic.
package search

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// Texts and queries are folded alike before they are compared: compatibility forms (full-width letters, ligatures) become
// plain ones, letters lose case and accents, every stretch of white space is one blank, and what cannot be seen is dropped.
// A folded text has a blank before and behind it, so that the edge of a text is the edge of a word.

// plain are letters that have no decomposition into a letter and an accent.
var plain = map[rune]string{
	'ß': "ss", 'ẞ': "ss", 'æ': "ae", 'Æ': "ae", 'œ': "oe", 'Œ': "oe", 'ø': "o", 'Ø': "o", 'đ': "d", 'Đ': "d", 'ð': "d", 'Ð': "d",
	'ł': "l", 'Ł': "l", 'ı': "i", 'ħ': "h", 'Ħ': "h", 'þ': "th", 'Þ': "th", 'ς': "σ",
}

// folder writes folded text and, where wanted, from which byte of the source each byte comes.
type folder struct {
	out   []byte
	at    []int32 // for each byte of out the offset of its cluster in the source; nil: not wanted
	ends  []int32 // and the end of that cluster
	trace bool
	blank bool
}

// Fold folds a text.
func Fold(s string) string {
	f := folder{out: make([]byte, 0, len(s)+2)}
	f.text(s)
	return string(f.out)
}

func (f *folder) text(s string) {
	f.put(" ", 0, 0)
	f.blank = true
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			// a letter whose accent follows is folded together with it
			if i+1 == len(s) || s[i+1] < utf8.RuneSelf {
				f.ascii(c, i)
				i++
				continue
			}
		}
		end := i + cluster(s[i:])
		f.cluster(s[i:end], i, end)
		i = end
	}
	if !f.blank {
		f.put(" ", len(s), len(s))
	}
}

// cluster is the length of what is normalised as one at the beginning of s.
func cluster(s string) int {
	n := norm.NFKC.NextBoundaryInString(s, true)
	if n <= 0 {
		_, n = utf8.DecodeRuneInString(s)
	}
	return n
}

func (f *folder) ascii(c byte, at int) {
	switch {
	case c == ' ' || c >= '\t' && c <= '\r':
		f.space(at, at+1)
	case c < ' ' || c == 0x7f:
	case c >= 'A' && c <= 'Z':
		f.rune(rune(c)+'a'-'A', at, at+1)
	default:
		f.rune(rune(c), at, at+1)
	}
}

// cluster folds a base character with all that belongs to it.
func (f *folder) cluster(s string, at, end int) {
	var kept []rune
	for _, r := range norm.NFKD.String(s) {
		switch {
		case r >= 0x300 && r <= 0x36f: // accents; the marks of other scripts tell words apart
		case r == utf8.RuneError || hidden(r):
		case unicode.IsSpace(r):
			kept = append(kept, ' ')
		case unicode.IsControl(r):
		default:
			if p, ok := plain[r]; ok {
				kept = append(kept, []rune(p)...)
				continue
			}
			kept = append(kept, unicode.ToLower(r))
		}
	}
	for _, r := range norm.NFC.String(string(kept)) {
		if r == ' ' {
			f.space(at, end)
			continue
		}
		f.rune(r, at, end)
	}
}

// hidden tells of characters that are not seen: joiners, marks of direction, variation selectors.
func hidden(r rune) bool {
	return r == 0xad || r == 0x34f || r == 0x61c || r >= 0x200b && r <= 0x200f || r >= 0x202a && r <= 0x202e ||
		r >= 0x2060 && r <= 0x206f || r >= 0xfe00 && r <= 0xfe0f || r == 0xfeff || r >= 0xe0000 && r <= 0xe0fff
}

func (f *folder) space(at, end int) {
	if !f.blank {
		f.put(" ", at, end)
		f.blank = true
	}
}

func (f *folder) rune(r rune, at, end int) {
	f.blank = false
	if !f.trace && r < utf8.RuneSelf {
		f.out = append(f.out, byte(r))
		return
	}
	f.put(string(r), at, end)
}

func (f *folder) put(s string, at, end int) {
	f.out = append(f.out, s...)
	if !f.trace {
		return
	}
	for range len(s) {
		f.at = append(f.at, int32(at))
		f.ends = append(f.ends, int32(end))
	}
}

// part separates the texts of one document: no token and no match reaches across it.
const part = "\x00"

// FoldAll folds the texts of one document into one string.
func FoldAll(texts ...string) string {
	var b strings.Builder
	for _, t := range texts {
		if t == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteString(part)
		}
		b.WriteString(Fold(t))
	}
	return b.String()
}

// single tells of characters that are worth a token of their own: those of scripts that write without blanks between words,
// and symbols.
func single(r rune) bool {
	return r >= 0x0e00 && !(r >= 0x1e00 && r < 0x20a0) && !(r >= 0x3000 && r < 0x3005) && !(r >= 0x3008 && r < 0x3020) && !(r >= 0xff00 && r < 0xff10)
}

// wordy tells of letters and digits of scripts that write words.
func wordy(r rune) bool {
	if r < utf8.RuneSelf {
		return r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '_'
	}
	return !single(r) && (unicode.IsLetter(r) || unicode.IsDigit(r) || unicode.IsMark(r))
}

const maxWord = 64 // characters of a word that is a token as a whole

// Tokens are the terms by which engines find a document. They are sets: how often and where is told by the text itself.
type Tokens struct {
	Grams []string // single characters, pairs and triples of characters
	Words []string // whole words of scripts that write words
}

// Tokenize gives the tokens of a folded text, at most limit grams.
func Tokenize(folded string, limit int) Tokens {
	var t Tokens
	seen := make(map[string]struct{}, len(folded)*2)
	add := func(list *[]string, s string, prefix string) {
		key := s
		if prefix != "" {
			key = prefix + s
		}
		if _, ok := seen[key]; !ok {
			seen[key] = struct{}{}
			*list = append(*list, s)
		}
	}
	for _, text := range strings.Split(folded, part) {
		var before, prev rune // the two characters before
		p1, p2 := -1, -1      // where the last and the last but one begin
		word, length := -1, 0
		for i, r := range text {
			end := i + utf8.RuneLen(r)
			if len(t.Grams) >= limit {
				break
			}
			if single(r) {
				add(&t.Grams, text[i:end], "")
			}
			if p1 >= 0 {
				add(&t.Grams, text[p1:end], "")
			}
			if p2 >= 0 {
				add(&t.Grams, text[p2:end], "")
				if wordy(prev) && !wordy(before) && !wordy(r) {
					add(&t.Grams, text[p1:i], "")
				}
			}
			switch {
			case wordy(r):
				if word < 0 {
					word, length = i, 0
				}
				length++
			case word >= 0:
				if length > 1 && length <= maxWord {
					add(&t.Words, text[word:i], "w ")
				}
				word = -1
			}
			p2, p1 = p1, i
			before, prev = prev, r
		}
	}
	return t
}

// Highlight finds where words stand in a text, as pairs of byte offsets in order without overlap, at most limit of them.
func Highlight(text string, words []string, limit int) [][2]int {
	f := folder{trace: true, out: make([]byte, 0, len(text)+2), at: make([]int32, 0, len(text)+2), ends: make([]int32, 0, len(text)+2)}
	f.text(text)
	folded := string(f.out)
	marked := make([]bool, len(folded))
	for _, w := range words {
		w = strings.TrimSpace(Fold(w))
		if w == "" {
			continue
		}
		n := 0
		for i := 0; n < limit; n++ {
			j := strings.Index(folded[i:], w)
			if j < 0 {
				break
			}
			for k := i + j; k < i+j+len(w); k++ {
				marked[k] = true
			}
			i += j + len(w)
		}
	}
	var out [][2]int
	for i := 0; i < len(marked) && len(out) < limit; i++ {
		if !marked[i] {
			continue
		}
		from, to := int(f.at[i]), int(f.ends[i])
		for i+1 < len(marked) && marked[i+1] {
			i++
			to = int(f.ends[i])
		}
		if n := len(out); n > 0 && out[n-1][1] >= from {
			out[n-1][1] = max(to, out[n-1][1])
		} else {
			out = append(out, [2]int{from, to})
		}
	}
	return out
}
