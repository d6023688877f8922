package table

import (
	"net/netip"
	"strings"
)

// matchDomain reports whether a domain matches a pattern; case does not
// matter. A '*' skips to the next place where the octet after it stands, across
// dots, and never looks back: "*.example.org" matches a.example.org but not
// a.b.example.org. A '*' at the end stands for one octet or more. A pattern
// that begins with a dot matches every domain below (ours).
func matchDomain(domain, pattern string) bool {
	return matchFolded(Fold(domain), Fold(pattern))
}

func matchFolded(domain, pattern string) bool {
	if strings.HasPrefix(pattern, ".") {
		if len(domain) <= len(pattern) {
			return false
		}
		cut := len(domain) - len(pattern)
		if strings.IndexByte(domain[:cut+1], '.') < 0 {
			return false
		}
		return domain[cut:] == pattern
	}
	d, p := 0, 0
	for d < len(domain) && p < len(pattern) {
		if pattern[p] != '*' {
			if pattern[p] != domain[d] {
				return false
			}
			d, p = d+1, p+1
			continue
		}
		for p < len(pattern) && pattern[p] == '*' {
			p++
		}
		if p == len(pattern) {
			return true
		}
		skip := strings.IndexByte(domain[d:], pattern[p])
		if skip < 0 {
			return false
		}
		d += skip
	}
	return d == len(domain) && p == len(pattern)
}

// MatchMailaddr reports whether an address matches an entry of a list of mail
// addresses: user@domain, user, @domain, "@" (any), or "" (the null
// reverse-path alone). Case does not matter. Unless the entry's user holds the
// delimiter, the sub-address is cut off the address.
func MatchMailaddr(addr, entry, delim string) bool {
	return matchMailFolded(Fold(addr), Fold(entry), delim)
}

func matchMailFolded(addr, entry, delim string) bool {
	if entry == "@" {
		return true
	}
	if entry == "" || addr == "" {
		return entry == addr
	}
	user, domain, _ := cutLast(addr, '@')
	wantUser, wantDomain, _ := cutLast(entry, '@')
	if wantDomain != "" && !matchFolded(domain, wantDomain) {
		return false
	}
	if wantUser == "" {
		return true
	}
	if delim != "" && !strings.Contains(wantUser, delim) {
		user, _, _ = strings.Cut(user, delim)
	}
	return user == wantUser
}

// domainSet finds the pattern that a domain matches without walking all of
// them: those of the form "*tail" and ".tail" are found by their tail.
type domainSet struct {
	tails map[string]struct{} // "*tail", by tail: the match begins at the first place of its first octet
	first []byte              // the first octets of tails
	below map[string]struct{} // ".tail"
	other []string            // patterns that must be tried one by one
}

// isPattern reports an entry that equality does not decide.
func isPattern(entry string) bool {
	return strings.HasPrefix(entry, ".") || strings.Contains(entry, "*")
}

func (ds *domainSet) add(pattern string) {
	tail, ok := strings.CutPrefix(pattern, "*")
	switch {
	case strings.HasPrefix(pattern, ".") && !strings.Contains(pattern, "*"):
		if ds.below == nil {
			ds.below = map[string]struct{}{}
		}
		ds.below[pattern] = struct{}{}
	case ok && tail != "" && !strings.Contains(tail, "*"):
		if ds.tails == nil {
			ds.tails = map[string]struct{}{}
		}
		ds.tails[tail] = struct{}{}
		if strings.IndexByte(string(ds.first), tail[0]) < 0 {
			ds.first = append(ds.first, tail[0])
		}
	default:
		ds.other = append(ds.other, pattern)
	}
}

func (ds *domainSet) match(domain string) bool {
	for _, c := range ds.first {
		if i := strings.IndexByte(domain, c); i >= 0 {
			if _, ok := ds.tails[domain[i:]]; ok {
				return true
			}
		}
	}
	if ds.below != nil {
		for i := 1; i < len(domain); i++ {
			if domain[i] == '.' {
				if _, ok := ds.below[domain[i:]]; ok {
					return true
				}
			}
		}
	}
	for _, p := range ds.other {
		if matchFolded(domain, p) {
			return true
		}
	}
	return false
}

// netSet finds the network that an address lies in: one probe for each length
// of prefix there is.
type netSet struct {
	nets map[netip.Prefix]struct{}
	v4   []int // lengths of prefix
	v6   []int
}

func (ns *netSet) add(p netip.Prefix) {
	if ns.nets == nil {
		ns.nets = map[netip.Prefix]struct{}{}
	}
	p = p.Masked()
	ns.nets[p] = struct{}{}
	lengths := &ns.v6
	if p.Addr().Is4() {
		lengths = &ns.v4
	}
	for _, n := range *lengths {
		if n == p.Bits() {
			return
		}
	}
	*lengths = append(*lengths, p.Bits())
}

func (ns *netSet) match(a netip.Addr) bool {
	lengths := ns.v6
	if a.Is4() {
		lengths = ns.v4
	}
	for _, n := range lengths {
		p, err := a.Prefix(n)
		if err != nil {
			continue
		}
		if _, ok := ns.nets[p]; ok {
			return true
		}
	}
	return false
}
