package parser

import (
	"fmt"
	"slices"
)

// suggestion is `, did you mean "x"?` with the nearest of the words known, or
// nothing when none is near.
func suggestion(found string, words []string) string {
	if w := nearest(found, words); w != "" {
		return fmt.Sprintf(", did you mean %q?", w)
	}
	return ""
}

// maxNear is how many names are looked at for the one that was meant, and
// maxSuggestions how many mistakes get that done.
const (
	maxNear        = 1000
	maxSuggestions = 200
)

// suggestion is that of the first mistakes of a file, which are those read.
func (l *diagList) suggestion(found string, words []string) string {
	if l.suggested++; l.suggested > maxSuggestions {
		return ""
	}
	return suggestion(found, words)
}

// nearest is the word that takes the fewest changes to become what was found,
// when those are few for its length.
func nearest(found string, words []string) string {
	if len(found) < 2 || len(found) > 64 || len(words) > 2*maxNear {
		return ""
	}
	words = slices.Sorted(slices.Values(words))
	best, least := "", 1+2*min(3, (len(found)+2)/4)
	for _, w := range words {
		if d := distance(found, w); d < least && w != found {
			best, least = w, d
		}
	}
	return best
}

// distance counts letters put in, left out or changed as 2, those swapped with
// the next as 1.
func distance(a, b string) int {
	if n := len(a) - len(b); n > 3 || n < -3 {
		return 99
	}
	prev2, prev := []int(nil), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = 2 * j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = 2 * i
		for j := 1; j <= len(b); j++ {
			cost := 2
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+2, row[j-1]+2, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], prev2[j-2]+1)
			}
		}
		prev2, prev = prev, row
	}
	return prev[len(b)]
}
