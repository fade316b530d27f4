package clientsync

import (
	"strconv"
	"strings"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// token is a place in the stream of a client: what GET /sync returns as next_batch and takes as since. Pagination
// tokens (room.Token) are of another type.
type token struct {
	epoch    int64  // the log's epoch in which pos was given
	pos      int64  // everything announced up to here was delivered
	toDevice int64  // to-device messages up to here were delivered; less than pos while more than a response's fill wait
	node     string // the process whose serial follows
	serial   int64  // typing and presence up to here were delivered, as that process counts
}

// Spec: client-server API, "Syncing": tokens are opaque. "s1" is the version of this form.
const tokenVersion = "s1"

// append writes the token: s1_<epoch>_<pos>_<toDevice>_<node>.<serial>.
func (t token) append(b []byte) []byte {
	b = append(b, tokenVersion+"_"...)
	b = strconv.AppendInt(b, t.epoch, 10)
	b = append(b, '_')
	b = strconv.AppendInt(b, t.pos, 10)
	b = append(b, '_')
	b = strconv.AppendInt(b, t.toDevice, 10)
	b = append(b, '_')
	b = append(b, t.node...)
	b = append(b, '.')
	return strconv.AppendInt(b, t.serial, 10)
}

// String is the token as clients get it.
func (t token) String() string { return string(t.append(nil)) }

// errToken is what a client hears of a token that this server never made.
func errToken() error {
	return mxerr.InvalidParam("since must be a next_batch token that this server gave out")
}

// parseToken reads a token. Only what append writes is taken; anything else is 400 M_INVALID_PARAM.
func parseToken(s string) (token, error) {
	var t token
	rest, ok := strings.CutPrefix(s, tokenVersion+"_")
	if !ok {
		return token{}, errToken()
	}
	var field string
	for _, n := range []*int64{&t.epoch, &t.pos, &t.toDevice} {
		if field, rest, ok = strings.Cut(rest, "_"); !ok || !parseNumber(field, n) {
			return token{}, errToken()
		}
	}
	if field, rest, ok = strings.Cut(rest, "."); !ok || !isNode(field) || !parseNumber(rest, &t.serial) || t.toDevice > t.pos {
		return token{}, errToken()
	}
	t.node = field
	return t, nil
}

// parseNumber reads a decimal number in its one form: digits without leading zeros.
func parseNumber(s string, n *int64) bool {
	if s == "" || s[0] < '0' || s[0] > '9' || (s[0] == '0' && len(s) > 1) {
		return false
	}
	v, err := strconv.ParseInt(s, 10, 64)
	*n = v
	return err == nil
}

func isNode(s string) bool {
	if s == "" || len(s) > 32 {
		return false
	}
	for i := 0; i < len(s); i++ {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// cut takes a token of an earlier epoch back to where the epochs part: what was announced behind that place was lost,
// and its positions were given again to other things. A token of an epoch that this database does not know (it was
// restored to a time before) goes back to the beginning, because nobody can tell where they part.
func (t token) cut(epochs []store.Epoch) token {
	current := int64(0)
	for _, e := range epochs {
		current = max(current, e.Number)
		if e.Number > t.epoch {
			t.pos = min(t.pos, max(0, e.First-1))
		}
	}
	if t.epoch > current {
		t.pos = 0
	}
	t.epoch = current
	t.toDevice = min(t.toDevice, t.pos)
	return t
}

// ParsePosition gives the log position of a token of GET /sync, for endpoints that take one as a point in time.
func ParsePosition(s string) (int64, error) {
	t, err := parseToken(s)
	return t.pos, err
}
