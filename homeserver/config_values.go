package homeserver

import (
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"strings"
	"time"
)

const (
	minute = time.Minute
	day    = 24 * time.Hour
)

// Secret is a value that is never printed. In the configuration a sibling key with _file names a file that holds it.
type Secret string

// String implements fmt.Stringer; it does not tell.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "(secret)"
}

// GoString implements fmt.GoStringer; it does not tell either.
func (s Secret) GoString() string { return strconv.Quote(s.String()) }

// LogValue implements slog.LogValuer.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// Size is a number of bytes, written as "50 MiB", "10MB" or a bare number.
type Size int64

var sizeUnits = []struct {
	name  string
	bytes float64
}{
	{"kib", 1 << 10}, {"mib", 1 << 20}, {"gib", 1 << 30}, {"tib", 1 << 40},
	{"kb", 1e3}, {"mb", 1e6}, {"gb", 1e9}, {"tb", 1e12},
	{"k", 1 << 10}, {"m", 1 << 20}, {"g", 1 << 30}, {"t", 1 << 40}, {"b", 1}, {"", 1},
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Size) UnmarshalText(b []byte) error {
	text := strings.ToLower(strings.TrimSpace(string(b)))
	for _, u := range sizeUnits {
		number, ok := strings.CutSuffix(text, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
		if err != nil || n < 0 || n*u.bytes > math.MaxInt64/2 {
			break
		}
		*s = Size(n * u.bytes)
		return nil
	}
	return fmt.Errorf("%q is no size; write it like \"50 MiB\"", b)
}

// Duration is a length of time, written as "90s", "15m", "1h30m", "7d" or "2w".
type Duration time.Duration

// Std is the duration for the standard library.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	text := strings.ReplaceAll(strings.TrimSpace(string(b)), " ", "")
	total, rest := time.Duration(0), text
	for _, unit := range []struct {
		name   string
		length time.Duration
	}{{"w", 7 * day}, {"d", day}} {
		number, after, ok := strings.Cut(rest, unit.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseFloat(number, 64)
		if err != nil || n < 0 || n*float64(unit.length) > math.MaxInt64/2 {
			return badDuration(b)
		}
		total += time.Duration(n * float64(unit.length))
		rest = after
	}
	if rest != "" {
		n, err := time.ParseDuration(rest)
		if err != nil || n < 0 || total+n < total {
			return badDuration(b)
		}
		total += n
	}
	if text == "" {
		return badDuration(b)
	}
	*d = Duration(total)
	return nil
}

func badDuration(b []byte) error {
	return fmt.Errorf("%q is no duration; write it like \"90s\", \"15m\", \"1h30m\" or \"7d\"", b)
}
