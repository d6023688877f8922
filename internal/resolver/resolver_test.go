package resolver

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"smtpd/internal/resolver/dnstest"
)

// clock is a time that tests move.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

const zoneText = `
example.org		300 MX	10 mx1.example.org
example.org		60  MX	20 mx2.example.org
example.org		TXT	"v=spf1" " -all" "a\"b\\c\009d"
_25._tcp.mx1.example.org	TLSA	3 1 1 0102ff
mx1.example.org		A	127.0.0.3
mx1.example.org		AAAA	2001:db8::3
www.example.org		CNAME	alias.example.org
alias.example.org	CNAME	mx1.example.org
dangling.example.org	CNAME	nosuch.example.org
loop1.example.org	CNAME	loop2.example.org
loop2.example.org	CNAME	loop1.example.org
null.example.org	MX	0 .
3.0.0.127.in-addr.arpa	PTR	mx1.example.org
xn--bcher-kva.example	A	127.0.0.9
!servfail broken.example.org
!truncate big.example.org
big.example.org		A	127.0.0.6
`

func start(t *testing.T, text string) *dnstest.Server {
	t.Helper()
	s, err := dnstest.Start(text)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func open(t *testing.T, o Options) *Resolver {
	t.Helper()
	if o.Hosts == "" {
		o.Hosts = os.DevNull
	}
	r := New(o)
	t.Cleanup(r.Close)
	return r
}

// bound is a context that ends a test that hangs.
func bound(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func show(a Answer) string {
	var b strings.Builder
	b.WriteString(a.Result.String())
	for _, r := range a.Records {
		fmt.Fprintf(&b, " %d:%q/%d", r.Pref, r.Data, r.TTL)
	}
	if a.AD {
		b.WriteString(" ad")
	}
	return b.String()
}

func TestLookup(t *testing.T) {
	s := start(t, zoneText)
	r := open(t, Options{Servers: []string{s.Addr()}, Now: newClock().now})
	tests := map[string]struct {
		name  string
		qtype uint16
		want  string
	}{
		"mx":                {"example.org", TypeMX, `ok 10:"mx1.example.org"/300 20:"mx2.example.org"/60`},
		"case, final dot":   {"Example.ORG.", TypeMX, `ok 10:"mx1.example.org"/300 20:"mx2.example.org"/60`},
		"null mx":           {"null.example.org", TypeMX, `ok 0:"."/60`},
		"txt":               {"example.org", TypeTXT, `ok 0:"v=spf1 -alla\"b\\c\td"/60`},
		"tlsa":              {"_25._tcp.mx1.example.org", TypeTLSA, `ok 0:"\x03\x01\x01\x01\x02\xff"/60`},
		"a":                 {"mx1.example.org", TypeA, `ok 0:"127.0.0.3"/60`},
		"aaaa":              {"mx1.example.org", TypeAAAA, `ok 0:"2001:db8::3"/60`},
		"chain of cnames":   {"www.example.org", TypeA, `ok 0:"127.0.0.3"/60`},
		"cname itself":      {"www.example.org", TypeCNAME, `ok 0:"alias.example.org"/60`},
		"cname to nothing":  {"dangling.example.org", TypeA, "no-such-name"},
		"loop of cnames":    {"loop1.example.org", TypeA, "no-data"},
		"ptr":               {"3.0.0.127.in-addr.arpa", TypePTR, `ok 0:"mx1.example.org"/60`},
		"no data":           {"example.org", TypeA, "no-data"},
		"no such name":      {"nosuch.example.org", TypeA, "no-such-name"},
		"servfail":          {"broken.example.org", TypeA, "failure"},
		"over tcp":          {"big.example.org", TypeA, `ok 0:"127.0.0.6"/60`},
		"international":     {"Bücher.example", TypeA, `ok 0:"127.0.0.9"/60`},
		"empty":             {"", TypeA, "no-such-name"},
		"root":              {".", TypeA, "no-such-name"},
		"empty label":       {"a..b", TypeA, "no-such-name"},
		"long label":        {strings.Repeat("a", 64) + ".org", TypeA, "no-such-name"},
		"long name":         {strings.Repeat("abc.", 64) + "org", TypeA, "no-such-name"},
		"blank":             {"a b", TypeA, "no-such-name"},
		"type we never ask": {"example.org", 255, "no-data"},
		"localhost":         {"localhost", TypeA, `ok 0:"127.0.0.1"/60`},
		"localhost, v6":     {"LOCALHOST", TypeAAAA, `ok 0:"::1"/60`},
		"localhost, back":   {"1.0.0.127.in-addr.arpa", TypePTR, `ok 0:"localhost"/60`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := show(r.Lookup(bound(t), tt.name, tt.qtype)); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestCache(t *testing.T) {
	s := start(t, zoneText)
	c := newClock()
	r := open(t, Options{Servers: []string{s.Addr()}, Now: c.now})
	steps := []struct {
		name    string
		wait    time.Duration
		host    string
		qtype   uint16
		want    string
		queries int
	}{
		{"first", 0, "example.org", TypeMX, `ok 10:"mx1.example.org"/300 20:"mx2.example.org"/60`, 1},
		{"kept, aged", 59 * time.Second, "example.org", TypeMX, `ok 10:"mx1.example.org"/241 20:"mx2.example.org"/1`, 1},
		{"least TTL over", time.Second, "example.org", TypeMX, `ok 10:"mx1.example.org"/300 20:"mx2.example.org"/60`, 2},
		{"negative", 0, "nosuch.example.org", TypeA, "no-such-name", 1},
		{"negative kept", 59 * time.Second, "nosuch.example.org", TypeA, "no-such-name", 1},
		{"negative over", 2 * time.Second, "nosuch.example.org", TypeA, "no-such-name", 2},
		{"failure", 0, "broken.example.org", TypeA, "failure", 1},
		{"failure kept", 29 * time.Second, "broken.example.org", TypeA, "failure", 1},
		{"failure over", 2 * time.Second, "broken.example.org", TypeA, "failure", 2},
	}
	for _, st := range steps {
		c.add(st.wait)
		if got := show(r.Lookup(bound(t), st.host, st.qtype)); got != st.want {
			t.Errorf("%s: got %s, want %s", st.name, got, st.want)
		}
		if n := s.Queries(st.host, st.qtype); n != st.queries {
			t.Errorf("%s: got %d queries, want %d", st.name, n, st.queries)
		}
	}
}

func TestCacheIsBounded(t *testing.T) {
	r := open(t, Options{Servers: []string{"127.0.0.1:1"}})
	for i := range maxEntries + 100 {
		r.mu.Lock()
		r.makeRoom(r.now())
		r.cache[question{fmt.Sprint(i), TypeA}] = &entry{expires: r.now().Add(time.Hour)}
		r.mu.Unlock()
	}
	if n := len(r.cache); n > maxEntries {
		t.Errorf("got %d entries, want at most %d", n, maxEntries)
	}
}

func TestSingleFlight(t *testing.T) {
	asked, answer := make(chan struct{}, 100), make(chan struct{})
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		asked <- struct{}{}
		<-answer
		m := new(dns.Msg).SetReply(q)
		rr, _ := dns.NewRR("one.example. 60 A 127.0.0.1")
		m.Answer = append(m.Answer, rr)
		w.WriteMsg(m)
	})}
	up := make(chan struct{})
	srv.NotifyStartedFunc = func() { close(up) }
	go srv.ActivateAndServe()
	<-up
	defer srv.Shutdown()
	r := open(t, Options{Servers: []string{pc.LocalAddr().String()}})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if a := r.Lookup(bound(t), "one.example", TypeA); a.Result != OK {
				t.Errorf("got %s", show(a))
			}
		})
	}
	<-asked
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if a := r.Lookup(ctx, "one.example", TypeA); a.Result != Failure {
		t.Errorf("an ended context: got %s", show(a))
	}
	close(answer)
	wg.Wait()
	if n := len(asked); n != 0 {
		t.Errorf("got %d more queries, want 1 in all", n)
	}
}

