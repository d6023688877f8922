package resolver

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"smtpd/internal/mail"
)

// Time limits of one exchange with one server, and the pause after which a
// server that did not answer is tried before the others again.
const (
	firstTry  = 2 * time.Second
	secondTry = 4 * time.Second
	tcpTry    = 5 * time.Second
	wholeTry  = 15 * time.Second
	downFor   = 10 * time.Second
	udpSize   = 1232 // what passes without fragments (DNS flag day 2020)
)

// server is a recursive server and its health.
type server struct {
	addr  string
	trust bool // its AD may be believed

	mu   sync.Mutex
	down time.Time // tried after the others until then
}

func (s *server) isDown(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return now.Before(s.down)
}

func (s *server) mark(answered bool, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = time.Time{}
	if !answered {
		s.down = now.Add(downFor)
	}
}

// ask puts a question to the servers, those that are well first, twice around.
// It tells how long the answer may be kept, and whose it is.
func (r *Resolver) ask(q question) (Answer, time.Duration, string) {
	ctx, cancel := context.WithTimeout(r.ctx, wholeTry)
	defer cancel()
	servers := r.files.current()
	now := r.now()
	slices.SortStableFunc(servers, func(a, b *server) int { return order(a.isDown(now), b.isDown(now)) })
	keep := deadTTL
	for _, limit := range []time.Duration{firstTry, secondTry} {
		timedOut := false
		for _, s := range servers {
			m, err := exchange(ctx, s, q, limit)
			if ctx.Err() != nil {
				return Answer{Result: Failure}, keep, noServer
			}
			s.mark(err == nil, r.now())
			if err != nil {
				r.tell(func() string {
					return mail.Clean(fmt.Sprintf("dns %s %s: %s: %v", dns.TypeToString[q.qtype], q.name, s.addr, err), maxTracedText)
				})
				ne, ok := err.(net.Error)
				timedOut = timedOut || (ok && ne.Timeout())
				continue
			}
			a, ttl := read(m, q, s.trust)
			if a.Result != Failure {
				return a, ttl, s.addr
			}
			r.tell(func() string {
				return fmt.Sprintf("dns %s %s: %s: %s", dns.TypeToString[q.qtype], q.name, s.addr, dns.RcodeToString[m.Rcode])
			})
			keep = failTTL
		}
		if !timedOut {
			break // they refused at once, or failed: asking again helps nobody
		}
	}
	return Answer{Result: Failure}, keep, noServer
}

// noServer is where the answer is from when no server gave one.
const noServer = "no server"

// order sorts false before true.
func order(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// exchange asks one server: by UDP, by TCP when the answer was cut, and without
// EDNS when the server does not know that.
func exchange(ctx context.Context, s *server, q question, limit time.Duration) (*dns.Msg, error) {
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(q.name), q.qtype)
	m.AuthenticatedData = true // RFC 6840 section 5.7: we understand AD
	m.SetEdns0(udpSize, false)
	udp := &dns.Client{Net: "udp", Timeout: limit, UDPSize: udpSize}
	a, _, err := udp.ExchangeContext(ctx, m, s.addr)
	if err == nil && a.Rcode == dns.RcodeFormatError {
		m.Extra = nil
		a, _, err = udp.ExchangeContext(ctx, m, s.addr)
	}
	if err == nil && a.Truncated {
		tcp := &dns.Client{Net: "tcp", Timeout: tcpTry}
		a, _, err = tcp.ExchangeContext(ctx, m, s.addr)
	}
	if err != nil {
		return nil, err
	}
	if !a.Response || len(a.Question) != 1 || a.Question[0].Qtype != q.qtype ||
		!strings.EqualFold(a.Question[0].Name, dns.Fqdn(q.name)) {
		return nil, dns.ErrId // an answer to something else
	}
	return a, nil
}

