// Package dnstest is a name server for tests: it serves the records of a zone
// text on a free loopback port, over UDP and TCP, and can be told to misbehave.
// It owns its sockets and their goroutines until Close.
package dnstest

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/miekg/dns"
)

// Server answers questions. It is safe for concurrent use.
type Server struct {
	addr    string
	servers [2]*dns.Server
	done    sync.WaitGroup

	mu     sync.Mutex
	zone   *zone
	counts map[dns.Question]int
}

// zone is a zone text, read.
type zone struct {
	records  map[string][]dns.RR // by lower-case owner
	servfail map[string]bool
	drop     map[string]bool
	truncate map[string]bool
	ad       bool
}

// Start serves a zone text until Close. The text is a master file (RFC 1035
// section 5) with origin "." and a TTL of 60 s where it names neither, so final
// dots may be left out: "mx.example.org A 192.0.2.1". An owner may begin with a
// "*" label. Names that no record has, or lies below, do not exist. Lines that
// begin with "!" are orders:
//
//	!servfail NAME   answer SERVFAIL to all questions for NAME
//	!drop NAME       do not answer questions for NAME
//	!truncate NAME   cut answers over UDP, so that TCP must be used
//	!ad              say that answers were validated
func Start(text string) (*Server, error) { return StartAt("127.0.0.1:0", text) }

// StartAt is Start on an address, for a test that has a network to itself.
func StartAt(addr, text string) (*Server, error) {
	z, err := parse(text)
	if err != nil {
		return nil, err
	}
	s := &Server{zone: z, counts: map[dns.Question]int{}}
	l, pc, err := listen(addr)
	if err != nil {
		return nil, err
	}
	s.addr = l.Addr().String()
	s.servers[0] = &dns.Server{Listener: l, Handler: s.handler(false)}
	s.servers[1] = &dns.Server{PacketConn: pc, Handler: s.handler(true)}
	for _, srv := range s.servers {
		up := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(up) }
		s.done.Go(func() { srv.ActivateAndServe() })
		<-up
	}
	return s, nil
}

// listen binds one port for both protocols. A port that is free for TCP may be
// taken for UDP, so it tries again.
func listen(addr string) (net.Listener, net.PacketConn, error) {
	for try := 0; ; try++ {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return nil, nil, fmt.Errorf("dnstest: %w", err)
		}
		pc, err := net.ListenPacket("udp", l.Addr().String())
		if err == nil {
			return l, pc, nil
		}
		l.Close()
		if !errors.Is(err, syscall.EADDRINUSE) || try > 20 {
			return nil, nil, fmt.Errorf("dnstest: %w", err)
		}
	}
}

// Addr is where the server listens: "127.0.0.1:port".
func (s *Server) Addr() string { return s.addr }

// SetZone replaces the zone.
func (s *Server) SetZone(text string) error {
	z, err := parse(text)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.zone = z
	return nil
}

// Queries is how often the name was asked for with that type, over either
// protocol, with an answer or without.
func (s *Server) Queries(name string, qtype uint16) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[dns.Question{Name: canonical(name), Qtype: qtype, Qclass: dns.ClassINET}]
}

// Close ends the server and waits for its goroutines.
func (s *Server) Close() {
	for _, srv := range s.servers {
		srv.Shutdown()
	}
	s.done.Wait()
}

func canonical(name string) string { return strings.ToLower(dns.Fqdn(name)) }

func parse(text string) (*zone, error) {
	z := &zone{records: map[string][]dns.RR{}, servfail: map[string]bool{},
		drop: map[string]bool{}, truncate: map[string]bool{}}
	var master strings.Builder
	for i, line := range strings.Split(text, "\n") {
		order, isOrder := strings.CutPrefix(strings.TrimSpace(line), "!")
		if !isOrder {
			master.WriteString(line)
		} else if err := z.order(order); err != nil {
			return nil, fmt.Errorf("dnstest: line %d: %w", i+1, err)
		}
		master.WriteByte('\n')
	}
	zp := dns.NewZoneParser(strings.NewReader(master.String()), ".", "zone")
	zp.SetDefaultTTL(60)
	for rr, ok := zp.Next(); ok; rr, ok = zp.Next() {
		owner := canonical(rr.Header().Name)
		z.records[owner] = append(z.records[owner], rr)
	}
	if err := zp.Err(); err != nil {
		return nil, fmt.Errorf("dnstest: %w", err)
	}
	return z, nil
}