func TestServersTakeOver(t *testing.T) {
	broken := start(t, "!servfail example.org\n!servfail other.example.org")
	s := start(t, zoneText)
	c := newClock()
	r := open(t, Options{Servers: []string{"127.0.0.1:1", broken.Addr(), s.Addr()}, Now: c.now})
	if a := r.Lookup(bound(t), "example.org", TypeMX); a.Result != OK {
		t.Fatalf("got %s, want the third server's answer", show(a))
	}
	servers := r.files.current()
	if !servers[0].isDown(c.now()) || servers[1].isDown(c.now()) {
		t.Error("the first server is to count as down, the second not")
	}
	c.add(downFor)
	if servers[0].isDown(c.now()) {
		t.Error("a server is down for ever")
	}
}

func TestNoServer(t *testing.T) {
	c := newClock()
	r := open(t, Options{Servers: []string{"127.0.0.1:1"}, Now: c.now})
	if a := r.Lookup(bound(t), "example.org", TypeMX); a.Result != Failure {
		t.Errorf("got %s", show(a))
	}
	s := start(t, zoneText)
	r.SetServers([]string{s.Addr()})
	if a := r.Lookup(bound(t), "example.org", TypeMX); a.Result != OK {
		t.Errorf("after a new server: got %s", show(a))
	}
	r.Close()
	if a := r.Lookup(bound(t), "later.example.org", TypeMX); a.Result != Failure {
		t.Errorf("closed: got %s", show(a))
	}
}

func TestAD(t *testing.T) {
	s := start(t, "!ad\nexample.org A 127.0.0.1")
	host, port, _ := net.SplitHostPort(s.Addr())
	tests := map[string]struct {
		trust bool
		want  bool
	}{"believed": {true, true}, "not believed": {false, false}}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := open(t, Options{Servers: []string{net.JoinHostPort(host, port)}})
			r.files.refresh(time.Now())
			r.files.servers[0].trust = tt.trust
			if a := r.Lookup(bound(t), "example.org", TypeA); a.AD != tt.want {
				t.Errorf("got AD %v, want %v", a.AD, tt.want)
			}
		})
	}
}

func TestFilesAreWatched(t *testing.T) {
	dir := t.TempDir()
	conf, hosts := filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "hosts")
	write := func(path, text string) {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(conf, "# none\nnameserver 192.0.2.1\nnameserver ::1 ; here\noptions ndots:1 trust-ad\nnameserver nonsense\n")
	write(hosts, "127.0.0.1 localhost me.example.org # comment\n2001:db8::1\tme.example.org Alias\n::1 localhost\nnonsense x\n")
	c := newClock()
	r := open(t, Options{ResolvConf: conf, Hosts: hosts, Now: c.now})
	if a := show(r.Lookup(bound(t), "ME.example.org", TypeA)); a != `ok 0:"127.0.0.1"/60` {
		t.Errorf("got %s", a)
	}
	if a := show(r.Lookup(bound(t), "alias", TypeA)); a != "no-data" {
		t.Errorf("got %s", a)
	}
	if a := show(r.Reverse(bound(t), netip.MustParseAddr("2001:db8::1"))); a != `ok 0:"me.example.org"/60` {
		t.Errorf("got %s", a)
	}
	got := ""
	for _, s := range r.files.current() {
		got += fmt.Sprint(s.addr, s.trust, ";")
	}
	if want := "192.0.2.1:53true;[::1]:53true;"; got != want {
		t.Errorf("got servers %s, want %s", got, want)
	}
	write(hosts, "127.0.0.5 me.example.org\n")
	write(conf, "nameserver 192.0.2.77\n")
	c.add(checkFiles)
	if a := show(r.Lookup(bound(t), "me.example.org", TypeA)); a != `ok 0:"127.0.0.5"/60` {
		t.Errorf("after a change: got %s", a)
	}
	if s := r.files.current(); len(s) != 1 || s[0].addr != "192.0.2.77:53" || s[0].trust {
		t.Errorf("after a change: got %d servers, the first %s", len(s), s[0].addr)
	}
	os.Remove(conf)
	os.Remove(hosts)
	c.add(checkFiles)
	if a := show(r.Reverse(bound(t), netip.MustParseAddr("::1"))); a != `ok 0:"localhost"/60` {
		t.Errorf("without files: got %s", a)
	}
	if s := r.files.current(); len(s) != 1 || s[0].addr != "127.0.0.1:53" {
		t.Errorf("without files: got %d servers, the first %s", len(s), s[0].addr)
	}
}

