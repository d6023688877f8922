package mta

import (
	"cmp"
	"context"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"golang.org/x/net/idna"
)

// Bounds on what the name system may make us do for one destination. Ours: no
// domain needs more, and each costs a question or a connection.
const (
	maxMX        = 32 // names, the best first
	maxAddrs     = 64 // addresses in all
	maxQuestions = 8  // asked at the same time
)

// candidate is one address that mail for a relay may go to.
type candidate struct {
	name string // of the MX or the host given; the address for a literal
	pref int    // smaller is better
	addr netip.Addr
	rank int // those of one rank are tried by fewest connections; see rank
}

// destination is what is looked up.
type destination struct {
	name   string // domain, host, or address, perhaps in brackets
	isHost bool   // no MX: the addresses of name itself
	backup string // name that stands for us in the MX list; empty: none
	isSelf func(netip.Addr) bool
}

// resolve finds the candidates of a destination, best first and otherwise in
// random order (RFC 5321 section 5.1), or why there are none.
func resolve(ctx context.Context, dns DNS, d destination) ([]candidate, *failure) {
	if addr, ok := literal(d.name); ok {
		return []candidate{{name: addr.String(), addr: addr}}, nil
	}
	name, ok := hostName(d.name)
	if !ok {
		return nil, &failBadDomain
	}
	if d.isHost {
		addrs, result := addresses(ctx, dns, name)
		if len(addrs) == 0 {
			return nil, hostFailure(result)
		}
		return candidates(name, 0, addrs), nil
	}
	names, fail := exchangers(ctx, dns, name)
	if fail != nil {
		return nil, fail
	}
	found, fail := exchangerAddresses(ctx, dns, names)
	if fail != nil {
		return nil, fail
	}
	if d.backup != "" {
		return better(found, names, d.backup)
	}
	return notOurselves(found, name, d.isSelf)
}

func hostFailure(result Result) *failure {
	if result == DNSFailure {
		f := failNoHost.with("temporary failure of the name system")
		return &f
	}
	return &failNoHost
}

// mx is one MX record.
type mx struct {
	name string
	pref int
}

// exchangers are the MX of a domain, best first; the domain itself when it has
// none.
func exchangers(ctx context.Context, dns DNS, domain string) ([]mx, *failure) {
	records, result := dns.Query(ctx, domain, TypeMX)
	switch {
	case result == DNSNoName:
		return nil, &failNoDomain
	case result == DNSNoData, result == DNSOK && len(records) == 0:
		return []mx{{domain, 0}}, nil
	case result != DNSOK:
		return nil, &failMXLookup
	}
	if len(records) == 1 && isNullMX(records[0]) {
		return nil, &failNullMX
	}
	names := make([]mx, 0, len(records))
	for _, r := range records {
		if n, ok := hostName(strings.TrimSuffix(r.Data, ".")); ok && !isNullMX(r) {
			names = append(names, mx{n, int(r.Pref)})
		}
	}
	rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	slices.SortStableFunc(names, func(a, b mx) int { return a.pref - b.pref })
	return names[:min(len(names), maxMX)], nil
}

// isNullMX reports an exchanger that says: no mail (RFC 7505). "localhost" is
// what others write for it.
func isNullMX(r Record) bool {
	name := strings.ToLower(strings.TrimSuffix(r.Data, "."))
	return name == "" || name == "localhost"
}

// exchangerAddresses are the addresses of all names, in their order. Names
// without any are left out; when none is left the failure says why.
func exchangerAddresses(ctx context.Context, dns DNS, names []mx) ([]candidate, *failure) {
	type answer struct {
		addrs  []netip.Addr
		result Result
	}
	answers := make([]answer, len(names))
	sem := make(chan struct{}, maxQuestions)
	var wg sync.WaitGroup
	for i, n := range names {
		sem <- struct{}{}
		wg.Go(func() {
			answers[i].addrs, answers[i].result = addresses(ctx, dns, n.name)
			<-sem
		})
	}
	wg.Wait()
	var found []candidate
	failed := false
	for i, a := range answers {
		found = append(found, candidates(names[i].name, names[i].pref, a.addrs)...)
		failed = failed || a.result == DNSFailure
	}
	switch {
	case len(found) > 0:
		return found[:min(len(found), maxAddrs)], nil
	case failed:
		return nil, &failMXLookup
	}
	return nil, &failNoMX
}

