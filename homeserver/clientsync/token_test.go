package clientsync

import (
	"strings"
	"testing"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
)

func TestTokenRoundTrip(t *testing.T) {
	for _, want := range []token{
		{1, 0, 0, "ab12", 0},
		{3, 9223372036854775807, 12, "0123456789abcdef", 9223372036854775807},
	} {
		got, err := parseToken(want.String())
		if err != nil || got != want {
			t.Errorf("%s is read as %+v, %v", want, got, err)
		}
		if p, err := room.ParseToken(want.String()); err != nil || int64(p) != want.pos {
			t.Errorf("as a pagination token %s is %d, %v", want, p, err)
		}
	}
}

func TestBrokenTokens(t *testing.T) {
	good := token{1, 25, 20, "ab12", 7}.String()
	for _, s := range []string{
		"", "s", "s1_", "t25", "25", good + " ", " " + good, good + "_1", "s2" + good[2:],
		"s1_1_25_20_ab12.", "s1_1_25_20_ab12", "s1_1_25_20_.7", "s1_1_25_20_AB12.7", "s1_1_25_20_xyz!.7",
		"s1_01_25_20_ab12.7", "s1_1_-25_20_ab12.7", "s1_1_+25_20_ab12.7", "s1_1_25_26_ab12.7",
		"s1_1_99999999999999999999_20_ab12.7", "s1_1_25_20_" + strings.Repeat("a", 33) + ".7", "s1_1_25__ab12.7", "s1_1_25_20_ab12.7\x00",
	} {
		if got, err := parseToken(s); !mxerr.Is(err, "M_INVALID_PARAM") {
			t.Errorf("%q gives %+v, %v, want M_INVALID_PARAM", s, got, err)
		}
	}
}

func TestTokenOfEarlierEpoch(t *testing.T) {
	epochs := []store.Epoch{{Number: 1, First: 0}, {Number: 2, First: 100}, {Number: 3, First: 80}}
	for _, tc := range []struct {
		what     string
		in, want token
	}{
		{"current epoch", token{3, 500, 400, "a", 1}, token{3, 500, 400, "a", 1}},
		{"before the epochs part", token{2, 70, 60, "a", 1}, token{3, 70, 60, "a", 1}},
		{"lost tail", token{2, 150, 140, "a", 1}, token{3, 79, 79, "a", 1}},
		{"two restores ago", token{1, 150, 90, "a", 1}, token{3, 79, 79, "a", 1}},
		{"an epoch that is not known here", token{4, 150, 140, "a", 1}, token{3, 0, 0, "a", 1}},
	} {
		if got := tc.in.cut(epochs); got != tc.want {
			t.Errorf("%s: got %+v, want %+v", tc.what, got, tc.want)
		}
	}
}

// FuzzParseToken holds that only what a token writes is read, and always as the same token.
func FuzzParseToken(f *testing.F) {
	f.Add("s1_1_25_20_ab12.7")
	f.Add("s1_1_0_0_0.0")
	f.Add("s1_1_25_20_ab12.07")
	f.Add("t12")
	f.Fuzz(func(t *testing.T, s string) {
		got, err := parseToken(s)
		if err != nil {
			if !mxerr.Is(err, "M_INVALID_PARAM") {
				t.Errorf("%q: %v", s, err)
			}
			return
		}
		if got.String() != s {
			t.Errorf("%q was read, but is written as %q", s, got)
		}
		if got.pos < 0 || got.toDevice > got.pos {
			t.Errorf("%q gives %+v", s, got)
		}
		cut := got.cut([]store.Epoch{{Number: 1}})
		if cut.pos < 0 || cut.toDevice > cut.pos || cut.pos > got.pos {
			t.Errorf("%q is cut to %+v", s, cut)
		}
	})
}
