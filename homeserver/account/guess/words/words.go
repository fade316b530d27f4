// Package words takes zxcvbn's lists of words before zxcvbn/matching makes maps of them. Packages whose imports are
// initialised are initialised in the order of their paths (Go specification, "Program initialization"), and this one needs
// less than zxcvbn/matching and stands before it. Should that ever change, memory is all that is lost.
package words

import (
	"strings"

	"github.com/trustelem/zxcvbn/frequency"
)

// Lists are the words of each list, most frequent first, divided by line breaks.
var Lists = take()

func take() map[string]string {
	out := make(map[string]string, len(frequency.FrequencyLists))
	for name, list := range frequency.FrequencyLists {
		out[name] = strings.Join(list, "\n")
	}
	clear(frequency.FrequencyLists)
	return out
}