// addresses are the IPv6 and IPv4 addresses of a name, in turn. The result is
// DNSFailure when there are none and one question failed.
func addresses(ctx context.Context, dns DNS, name string) ([]netip.Addr, Result) {
	var six []Record
	var result6 Result
	var wg sync.WaitGroup
	wg.Go(func() { six, result6 = dns.Query(ctx, name, TypeAAAA) })
	four, result4 := dns.Query(ctx, name, TypeA)
	wg.Wait()
	var addrs []netip.Addr
	for i := range max(len(six), len(four)) {
		for _, list := range [][]Record{six, four} {
			if i >= len(list) {
				continue
			}
			if a, err := netip.ParseAddr(list[i].Data); err == nil {
				addrs = append(addrs, a.Unmap())
			}
		}
	}
	switch {
	case len(addrs) > 0:
		return addrs, DNSOK
	case result4 == DNSFailure || result6 == DNSFailure:
		return nil, DNSFailure
	case result4 == DNSNoName:
		return nil, DNSNoName
	}
	return nil, DNSNoData
}

func candidates(name string, pref int, addrs []netip.Addr) []candidate {
	cs := make([]candidate, len(addrs))
	for i, a := range addrs {
		cs[i] = candidate{name: name, pref: pref, addr: a}
	}
	return cs
}

// rank gives each preference a rank, and in it each family when one of them
// ("inet4" or "inet6") shall come first.
func rank(found []candidate, family string) {
	other := func(c candidate) int {
		if family != "" && c.addr.Is4() != (family == "inet4") {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(found, func(a, b candidate) int {
		return cmp.Or(a.pref-b.pref, other(a)-other(b))
	})
	for i := 1; i < len(found); i++ {
		found[i].rank = found[i-1].rank
		if found[i].pref != found[i-1].pref || other(found[i]) != other(found[i-1]) {
			found[i].rank++
		}
	}
}

// better keeps what is preferred to the exchanger of that name: we are a backup
// for the domain. A name that is not in the list keeps all.
func better(found []candidate, names []mx, self string) ([]candidate, *failure) {
	for _, n := range names {
		if strings.EqualFold(n.name, self) {
			found = slices.DeleteFunc(found, func(c candidate) bool { return c.pref >= n.pref })
			break
		}
	}
	if len(found) == 0 {
		return nil, &failNoBackup
	}
	return found, nil
}

// notOurselves drops, when one of the candidates is ourselves, it and all that
// are not preferred to it (RFC 5321 section 5.1).
func notOurselves(found []candidate, domain string, isSelf func(netip.Addr) bool) ([]candidate, *failure) {
	for _, c := range found { // best first
		if isSelf == nil || !isSelf(c.addr) {
			continue
		}
		found = slices.DeleteFunc(found, func(o candidate) bool { return o.pref >= c.pref })
		break
	}
	if len(found) == 0 {
		f := failLoop(domain)
		return nil, &f
	}
	return found, nil
}

// literal is the address of "[192.0.2.1]", "[IPv6:...]", or of one without
// brackets.
func literal(s string) (netip.Addr, bool) {
	if in, ok := strings.CutPrefix(s, "["); ok {
		if in, ok = strings.CutSuffix(in, "]"); !ok {
			return netip.Addr{}, false
		}
		s = in
		if len(s) > 5 && strings.EqualFold(s[:5], "IPv6:") {
			s = s[5:]
		}
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, false
	}
	return a.Unmap(), true
}

// hostName is s as the name system is asked for it: lower case, A-labels.
// RFC 1035 section 2.3.4 bounds it; an underscore is let pass.
func hostName(s string) (string, bool) {
	s = strings.TrimSuffix(s, ".")
	for i := range len(s) {
		if s[i] >= 0x80 {
			a, err := idna.Lookup.ToASCII(s)
			if err != nil {
				return "", false
			}
			s = a
			break
		}
	}
	s = strings.ToLower(s)
	if s == "" || len(s) > 253 {
		return "", false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return "", false
		}
		for _, c := range []byte(label) {
			if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
				return "", false
			}
		}
	}
	return s, true
}
