package mail

import "testing"

func TestMatchPattern(t *testing.T) {
	tests := map[string]bool{ // pattern|text
		"|": true, "*|": true, "?|": false, "a|": false, "|a": false,
		"*|a/b[c]": true, "a*c|abbc": true, "a*c|abcb": false, "a*b*c|aXbYbZc": true, "*.example.org|a.example.org": true,
		"*.example.org|example.org": false, "ex?mple|example": true, "ex?mple|exmple": false, "?|\u00e9": true,
		"[a]|a": false, "[a]|[a]": true, "a\\|a\\": true, "**a**|xax": true, "*a|aab": false,
	}
	for name, want := range tests {
		for i := range name {
			if name[i] == '|' {
				if got := MatchPattern(name[:i], name[i+1:]); got != want {
					t.Errorf("%s: got %v; want %v", name, got, want)
				}
				break
			}
		}
	}
}
