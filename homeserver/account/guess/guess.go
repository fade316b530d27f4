// Package guess tells how hard a password is to guess. It is zxcvbn, whose dictionaries it keeps small: the library builds
// maps of 90,000 words when the program starts, 11 MiB that most servers need for a moment each day (decision 0304).
package guess

import (
	"strings"
	"sync"
	"sync/atomic"
	_ "unsafe" // for go:linkname

	"github.com/trustelem/zxcvbn"
	_ "github.com/trustelem/zxcvbn/matching" // whose variable is named below

	"github.com/moothall/moothall/homeserver/account/guess/words"
)

// ranked has the shape of what zxcvbn/matching keeps its dictionaries in: by name of the list the words' ranks.
type ranked struct{ lists map[string]map[string]int }

//go:linkname dictionaries github.com/trustelem/zxcvbn/matching.defaultRankedDictionnaries
var dictionaries ranked

var (
	lock   sync.RWMutex // held for reading while a password is judged, for writing while dictionaries change
	loaded bool
	used   atomic.Bool // since the last Forget
)

// Score judges a password from 0 (guessed at once) to 4 (beyond reach). inputs are words that an attacker would try first.
func Score(password string, inputs []string) int {
	used.Store(true)
	lock.RLock()
	for !loaded {
		lock.RUnlock()
		load()
		lock.RLock()
	}
	defer lock.RUnlock()
	return zxcvbn.PasswordStrength(password, inputs).Score
}

// Forget lets go of the dictionaries if no password was judged since it was called last. The next one takes 20 ms longer.
func Forget() {
	if used.Swap(false) {
		return
	}
	lock.Lock()
	defer lock.Unlock()
	loaded = false
	dictionaries.lists = nil
}

func load() {
	lock.Lock()
	defer lock.Unlock()
	if loaded {
		return
	}
	loaded = true
	lists := make(map[string]map[string]int)
	for name, list := range words.Lists {
		lists[name] = rank(list)
	}
	dictionaries.lists = lists
}

// rank gives the words of a list, most frequent first, their ranks from 1, as the library does.
func rank(words string) map[string]int {
	out := make(map[string]int, strings.Count(words, "\n")+1)
	n := 0
	for word := range strings.SplitSeq(words, "\n") {
		n++
		out[strings.ToLower(word)] = n
	}
	return out
}