// read turns a response into an answer.
func read(m *dns.Msg, q question, trust bool) (Answer, time.Duration) {
	a := Answer{AD: m.AuthenticatedData && trust}
	switch m.Rcode {
	case dns.RcodeSuccess:
	case dns.RcodeNameError:
		a.Result = NoSuchName
		return a, negativeTTL(m)
	default:
		return Answer{Result: Failure}, 0
	}
	owners := aliases(m, q)
	least := maxTTL
	for _, rr := range m.Answer {
		h := rr.Header()
		if h.Rrtype != q.qtype || h.Class != dns.ClassINET || !slices.Contains(owners, strings.ToLower(h.Name)) {
			continue
		}
		rec, ok := record(rr)
		if !ok || len(rec.Data) > MaxData {
			continue
		}
		a.Records = append(a.Records, rec)
		least = min(least, time.Duration(h.Ttl)*time.Second)
	}
	// What is dropped must not be the best: only MX records differ.
	slices.SortStableFunc(a.Records, func(a, b Record) int { return int(a.Pref) - int(b.Pref) })
	a.Records = slices.Clip(a.Records[:min(len(a.Records), MaxRecords)])
	if len(a.Records) == 0 {
		a.Result = NoData
		return a, negativeTTL(m)
	}
	return a, least
}

// maxAliases bounds the chain of CNAMEs that is followed within an answer.
const maxAliases = 16

// aliases are the owners that may answer q: its name and what CNAMEs make of
// it.
func aliases(m *dns.Msg, q question) []string {
	owners := []string{dns.Fqdn(q.name)}
	if q.qtype == TypeCNAME {
		return owners
	}
	for range maxAliases {
		n := len(owners)
		for _, rr := range m.Answer {
			c, ok := rr.(*dns.CNAME)
			if target := ""; ok && strings.EqualFold(c.Hdr.Name, owners[n-1]) {
				if target = strings.ToLower(c.Target); !slices.Contains(owners, target) {
					owners = append(owners, target)
					break
				}
			}
		}
		if len(owners) == n {
			break
		}
	}
	return owners
}

// negativeTTL is how long the absence of records may be believed (RFC 2308
// section 5); without an SOA record not at all, but a moment.
func negativeTTL(m *dns.Msg) time.Duration {
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			return min(time.Duration(min(soa.Minttl, soa.Hdr.Ttl))*time.Second, maxNoTTL)
		}
	}
	return deadTTL
}

func record(rr dns.RR) (Record, bool) {
	rec := Record{TTL: rr.Header().Ttl}
	switch v := rr.(type) {
	case *dns.A:
		a, ok := netip.AddrFromSlice(v.A)
		rec.Data = a.Unmap().String()
		return rec, ok
	case *dns.AAAA:
		a, ok := netip.AddrFromSlice(v.AAAA)
		rec.Data = a.String()
		return rec, ok
	case *dns.MX:
		rec.Pref, rec.Data = v.Preference, bareName(v.Mx)
	case *dns.PTR:
		rec.Data = bareName(v.Ptr)
	case *dns.CNAME:
		rec.Data = bareName(v.Target)
	case *dns.TXT:
		rec.Data = strings.Join(unescapeAll(v.Txt), "")
	case *dns.TLSA:
		octets, err := hex.DecodeString(v.Certificate)
		rec.Data = string([]byte{v.Usage, v.Selector, v.MatchingType}) + string(octets)
		return rec, err == nil
	default:
		return rec, false
	}
	return rec, true
}

func bareName(s string) string {
	if s == "." {
		return s
	}
	return strings.TrimSuffix(s, ".")
}

// unescapeAll gives the octets of TXT strings, which the library shows as a
// master file would write them.
func unescapeAll(parts []string) []string {
	out := make([]string, len(parts))
	for i, p := range parts {
		out[i] = unescape(p)
	}
	return out
}

func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 >= len(s) {
			b = append(b, s[i])
			continue
		}
		if d := s[i+1:]; len(d) >= 3 && isDigit(d[0]) && isDigit(d[1]) && isDigit(d[2]) {
			b = append(b, (d[0]-'0')*100+(d[1]-'0')*10+(d[2]-'0'))
			i += 3
			continue
		}
		i++
		b = append(b, s[i])
	}
	return string(b)
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }
