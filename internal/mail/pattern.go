package mail

// MatchPattern reports whether text has the form of a pattern, in which *
// stands for any characters and ? for one. Case counts.
func MatchPattern(pattern, text string) bool {
	star, from := -1, 0 // the last *, and where what it stands for would end
	p, t := 0, 0
	for t < len(text) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, from = p, t
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == text[t]):
			p++
			t++
			if pattern[p-1] == '?' {
				for t < len(text) && text[t]&0xc0 == 0x80 {
					t++ // the rest of one character of UTF-8
				}
			}
		case star >= 0:
			from++
			p, t = star+1, from
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}
