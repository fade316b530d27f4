package room

import (
	"math"
	"strconv"
	"strings"

	"github.com/moothall/moothall/homeserver/mxerr"
)

// Token is a pagination token: the place in a room's timeline just behind the event with this ord. Going backwards from
// it starts with that event, going forwards with the next one.
type Token int64

// TokenEnd lies behind every event.
const TokenEnd Token = math.MaxInt64

// String is the token as clients get it. The "t" tells it from the tokens of a sync.
func (t Token) String() string { return "t" + strconv.FormatInt(int64(t), 10) }

// ParseToken reads a pagination token, or the position out of a sync token ("s1_<epoch>_<position>_…"): for events that
// were announced, positions and ords are the same. What is neither is 400 M_INVALID_PARAM.
func ParseToken(s string) (Token, error) {
	digits := ""
	if rest, ok := strings.CutPrefix(s, "t"); ok {
		digits = rest
	} else if rest, ok := strings.CutPrefix(s, "s1_"); ok {
		_, rest, _ = strings.Cut(rest, "_")
		digits, _, _ = strings.Cut(rest, "_")
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil {
		return 0, mxerr.InvalidParam("this server gave out no such pagination token")
	}
	return Token(n), nil
}
