package event

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/moothall/moothall/homeserver/mxerr"
)

const (
	// maxNesting bounds how deep arrays and objects may lie in each other.
	maxNesting = 512
	// maxCanonicalInt is the largest integer of canonical JSON (appendices, "Canonical JSON").
	maxCanonicalInt = 1<<53 - 1
)

// CanonicalJSON re-encodes any JSON value as Matrix canonical JSON: shortest form, keys sorted by code point. It is strict: bytes that
// are no JSON, among them invalid UTF-8, are M_NOT_JSON; duplicate keys, lone surrogates, numbers that are not integers within
// ±(2^53-1) and nesting deeper than 512 are M_BAD_JSON. Source: appendices, "Canonical JSON".
func CanonicalJSON(in []byte) ([]byte, error) {
	return appendCanonical(make([]byte, 0, len(in)), in, true)
}

// canonicalObject is CanonicalJSON for a value that must be an object; lenient keeps numbers as they are written.
func canonicalObject(in []byte, strict bool, what string) ([]byte, error) {
	out, err := appendCanonical(make([]byte, 0, len(in)), in, strict)
	if err != nil {
		return nil, err
	}
	if out[0] != '{' {
		return nil, mxerr.BadJSON(what + " must be a JSON object")
	}
	return out, nil
}

// appendCanonical appends the canonical form of in to dst. Without strict, numbers may be of any size and may be floats, which keep
// their spelling: room versions 1 to 5 must not enforce more.
func appendCanonical(dst, in []byte, strict bool) ([]byte, error) {
	c := canonicaliser{in: in, out: dst, strict: strict}
	c.members = c.few[:0]
	c.space()
	if err := c.value(0); err != nil {
		return nil, err
	}
	c.space()
	if c.pos != len(in) {
		return nil, c.syntax("the end of the JSON text")
	}
	return c.out, nil
}

// member is where one "key":value of an object that is being written lies in the output.
type member struct{ start, keyEnd, end int }

type canonicaliser struct {
	in      []byte
	pos     int
	out     []byte
	strict  bool
	members []member // of all objects that are open, innermost last
	scratch []byte
	few     [32]member // first room for members, so that small values cost no allocation
}

func (c *canonicaliser) syntax(want string) error {
	if c.pos >= len(c.in) {
		return mxerr.NotJSON("the JSON text ends too early: expected " + want)
	}
	return mxerr.NotJSON(fmt.Sprintf("not JSON at byte %d: expected %s", c.pos, want))
}

func (c *canonicaliser) space() {
	for c.pos < len(c.in) {
		switch c.in[c.pos] {
		case ' ', '\t', '\n', '\r':
			c.pos++
		default:
			return
		}
	}
}

func (c *canonicaliser) peek() byte {
	if c.pos < len(c.in) {
		return c.in[c.pos]
	}
	return 0
}

func (c *canonicaliser) value(depth int) error {
	switch b := c.peek(); {
	case b == '{':
		return c.object(depth + 1)
	case b == '[':
		return c.array(depth + 1)
	case b == '"':
		return c.str()
	case b == '-' || b >= '0' && b <= '9':
		return c.number()
	case b == 't':
		return c.literal("true")
	case b == 'f':
		return c.literal("false")
	case b == 'n':
		return c.literal("null")
	}
	return c.syntax("a value")
}

func (c *canonicaliser) literal(word string) error {
	if !bytes.HasPrefix(c.in[c.pos:], []byte(word)) {
		return c.syntax(word)
	}
	c.pos += len(word)
	c.out = append(c.out, word...)
	return nil
}

func errNesting() error {
	return mxerr.BadJSON(fmt.Sprintf("the JSON is nested deeper than %d levels", maxNesting))
}

func (c *canonicaliser) array(depth int) error {
	if depth > maxNesting {
		return errNesting()
	}
	c.pos++
	c.out = append(c.out, '[')
	c.space()
	if c.peek() == ']' {
		c.pos++
		c.out = append(c.out, ']')
		return nil
	}
	for {
		c.space()
		if err := c.value(depth); err != nil {
			return err
		}
		c.space()
		switch c.peek() {
		case ',':
			c.pos++
			c.out = append(c.out, ',')
		case ']':
			c.pos++
			c.out = append(c.out, ']')
			return nil
		default:
			return c.syntax("a comma or the end of the array")
		}
	}
}

func (c *canonicaliser) object(depth int) error {
	if depth > maxNesting {
		return errNesting()
	}
	c.pos++
	c.out = append(c.out, '{')
	c.space()
	if c.peek() == '}' {
		c.pos++
		c.out = append(c.out, '}')
		return nil
	}
	base, sorted := len(c.members), true
	for {
		m := member{start: len(c.out)}
		c.space()
		if c.peek() != '"' {
			return c.syntax("a key")
		}
		if err := c.str(); err != nil {
			return err
		}
		m.keyEnd = len(c.out)
		if n := len(c.members); n > base {
			switch cmp := c.compareKeys(c.members[n-1], m); {
			case cmp == 0:
				return c.duplicate(m)
			case cmp > 0:
				sorted = false
			}
		}
		c.space()
		if c.peek() != ':' {
			return c.syntax("a colon")
		}
		c.pos++
		c.out = append(c.out, ':')
		c.space()
		if err := c.value(depth); err != nil {
			return err
		}
		m.end = len(c.out)
		c.members = append(c.members, m)
		c.space()
		switch c.peek() {
		case ',':
			c.pos++
			c.out = append(c.out, ',')
		case '}':
			c.pos++
			if !sorted {
				if err := c.sortMembers(base); err != nil {
					return err
				}
			}
			c.out = append(c.out, '}')
			c.members = c.members[:base]
			return nil
		default:
			return c.syntax("a comma or the end of the object")
		}
	}
}

func (c *canonicaliser) duplicate(m member) error {
	return mxerr.BadJSON(fmt.Sprintf("the key %.100s appears twice in one object", c.out[m.start:m.keyEnd]))
}

// compareKeys orders two keys, both as written in the output, by the code points they stand for.
func (c *canonicaliser) compareKeys(a, b member) int {
	return compareCanonicalStrings(c.out[a.start:a.keyEnd], c.out[b.start:b.keyEnd])
}

// sortMembers rewrites the members of the innermost object, from index base on, in the order of their keys.
func (c *canonicaliser) sortMembers(base int) error {
	ms := c.members[base:]
	first := ms[0].start
	slices.SortFunc(ms, c.compareKeys)
	for i := 1; i < len(ms); i++ {
		if c.compareKeys(ms[i-1], ms[i]) == 0 {
			return c.duplicate(ms[i])
		}
	}
	c.scratch = append(c.scratch[:0], c.out[first:]...)
	c.out = c.out[:first]
	for i, m := range ms {
		if i > 0 {
			c.out = append(c.out, ',')
		}
		c.out = append(c.out, c.scratch[m.start-first:m.end-first]...)
	}
	return nil
}

func (c *canonicaliser) number() error {
	start := c.pos
	if c.peek() == '-' {
		c.pos++
	}
	digits := c.pos
	switch b := c.peek(); {
	case b == '0':
		c.pos++
	case b >= '1' && b <= '9':
		c.digits()
	default:
		return c.syntax("a digit")
	}
	integer := c.pos
	if c.peek() == '.' {
		c.pos++
		if !c.digits() {
			return c.syntax("a digit")
		}
	}
	if b := c.peek(); b == 'e' || b == 'E' {
		c.pos++
		if b := c.peek(); b == '+' || b == '-' {
			c.pos++
		}
		if !c.digits() {
			return c.syntax("a digit")
		}
	}
	text := c.in[start:c.pos]
	switch {
	case integer == c.pos && c.in[digits] == '0':
		c.out = append(c.out, '0') // also for -0, which canonical JSON does not know
		return nil
	case c.strict && integer != c.pos:
		return mxerr.BadJSON(fmt.Sprintf("the number %.40s is not an integer; events can only hold integers", text))
	case c.strict && !canonicalInt(c.in[digits:integer]):
		return mxerr.BadJSON(fmt.Sprintf("the number %.40s is outside ±(2^53-1)", text))
	}
	c.out = append(c.out, text...)
	return nil
}

func (c *canonicaliser) digits() bool {
	start := c.pos
	for c.pos < len(c.in) && c.in[c.pos] >= '0' && c.in[c.pos] <= '9' {
		c.pos++
	}
	return c.pos > start
}

// canonicalInt tells whether an unsigned integer without leading zeros is at most 2^53-1.
func canonicalInt(digits []byte) bool {
	if len(digits) < 16 {
		return true
	}
	n, err := strconv.ParseUint(string(digits), 10, 64)
	return err == nil && n <= maxCanonicalInt
}

// str reads a string and writes its canonical form.
func (c *canonicaliser) str() error {
	c.pos++
	c.out = append(c.out, '"')
	for {
		// Most strings need no change: copy what is plain in one go.
		run := c.pos
		for c.pos < len(c.in) {
			b := c.in[c.pos]
			if b < utf8.RuneSelf {
				if b == '"' || b == '\\' || b < ' ' {
					break
				}
				c.pos++
				continue
			}
			r, size := utf8.DecodeRune(c.in[c.pos:])
			if r == utf8.RuneError && size == 1 {
				return mxerr.NotJSON(fmt.Sprintf("not JSON at byte %d: invalid UTF-8", c.pos))
			}
			c.pos += size
		}
		c.out = append(c.out, c.in[run:c.pos]...)
		switch c.peek() {
		case '"':
			c.pos++
			c.out = append(c.out, '"')
			return nil
		case '\\':
			if err := c.escape(); err != nil {
				return err
			}
		default:
			if c.pos >= len(c.in) {
				return c.syntax("the end of a string")
			}
			return mxerr.NotJSON(fmt.Sprintf("not JSON at byte %d: a control character inside a string", c.pos))
		}
	}
}

func (c *canonicaliser) escape() error {
	if c.pos+1 >= len(c.in) {
		c.pos++
		return c.syntax("an escape sequence")
	}
	b := c.in[c.pos+1]
	switch b {
	case '"', '\\':
	case '/':
	case 'b':
		b = '\b'
	case 'f':
		b = '\f'
	case 'n':
		b = '\n'
	case 'r':
		b = '\r'
	case 't':
		b = '\t'
	case 'u':
		return c.unicodeEscape()
	default:
		return c.syntax("a known escape sequence")
	}
	c.pos += 2
	c.out = appendCanonicalRune(c.out, rune(b))
	return nil
}

func (c *canonicaliser) unicodeEscape() error {
	r, ok := c.hex4(c.pos)
	if !ok {
		return c.syntax("four hexadecimal digits")
	}
	if utf16.IsSurrogate(r) {
		low, ok := c.hex4(c.pos + 6)
		pair := utf8.RuneError
		if ok {
			pair = utf16.DecodeRune(r, low)
		}
		if pair == utf8.RuneError {
			return mxerr.BadJSON(fmt.Sprintf("a string holds half of a surrogate pair (\\u%04x at byte %d)", r, c.pos))
		}
		c.pos += 12
		c.out = utf8.AppendRune(c.out, pair)
		return nil
	}
	c.pos += 6
	c.out = appendCanonicalRune(c.out, r)
	return nil
}

// hex4 reads \uXXXX at a position of the input.
func (c *canonicaliser) hex4(at int) (rune, bool) {
	if at+6 > len(c.in) || c.in[at] != '\\' || c.in[at+1] != 'u' {
		return 0, false
	}
	var r rune
	for _, b := range c.in[at+2 : at+6] {
		switch {
		case b >= '0' && b <= '9':
			b -= '0'
		case b >= 'a' && b <= 'f':
			b -= 'a' - 10
		case b >= 'A' && b <= 'F':
			b -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(b)
	}
	return r, true
}

const hexDigits = "0123456789abcdef"

// appendCanonicalRune writes one character of a string as canonical JSON spells it.
func appendCanonicalRune(dst []byte, r rune) []byte {
	switch {
	case r >= utf8.RuneSelf:
		return utf8.AppendRune(dst, r)
	case r == '"' || r == '\\':
		return append(dst, '\\', byte(r))
	case r >= ' ':
		return append(dst, byte(r))
	}
	switch r {
	case '\b':
		return append(dst, '\\', 'b')
	case '\t':
		return append(dst, '\\', 't')
	case '\n':
		return append(dst, '\\', 'n')
	case '\f':
		return append(dst, '\\', 'f')
	case '\r':
		return append(dst, '\\', 'r')
	}
	return append(dst, '\\', 'u', '0', '0', hexDigits[r>>4], hexDigits[r&15])
}

// AppendCanonicalString appends s as a canonical JSON string, with its quotes. Bytes that are no UTF-8 become U+FFFD.
func AppendCanonicalString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	run := 0
	for i := 0; i < len(s); {
		b := s[i]
		if b < utf8.RuneSelf {
			if b < ' ' || b == '"' || b == '\\' {
				dst = append(dst, s[run:i]...)
				dst = appendCanonicalRune(dst, rune(b))
				run = i + 1
			}
			i++
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && size == 1 {
			dst = append(dst, s[run:i]...)
			dst = utf8.AppendRune(dst, utf8.RuneError)
			run = i + 1
		}
		i += size
	}
	dst = append(dst, s[run:]...)
	return append(dst, '"')
}

// checkNumbers refuses numbers that no float64 can hold, in JSON that is known to be valid. Room versions before 6 allow them,
// but many clients cannot read a response in which one stands, so that a single message would end everybody's sync.
func checkNumbers(js []byte) error {
	for i := 0; i < len(js); i++ {
		switch c := js[i]; {
		case c == '"':
			for i++; js[i] != '"'; i++ {
				if js[i] == '\\' {
					i++
				}
			}
		case c == '-', c >= '0' && c <= '9':
			start := i
			for i < len(js) && strings.IndexByte("+-.eE0123456789", js[i]) >= 0 {
				i++
			}
			if _, err := strconv.ParseFloat(string(js[start:i]), 64); err != nil {
				return mxerr.BadJSON(fmt.Sprintf("the number %.40s is too large", js[start:i]))
			}
			i--
		}
	}
	return nil
}
