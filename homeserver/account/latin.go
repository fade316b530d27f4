package account

import (
	"context"
	"slices"
	"strings"
	"unicode"

	"github.com/mozillazg/go-pinyin"

	"github.com/moothall/moothall/homeserver/store"
)

// maxReadings bounds how many readings of a name are kept, where characters have several.
const maxReadings = 8

// latin writes a name with Chinese characters in Latin letters, as people type it to find somebody: each reading in full and
// its initials, "wangxiaoming wxm", with a space between them. It is "" for names without such characters.
func latin(name string) string {
	full, initials := []string{""}, []string{""}
	var args pinyin.Args = pinyin.NewArgs()
	args.Heteronym = true
	found := false
	for _, c := range Fold(name) {
		if !unicode.Is(unicode.Han, c) {
			if unicode.IsLetter(c) || unicode.IsDigit(c) {
				full, initials = extend(full, []string{string(c)}), extend(initials, []string{string(c)})
			}
			continue
		}
		readings := pinyin.SinglePinyin(c, args)
		if len(readings) == 0 {
			continue
		}
		found = true
		firsts := make([]string, 0, len(readings))
		for _, r := range readings {
			firsts = append(firsts, r[:1])
		}
		full, initials = extend(full, readings), extend(initials, firsts)
	}
	if !found {
		return ""
	}
	return strings.Join(append(full, initials...), " ")
}

// extend gives all ways to go on, up to a bound.
func extend(heads, tails []string) []string {
	out := make([]string, 0, len(heads)*len(tails))
	for _, h := range heads {
		for _, t := range tails {
			if s := h + t; len(out) < maxReadings && !slices.Contains(out, s) {
				out = append(out, s)
			}
		}
	}
	return out
}

// Run writes names in Latin letters that were stored before the directory looked for them, and returns.
func (p *Profiles) Run(ctx context.Context) error {
	const chunk = 200
	for ctx.Err() == nil {
		n := 0
		err := p.Store.Write(ctx, func(tx *store.Tx) error {
			n = 0
			names, err := tx.NamesWithoutLatin(chunk)
			if err != nil {
				return err
			}
			for user, name := range names {
				if err := tx.SetLatin(user, latin(name)); err != nil {
					return err
				}
				n++
			}
			return nil
		})
		if err != nil {
			if ctx.Err() == nil {
				p.Logger.Warn("names are not found by their pinyin yet", "error", err)
			}
			return nil // the next start tries again
		}
		if n < chunk {
			return nil
		}
	}
	return nil
}