func (z *zone) order(text string) error {
	f := strings.Fields(text)
	if len(f) == 1 && f[0] == "ad" {
		z.ad = true
		return nil
	}
	sets := map[string]map[string]bool{"servfail": z.servfail, "drop": z.drop, "truncate": z.truncate}
	if len(f) != 2 || sets[f[0]] == nil {
		return fmt.Errorf("unknown order !%s", text)
	}
	sets[f[0]][canonical(f[1])] = true
	return nil
}

func (s *Server) handler(udp bool) dns.HandlerFunc {
	return func(w dns.ResponseWriter, q *dns.Msg) {
		if len(q.Question) != 1 {
			return
		}
		question := q.Question[0]
		question.Name = canonical(question.Name)
		s.mu.Lock()
		s.counts[question]++
		z := s.zone
		s.mu.Unlock()
		if m := z.answer(q, question, udp); m != nil {
			w.WriteMsg(m)
		}
	}
}

// answer is what the zone says; nil: nothing.
func (z *zone) answer(q *dns.Msg, question dns.Question, udp bool) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q)
	m.RecursionAvailable = true
	m.AuthenticatedData = z.ad
	switch name := question.Name; {
	case z.drop[name]:
		return nil
	case z.servfail[name]:
		m.Rcode = dns.RcodeServerFailure
		return m
	case z.truncate[name] && udp:
		m.Truncated = true
		return m
	}
	name := question.Name
	for range 8 { // a chain of CNAMEs
		rrs, exists := z.find(name)
		if !exists {
			m.Rcode = dns.RcodeNameError
		}
		next := ""
		for _, rr := range rrs {
			c, isCNAME := rr.(*dns.CNAME)
			if rr.Header().Rrtype == question.Qtype {
				m.Answer = append(m.Answer, rr)
			} else if isCNAME {
				m.Answer = append(m.Answer, rr)
				next = canonical(c.Target)
			}
		}
		if next == "" {
			break
		}
		name = next
	}
	if len(m.Answer) == 0 {
		m.Ns = append(m.Ns, &dns.SOA{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: 60},
			Ns: "ns.invalid.", Mbox: "root.invalid.", Serial: 1, Refresh: 60, Retry: 60, Expire: 60, Minttl: 60})
	}
	if opt := q.IsEdns0(); opt != nil && udp {
		m.SetEdns0(opt.UDPSize(), opt.Do())
		m.Truncate(int(opt.UDPSize()))
	} else if udp {
		m.Truncate(dns.MinMsgSize)
	} else {
		m.Truncate(dns.MaxMsgSize)
	}
	return m
}

// find is the records of a name, with the owner set to it when they come from a
// wildcard, and whether the name exists at all.
func (z *zone) find(name string) (rrs []dns.RR, exists bool) {
	if rrs, ok := z.records[name]; ok {
		return rrs, true
	}
	for owner := range z.records {
		if dns.IsSubDomain(name, owner) {
			return nil, true // an empty non-terminal (RFC 4592 section 2.2.2)
		}
	}
	labels := dns.SplitDomainName(name)
	for i := 1; i <= len(labels); i++ {
		parent := canonical(strings.Join(labels[i:], "."))
		wild, ok := z.records[canonical("*."+strings.TrimPrefix(parent, "."))]
		if !ok {
			continue
		}
		for _, rr := range slices.Clone(wild) {
			rr = dns.Copy(rr)
			rr.Header().Name = name
			rrs = append(rrs, rr)
		}
		return rrs, true
	}
	return nil, false
}
