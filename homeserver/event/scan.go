package event

import (
	"bytes"
	"iter"
	"strconv"
	"unicode/utf8"
)

// The functions of this file read canonical JSON that appendCanonical has written: no white space, valid strings, no duplicate keys.
// They check nothing again, so they must never see other bytes.

// skipString gives the end of the string that starts at b[i].
func skipString(b []byte, i int) int {
	for i++; i < len(b); i++ {
		switch b[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return i
}

// skipValue gives the end of the value that starts at b[i].
func skipValue(b []byte, i int) int {
	depth := 0
	for i < len(b) {
		switch b[i] {
		case '"':
			i = skipString(b, i)
		case '{', '[':
			depth++
			i++
			continue
		case '}', ']':
			depth--
			i++
		case ',', ':':
			i++
			continue
		default:
			for i < len(b) && b[i] != ',' && b[i] != '}' && b[i] != ']' {
				i++
			}
		}
		if depth == 0 {
			return i
		}
	}
	return i
}

// members goes through an object: key without its quotes but with its escapes, and value.
func members(obj []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func([]byte, []byte) bool) {
		if len(obj) == 0 || obj[0] != '{' {
			return
		}
		for i := 1; i < len(obj) && obj[i] == '"'; {
			keyEnd := skipString(obj, i)
			end := skipValue(obj, keyEnd+1)
			if !yield(obj[i+1:keyEnd-1], obj[keyEnd+1:end]) {
				return
			}
			i = end + 1
		}
	}
}

// elements goes through an array.
func elements(arr []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		if len(arr) < 3 || arr[0] != '[' {
			return
		}
		for i := 1; i < len(arr); {
			end := skipValue(arr, i)
			if !yield(arr[i:end]) {
				return
			}
			i = end + 1
		}
	}
}

// get gives the value of a key of an object, or nil. The key must need no escapes.
func get(obj []byte, key string) []byte {
	for k, v := range members(obj) {
		if string(k) == key {
			return v
		}
	}
	return nil
}

// isString and its siblings tell the kind of a value.
func isString(v []byte) bool { return len(v) > 0 && v[0] == '"' }
func isObject(v []byte) bool { return len(v) > 0 && v[0] == '{' }
func isArray(v []byte) bool  { return len(v) > 0 && v[0] == '[' }

// str decodes a string value; ok is false for values of another kind.
func str(v []byte) (s string, ok bool) {
	if !isString(v) {
		return "", false
	}
	return unescape(v[1 : len(v)-1]), true
}

// getString is the string under a key, or "".
func getString(obj []byte, key string) string {
	s, _ := str(get(obj, key))
	return s
}

// integer decodes an integer value; ok is false for floats, for what does not fit and for values of another kind.
func integer(v []byte) (n int64, ok bool) {
	if len(v) == 0 || len(v) > 20 || v[0] != '-' && (v[0] < '0' || v[0] > '9') {
		return 0, false
	}
	n, err := strconv.ParseInt(string(v), 10, 64)
	return n, err == nil
}

// unescape decodes the inside of a canonical string.
func unescape(raw []byte) string {
	if bytes.IndexByte(raw, '\\') < 0 {
		return string(raw)
	}
	return string(appendUnescaped(make([]byte, 0, len(raw)), raw))
}

func appendUnescaped(dst, raw []byte) []byte {
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' {
			dst = append(dst, raw[i])
			continue
		}
		i++
		switch raw[i] {
		case 'b':
			dst = append(dst, '\b')
		case 't':
			dst = append(dst, '\t')
		case 'n':
			dst = append(dst, '\n')
		case 'f':
			dst = append(dst, '\f')
		case 'r':
			dst = append(dst, '\r')
		case 'u': // canonical JSON only writes \u00XX
			n, _ := strconv.ParseUint(string(raw[i+1:i+5]), 16, 16)
			dst = utf8.AppendRune(dst, rune(n))
			i += 4
		default:
			dst = append(dst, raw[i])
		}
	}
	return dst
}

// compareCanonicalStrings orders two canonical strings by the code points they stand for. UTF-8 sorts like code points, so only escapes
// need decoding.
func compareCanonicalStrings(a, b []byte) int {
	a, b = a[1:len(a)-1], b[1:len(b)-1]
	if bytes.IndexByte(a, '\\') < 0 && bytes.IndexByte(b, '\\') < 0 {
		return bytes.Compare(a, b)
	}
	return bytes.Compare(appendUnescaped(nil, a), appendUnescaped(nil, b))
}
