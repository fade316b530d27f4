package web

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/moothall/moothall/homeserver/mxerr"
)

const (
	// MaxBody is the most bytes a JSON body may have where a handler names no other limit.
	MaxBody = 1 << 20
	// maxDepth bounds nesting: whoever parses the value again later may do so recursively.
	maxDepth = 128
)

// ReadJSON reads the body as a JSON object into T. It is strict: duplicate names and invalid UTF-8 are refused,
// unknown names ignored. Errors are M_NOT_JSON, M_BAD_JSON (which names the field) and M_TOO_LARGE; an empty body is
// M_NOT_JSON.
func ReadJSON[T any](r *http.Request) (T, error) { return ReadJSONLimit[T](r, MaxBody) }

// ReadJSONLimit is ReadJSON for bodies of up to limit bytes.
func ReadJSONLimit[T any](r *http.Request, limit int64) (T, error) {
	var v T
	b, err := readBody(r, limit)
	if err != nil {
		return v, err
	}
	return v, decode(b, &v)
}

// ReadOptionalJSON is ReadJSON where an empty body counts as {}.
func ReadOptionalJSON[T any](r *http.Request) (T, error) {
	var v T
	b, err := readBody(r, MaxBody)
	if err != nil || len(bytes.TrimSpace(b)) == 0 {
		return v, err
	}
	return v, decode(b, &v)
}

// ReadRawObject returns the body's bytes after it was found to be one JSON object without duplicate names, invalid
// UTF-8 or too deep nesting.
func ReadRawObject(r *http.Request) ([]byte, error) {
	b, err := readBody(r, MaxBody)
	if err != nil {
		return nil, err
	}
	var raw jsontext.Value
	if err := decode(b, &raw); err != nil {
		return nil, err
	}
	return b, nil
}

// DecodeObject reads a JSON object from bytes with the strictness and the errors of ReadJSON.
func DecodeObject[T any](b []byte) (T, error) {
	var v T
	return v, decode(b, &v)
}

func readBody(r *http.Request, limit int64) ([]byte, error) {
	if r.ContentLength > limit {
		return nil, tooLarge(limit)
	}
	if r.Body == nil || r.Body == http.NoBody {
		return nil, nil
	}
	var b []byte
	var err error
	if r.ContentLength > 0 {
		b = make([]byte, r.ContentLength)
		_, err = io.ReadFull(r.Body, b)
	} else {
		b, err = io.ReadAll(io.LimitReader(r.Body, limit+1))
	}
	var over *http.MaxBytesError
	switch {
	case errors.As(err, &over), int64(len(b)) > limit:
		return nil, tooLarge(limit)
	case err != nil:
		return nil, mxerr.NotJSON("the body could not be read to its end")
	}
	return b, nil
}

func tooLarge(limit int64) error {
	return mxerr.TooLarge(fmt.Sprintf("the body may have at most %d bytes", limit))
}

// decode reads an object into v.
func decode(b []byte, v any) error {
	if len(b) == 0 {
		return mxerr.NotJSON("the body is empty, a JSON object was expected")
	}
	if deeper(b, maxDepth) {
		return mxerr.BadJSON(fmt.Sprintf("the body is nested deeper than %d levels", maxDepth))
	}
	if first := bytes.TrimLeft(b, " \t\r\n"); len(first) == 0 || first[0] != '{' {
		if jsontext.Value(b).IsValid() {
			return mxerr.BadJSON("the body must be a JSON object")
		}
		return mxerr.NotJSON("the body is not JSON")
	}
	if err := json.Unmarshal(b, v); err != nil {
		return jsonError(b, err)
	}
	return nil
}

// jsonError says in the terms of the specification what was wrong with a body.
func jsonError(b []byte, err error) error {
	if e := mxerr.As(err); e != nil {
		return e // an UnmarshalJSON of ours
	}
	var syntax *jsontext.SyntacticError
	if errors.As(err, &syntax) {
		if errors.Is(err, jsontext.ErrDuplicateName) {
			return mxerr.BadJSON(fmt.Sprintf("the body names %s twice", field(syntax.JSONPointer)))
		}
		return mxerr.NotJSON(fmt.Sprintf("the body is not JSON: at byte %d: %v", syntax.ByteOffset, syntax.Err))
	}
	if !jsontext.Value(b).IsValid(jsontext.AllowDuplicateNames(true)) {
		return mxerr.NotJSON("the body is not JSON") // broken behind the field that was refused
	}
	var wrong *json.SemanticError
	if errors.As(err, &wrong) {
		return mxerr.BadJSON(fmt.Sprintf("%s must be %s%s", field(wrong.JSONPointer), wanted(wrong), got(wrong.JSONKind)))
	}
	return mxerr.BadJSON("the body has the wrong shape")
}

// field shows a JSON pointer as people write it: a.b.0.
func field(p jsontext.Pointer) string {
	if p == "" {
		return "the body"
	}
	var names []string
	for name := range p.Tokens() {
		names = append(names, name)
	}
	return "'" + strings.Join(names, ".") + "'"
}

func wanted(e *json.SemanticError) string {
	if e.GoType == nil {
		return "of another type"
	}
	t := e.GoType
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return "an integer"
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "an integer that is not negative"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.Slice, reflect.Array:
		return "an array"
	case reflect.Map, reflect.Struct:
		return "an object"
	}
	return "of another type"
}

func got(k jsontext.Kind) string {
	switch k {
	case 'n':
		return ", not null"
	case 't', 'f':
		return ", not a boolean"
	case '"':
		return ", not this string"
	case '0':
		return ", not this number"
	case '{':
		return ", not an object"
	case '[':
		return ", not an array"
	}
	return ""
}

// deeper tells whether JSON nests more than limit levels, without judging it otherwise.
func deeper(b []byte, limit int) bool {
	depth := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '{', '[':
			if depth++; depth > limit {
				return true
			}
		case '}', ']':
			depth--
		case '"':
			for i++; i < len(b) && b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
		}
	}
	return false
}