func TestAddrs(t *testing.T) {
	s := start(t, zoneText)
	r := open(t, Options{Servers: []string{s.Addr()}})
	tests := map[string]struct {
		name string
		want string
	}{
		"both families": {"mx1.example.org", "[2001:db8::3 127.0.0.3] ok"},
		"one":           {"big.example.org", "[127.0.0.6] ok"},
		"none":          {"example.org", "[] no-data"},
		"no such name":  {"nosuch.example.org", "[] no-such-name"},
		"failure":       {"broken.example.org", "[] failure"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			addrs, res := r.Addrs(bound(t), tt.name)
			if got := fmt.Sprint(addrs, " ", res); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestReverse(t *testing.T) {
	s := start(t, zoneText+"3.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa PTR six.example.org\n")
	r := open(t, Options{Servers: []string{s.Addr()}})
	for addr, want := range map[string]string{"127.0.0.3": "mx1.example.org", "2001:db8::3": "six.example.org",
		"::ffff:127.0.0.3": "mx1.example.org", "127.0.0.1": "localhost"} {
		a := r.Reverse(bound(t), netip.MustParseAddr(addr))
		if len(a.Records) != 1 || a.Records[0].Data != want {
			t.Errorf("%s: got %s, want %s", addr, show(a), want)
		}
	}
}

func FuzzRead(f *testing.F) {
	for _, text := range []string{"x.example. MX 10 mx.example.", "x.example. CNAME y.example.", `x.example. TXT "\\001"`,
		"x.example. TLSA 3 1 1 00ff", "x.example. A 127.0.0.1"} {
		rr, err := dns.NewRR(text)
		if err != nil {
			f.Fatal(err)
		}
		m := new(dns.Msg).SetQuestion("x.example.", rr.Header().Rrtype)
		m.Answer = append(m.Answer, rr)
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, rr.Header().Rrtype)
	}
	f.Fuzz(func(t *testing.T, b []byte, qtype uint16) {
		m := new(dns.Msg)
		if m.Unpack(b) != nil {
			return
		}
		a, ttl := read(m, question{"x.example", qtype}, true)
		if (a.Result == OK) != (len(a.Records) > 0) || len(a.Records) > MaxRecords || ttl > maxTTL {
			t.Errorf("got %s for %v", show(a), ttl)
		}
		for _, r := range a.Records {
			if len(r.Data) > MaxData {
				t.Errorf("%d octets of data", len(r.Data))
			}
		}
	})
}

func BenchmarkCached(b *testing.B) {
	s, err := dnstest.Start(zoneText)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	r := New(Options{Servers: []string{s.Addr()}, Hosts: os.DevNull})
	defer r.Close()
	b.ReportAllocs()
	for b.Loop() {
		if a := r.Lookup(b.Context(), "mx1.example.org", TypeA); a.Result != OK {
			b.Fatal(a)
		}
	}
}

// Of more MX records than are kept those go that are preferred least.
func TestManyMX(t *testing.T) {
	text := ""
	for i := range 2000 {
		text += fmt.Sprintf("many.example MX %d m%d.example\n", 5000-i, i)
	}
	s := start(t, text)
	r := open(t, Options{Servers: []string{s.Addr()}, Now: newClock().now})
	a := r.Lookup(bound(t), "many.example", TypeMX)
	if a.Result != OK || len(a.Records) != MaxRecords || a.Records[0].Pref != 3001 || a.Records[MaxRecords-1].Pref != 3256 {
		t.Errorf("%s, %d records, the first %v", a.Result, len(a.Records), a.Records[:min(1, len(a.Records))])
	}
}
