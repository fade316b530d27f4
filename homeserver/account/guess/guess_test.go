package guess_test

import (
	"sync"
	"testing"

	"github.com/trustelem/zxcvbn/frequency"

	"github.com/moothall/moothall/homeserver/account/guess"
	"github.com/moothall/moothall/homeserver/account/guess/words"
)

// known are scores that need the dictionaries: without them the words would count as random letters.
var known = map[string]int{
	"password": 0, "p4ssw0rd": 0, "drowssap": 0, "passwordpasswordpassword": 0, "Kaitlyn": 1,
	"correcthorsebatterystaple": 4, "plum-tractor-vivid-7": 4, "anderson1987": 1, "zxqwvkpj": 1,
}

// TestScore sees that the lists were taken before maps were made of them, and judges passwords while the dictionaries come
// and go.
func TestScore(t *testing.T) {
	if len(words.Lists) != 6 || len(frequency.FrequencyLists) != 0 {
		t.Fatalf("%d lists were taken, %d were left", len(words.Lists), len(frequency.FrequencyLists))
	}
	if n := guess.Kept(); n != 0 {
		t.Errorf("%d dictionaries were made when the program started", n)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for pw, want := range known {
				if got := guess.Score(pw, []string{"zxqwvkp"}); got != want {
					t.Errorf("%s scores %d, want %d", pw, got, want)
				}
				guess.Forget()
			}
		})
	}
	wg.Wait()
	guess.Forget()
	guess.Forget()
	if n := guess.Kept(); n != 0 {
		t.Errorf("%d dictionaries are kept", n)
	}
}
