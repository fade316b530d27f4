package web

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/moothall/moothall/homeserver/mxerr"
)

// QueryString returns the first value of a query parameter, or "".
func QueryString(r *http.Request, name string) string {
	v, _ := QueryLookup(r, name)
	return v
}

// QueryLookup returns the first value of a query parameter and whether it is there. It reads the query without building
// a map of it. What cannot be decoded counts as absent.
func QueryLookup(r *http.Request, name string) (string, bool) {
	rest := r.URL.RawQuery
	for rest != "" {
		var pair string
		pair, rest, _ = strings.Cut(rest, "&")
		if v, ok := queryPair(pair, name); ok {
			return v, true
		}
	}
	return "", false
}

// QueryStrings returns all values of a parameter that may be repeated.
func QueryStrings(r *http.Request, name string) []string {
	var out []string
	rest := r.URL.RawQuery
	for rest != "" {
		var pair string
		pair, rest, _ = strings.Cut(rest, "&")
		if v, ok := queryPair(pair, name); ok {
			out = append(out, v)
		}
	}
	return out
}

func queryPair(pair, name string) (string, bool) {
	key, value, _ := strings.Cut(pair, "=")
	if key != name {
		if strings.IndexByte(key, '%') < 0 && strings.IndexByte(key, '+') < 0 {
			return "", false
		}
		if k, err := url.QueryUnescape(key); err != nil || k != name {
			return "", false
		}
	}
	v, err := url.QueryUnescape(value)
	return v, err == nil && utf8.ValidString(v)
}

// QueryInt reads an integer. What is no integer or lies below min is 400 M_INVALID_PARAM; what lies above max counts as
// max (limits are wishes). An absent or empty parameter is def.
func QueryInt(r *http.Request, name string, def, min, max int) (int, error) {
	s := QueryString(r, name)
	if s == "" {
		return def, nil
	}
	n, err := strconv.Atoi(s)
	if errors.Is(err, strconv.ErrRange) {
		err = nil // Atoi gives the nearest int
	}
	if err != nil || n < min {
		return 0, mxerr.InvalidParam(fmt.Sprintf("query parameter '%s' must be an integer of at least %d", name, min))
	}
	if n > max {
		return max, nil
	}
	return n, nil
}

// QueryBool reads "true" or "false"; anything else is 400 M_INVALID_PARAM. An absent or empty parameter is def.
func QueryBool(r *http.Request, name string, def bool) (bool, error) {
	switch QueryString(r, name) {
	case "":
		return def, nil
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, mxerr.InvalidParam("query parameter '" + name + "' must be true or false")
}
