package lookup

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/log"
	"smtpd/internal/mail"
	"smtpd/internal/privsep"
	"smtpd/internal/resolver"
	"smtpd/internal/resolver/dnstest"
	"smtpd/internal/stat"
)

// secretHash is "secret" by crypt(3).
const secretHash = "$5$saltsalt$0IyaXrmV7.sGNS6tirgqHLqX/G.FBvgkYA.lpPdS5sA"

// house is the process with neighbours that tests play.
type house struct {
	asMDA                   atomic.Pointer[func(*ipc.Request)] // answers for mda
	stale                   atomic.Pointer[string]             // the table that smtp was last told of
	smtp, mta, mda, control *ipc.Link
	parent                  *fakeParent
	config                  chan *config.Config
	log                     *logged
	stop                    func()
}

// fakeParent answers as the parent does.
type fakeParent struct {
	link *ipc.Link

	mu       sync.Mutex
	users    map[string]*imsg.UserInfo
	forwards map[string]*imsg.ForwardFile
	asked    int           // questions for users
	block    chan struct{} // not nil: users are answered once it is closed
	waits    chan struct{} // gets one for each that waits for that
}

func (p *fakeParent) serve(r *ipc.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch m := r.Msg.(type) {
	case *imsg.UserQuery:
		p.asked++
		answer := p.users[m.Name]
		if answer == nil {
			answer = &imsg.UserInfo{Name: m.Name}
		}
		if p.block != nil {
			block := p.block
			p.waits <- struct{}{}
			go func() { <-block; r.Reply(answer, nil) }()
			return
		}
		r.Reply(answer, nil)
	case *imsg.ForwardOpen:
		answer := p.forwards[m.User]
		if answer == nil {
			answer = &imsg.ForwardFile{}
		}
		r.Reply(answer, nil)
	case *imsg.SystemAuth:
		r.Reply(&imsg.AuthResult{OK: m.User == "alice" && m.Password == "pw", Temporary: m.User == "later"}, nil)
	}
}

// logged is the log that a test looks at.
type logged struct {
	mu    sync.Mutex
	lines []string
	more  chan struct{}
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, string(b))
	select {
	case l.more <- struct{}{}:
	default:
	}
	return len(b), nil
}

func (l *logged) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.lines)
}

func (l *logged) has(text string) bool {
	return slices.ContainsFunc(l.all(), func(line string) bool { return strings.Contains(line, text) })
}

// wait waits for a line of the log.
func (l *logged) wait(t *testing.T, text string) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for !l.has(text) {
		select {
		case <-l.more:
		case <-deadline:
			t.Fatalf("no line %q in the log: %q", text, l.all())
		}
	}
}

// conf is a configuration with the tables and rules that the tests ask about.
func conf(t testing.TB) *config.Config {
	t.Helper()
	c := config.Defaults()
	c.ServerName, c.LocalNames = "mx.example.org", []string{"localhost", "mx.example.org"}
	mapping := func(name string, pairs ...string) {
		tab := &config.Table{Name: name, Backend: "static", Type: config.TableMapping}
		for i := 0; i < len(pairs); i += 2 {
			tab.Pairs = append(tab.Pairs, [2]string{pairs[i], pairs[i+1]})
		}
		c.Tables[name] = tab
	}
	mapping("aliases", "root", "alice", "both", "alice, bob", "sys", "|/bin/true")
	mapping("creds", "alice", secretHash, "bob", "bob:*", "odd", "clear")
	mapping("users", "virt", "5000:5000:/home/virt")
	mapping("senders", "alice", "alice@example.org, @own.test")
	mapping("hosts", "127.0.0.1", "helo.example.org")
	c.Tables["domains"] = &config.Table{Name: "domains", Backend: "static", Type: config.TableList, List: []string{"example.org", "*.wild.test"}}
	c.Tables["sources"] = &config.Table{Name: "sources", Backend: "static", Type: config.TableList, List: []string{"192.0.2.2", "192.0.2.1"}}
	c.Actions["local"] = &config.Action{Name: "local", Method: config.MethodMaildir, Alias: "aliases"}
	c.Actions["virt"] = &config.Action{Name: "virt", Method: config.MethodMaildir, Userbase: "users"}
	c.Actions["out"] = &config.Action{Name: "out", Method: config.MethodRelay, Relay: &config.Relay{}}
	c.Rules = []*config.Rule{
		{Pos: config.Pos{File: "smtpd.conf", Line: 1}, From: config.From{Kind: config.FromAny}, For: config.For{Kind: config.ForDomain, Match: config.Match{Table: "domains"}}, Action: "local"},
		{Pos: config.Pos{File: "smtpd.conf", Line: 2}, From: config.From{Kind: config.FromAny}, For: config.For{Kind: config.ForLocal}, Action: "virt"},
		{Pos: config.Pos{File: "smtpd.conf", Line: 3}, From: config.From{Kind: config.FromLocal}, For: config.For{Kind: config.ForAny}, Action: "out"},
	}
	return c
}

func start(t testing.TB, c *config.Config, unprivileged bool) *house {
	t.Helper()
	h := &house{config: make(chan *config.Config, 4), log: &logged{more: make(chan struct{}, 1)},
		parent: &fakeParent{
			users: map[string]*imsg.UserInfo{
				"alice": {Found: true, Name: "alice", UID: aliceUID, GID: 1001, Home: "/home/alice"},
				"bob":   {Found: true, Name: "bob", UID: aliceUID + 1, GID: 1002, Home: "/home/bob"},
				"me":    {Found: true, Name: "me", UID: uint32(os.Getuid()), GID: 1, Home: "/home/me"},
				"later": {Temporary: true, Name: "later"},
			},
			forwards: map[string]*imsg.ForwardFile{
				"bob": {Status: mail.Status{Code: 550, Enh: [3]uint8{5, 2, 4}, Text: "Mailing list expansion problem"},
					Reason: "/home/bob/.forward: insecure file"},
			},
		}}
	pair := func(peer imsg.Role) (near, far *ipc.Link) {
		near, far = ipc.NewLink(imsg.Lookup, peer), ipc.NewLink(peer, imsg.Lookup)
		if err := ipc.Connect(near, far); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(near.Close)
		return near, far
	}
	var p Peers
	var toParent *ipc.Link
	nobody := func(r *ipc.Request) {}
	p.SMTP, h.smtp = pair(imsg.SMTP)
	p.MTA, h.mta = pair(imsg.MTA)
	p.MDA, h.mda = pair(imsg.MDA)
	p.Control, h.control = pair(imsg.Control)
	toParent, h.parent.link = pair(imsg.Parent)
	for _, l := range []*ipc.Link{h.mta, h.control, toParent} {
		l.Serve(nobody, nil, nil)
	}
	h.smtp.Serve(func(r *ipc.Request) {
		switch m := r.Msg.(type) {
		case *imsg.TableStale:
			h.stale.Store(&m.Table)
			r.Reply(&imsg.Done{OK: true}, nil)
		case *imsg.TableTally: // the second is of a configuration that is gone
			r.Reply(&imsg.TableTallies{Tables: []imsg.TableCount{{Table: "sources", Lookups: 40, Misses: 2},
				{Table: "sources", Generation: 77, Lookups: 1000}, {Table: "nowhere", Lookups: 1}}}, nil)
		}
	}, nil, nil)
	h.mda.Serve(func(r *ipc.Request) {
		if f := h.asMDA.Load(); f != nil {
			(*f)(r)
		}
	}, nil, nil)
	h.parent.link.Serve(h.parent.serve, nil, nil)
	ready := make(chan struct{})
	env := &privsep.Env{Role: imsg.Lookup, Log: log.New(h.log, log.FormPlain), Stat: &stat.Set{}, Now: time.Now,
		Config: h.config, Parent: toParent, Unprivileged: unprivileged, Ready: sync.OnceFunc(func() { close(ready) })}
	h.config <- c
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, env, p) }()
	h.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("run: %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("run does not end")
		}
	})
	t.Cleanup(h.stop)
	select {
	case <-ready:
	case err := <-ended:
		t.Fatalf("run: %v", err)
	case <-time.After(20 * time.Second):
		t.Fatal("not ready")
	}
	return h
}

// ask is ipc.Ask with a bound, that fails the test.
func ask[A imsg.Msg](t testing.TB, l *ipc.Link, m imsg.Msg) A {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	a, err := ipc.Ask[A](ctx, l, m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func rcpt(addr string) *imsg.RcptCheck {
	return &imsg.RcptCheck{Session: 1, Envelope: mail.Envelope{Client: "127.0.0.1", Host: "localhost", Helo: "x",
		Sender: mail.SplitAddress("a@b.org"), Rcpt: mail.SplitAddress(addr)}}
}

// show prints an answer in one line.
func show(a *imsg.RcptAnswer) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s [%s]", a.Status.String(), a.Rule)
	for _, e := range a.Branches {
		fmt.Fprintf(&b, " %s:%s:%s:%s%s", e.Kind, e.Dispatcher, e.Dest, e.User, e.Exec)
	}
	return b.String()
}

const accepted = "250 2.1.5 Destination address valid: Recipient ok "

func TestRcptCheck(t *testing.T) {
	h := start(t, conf(t), false)
	tests := map[string]struct{ rcpt, want string }{
		"local user":     {"alice@example.org", accepted + "[smtpd.conf:1] mda:local:alice@example.org:alice"},
		"alias":          {"root@example.org", accepted + "[smtpd.conf:1] mda:local:root@example.org:alice"},
		"wildcard":       {"alice@x.wild.test", accepted + "[smtpd.conf:1] mda:local:alice@x.wild.test:alice"},
		"userbase":       {"virt@localhost", accepted + "[smtpd.conf:2] mda:virt:virt@localhost:virt"},
		"relay":          {"x@else.test", accepted + "[smtpd.conf:3] mta:out:x@else.test:"},
		"unknown user":   {"nobody@example.org", "550 5.1.1 Invalid recipient: <nobody@example.org> [smtpd.conf:1]"},
		"not in table":   {"alice@localhost", "550 5.1.1 Invalid recipient: <alice@localhost> [smtpd.conf:2]"},
		"user, not now":  {"later@example.org", "451 4.3.0 Temporary failure: <later@example.org> [smtpd.conf:1]"},
		"insecure":       {"bob@example.org", "550 5.2.4 Mailing list expansion problem: <bob@example.org> [smtpd.conf:1]"},
		"a branch fails": {"both@example.org", "550 5.2.4 Mailing list expansion problem: <both@example.org> [smtpd.conf:1]"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := show(ask[*imsg.RcptAnswer](t, h.smtp, rcpt(tt.rcpt))); got != tt.want {
				t.Errorf("got %s\nwant %s", got, tt.want)
			}
		})
	}
	if !h.log.has("warn: smtpd: /home/bob/.forward: insecure file") {
		t.Errorf("the log says nothing of the insecure file: %q", h.log.all())
	}
	m := rcpt("x@else.test")
	m.Envelope.Client = "192.0.2.1"
	if got, want := show(ask[*imsg.RcptAnswer](t, h.smtp, m)), "550 5.7.1 Invalid recipient: <x@else.test> []"; got != want {
		t.Errorf("relaying: got %s\nwant %s", got, want)
	}
	h.parent.mu.Lock()
	defer h.parent.mu.Unlock()
	if h.parent.asked != 4 {
		t.Errorf("got %d questions for users, want one each", h.parent.asked)
	}
}

// aliceUID is never that of who runs the tests.
var aliceUID = uint32(os.Getuid()) + 1001

func TestUnprivileged(t *testing.T) {
	h := start(t, conf(t), true)
	for addr, want := range map[string]string{
		"alice@example.org": "550 5.1.1 Invalid recipient: <alice@example.org> [smtpd.conf:1]",
		"me@example.org":    accepted + "[smtpd.conf:1] mda:local:me@example.org:me",
		"sys@example.org":   accepted + "[smtpd.conf:1] mda:local:sys@example.org:" + self().Name + "|/bin/true",
	} {
		if got := show(ask[*imsg.RcptAnswer](t, h.smtp, rcpt(addr))); got != want {
			t.Errorf("got %s\nwant %s", got, want)
		}
	}
}

// TestLongExpansion has a list whose envelopes do not fit one frame.
func TestLongExpansion(t *testing.T) {
	c := conf(t)
	var list []string
	for i := range 9000 {
		list = append(list, fmt.Sprintf("user%d-%s@else.test", i, strings.Repeat("x", 60)))
	}
	path := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(path, []byte(strings.Join(list, "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	c.Tables["aliases"].Pairs = append(c.Tables["aliases"].Pairs, [2]string{"list", ":include:" + path})
	h := start(t, c, false)
	a := ask[*imsg.RcptAnswer](t, h.smtp, rcpt("list@example.org"))
	got := map[string]bool{}
	parts := 0
	for {
		if a.Status.Code != 250 {
			t.Fatalf("got %v", a.Status)
		}
		parts++
		for _, e := range a.Branches {
			got[e.Dest.String()] = true
		}
		if a.More == 0 {
			break
		}
		a = ask[*imsg.RcptAnswer](t, h.smtp, &imsg.RcptMore{Token: a.More})
	}
	if len(got) != len(list) || parts < 2 {
		t.Errorf("got %d envelopes in %d parts, want %d", len(got), parts, len(list))
	}
	if a := ask[*imsg.RcptAnswer](t, h.smtp, &imsg.RcptMore{Token: 12345}); a.Status.Code != 451 {
		t.Errorf("an unknown token: got %v", a.Status)
	}
}

func TestAuth(t *testing.T) {
	h := start(t, conf(t), false)
	tests := map[string]struct {
		table, user, password string
		want                  imsg.AuthResult
	}{
		"right":              {"creds", "alice", "secret", imsg.AuthResult{OK: true}},
		"user is folded":     {"creds", "ALICE", "secret", imsg.AuthResult{OK: true}},
		"password is not":    {"creds", "alice", "Secret", imsg.AuthResult{}},
		"nobody":             {"creds", "carol", "secret", imsg.AuthResult{}},
		"locked":             {"creds", "bob", "secret", imsg.AuthResult{}},
		"unknown hash":       {"creds", "odd", "clear", imsg.AuthResult{}},
		"empty":              {"creds", "alice", "", imsg.AuthResult{}},
		"no such table":      {"nosuch", "alice", "secret", imsg.AuthResult{Temporary: true}},
		"system":             {"", "alice", "pw", imsg.AuthResult{OK: true}},
		"system, wrong":      {"", "alice", "x", imsg.AuthResult{}},
		"system, not now":    {"", "later", "x", imsg.AuthResult{Temporary: true}},
		"control characters": {"creds", "alice\n", "secret", imsg.AuthResult{}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			a := ask[*imsg.AuthResult](t, h.smtp, &imsg.AuthCheck{Table: tt.table, User: tt.user, Password: tt.password})
			if *a != tt.want {
				t.Errorf("got %+v, want %+v", *a, tt.want)
			}
		})
	}
	for _, line := range h.log.all() {
		if strings.Contains(line, "clear") || strings.Contains(line, "secret") {
			t.Errorf("the log holds a password: %s", line)
		}
	}
}

func TestTables(t *testing.T) {
	h := start(t, conf(t), false)
	tests := map[string]struct {
		m    imsg.TableQuery
		want imsg.TableAnswer
	}{
		"lookup":          {imsg.TableQuery{Table: "hosts", Service: "addrname", Key: "127.0.0.1"}, imsg.TableAnswer{Found: true, Value: "helo.example.org"}},
		"not found":       {imsg.TableQuery{Table: "hosts", Service: "addrname", Key: "127.0.0.2"}, imsg.TableAnswer{}},
		"credentials":     {imsg.TableQuery{Table: "creds", Service: "credentials", Key: "odd"}, imsg.TableAnswer{Found: true, Value: "odd:clear"}},
		"check":           {imsg.TableQuery{Table: "domains", Service: "domain", Key: "a.WILD.test"}, imsg.TableAnswer{Found: true}},
		"check, no":       {imsg.TableQuery{Table: "domains", Service: "domain", Key: "else.test"}, imsg.TableAnswer{}},
		"bad value":       {imsg.TableQuery{Table: "creds", Service: "source", Key: "alice"}, imsg.TableAnswer{Temporary: true}},
		"no such table":   {imsg.TableQuery{Table: "nosuch", Service: "domain", Key: "x"}, imsg.TableAnswer{Temporary: true}},
		"no such service": {imsg.TableQuery{Table: "creds", Service: "frobnicate", Key: "x"}, imsg.TableAnswer{Temporary: true}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for _, l := range []*ipc.Link{h.mta, h.mda, h.smtp, h.control} {
				a := ask[*imsg.TableAnswer](t, l, &tt.m)
				if why := a.Reason; (why != "") != (tt.want.Temporary && l == h.control) { // the operator is told
					t.Errorf("%s: reason %q", l.Self, why)
				}
				if a.Reason = ""; *a != tt.want {
					t.Errorf("%s: got %+v, want %+v", l.Self, *a, tt.want)
				}
			}
		})
	}
	var got []string
	for range 3 {
		got = append(got, ask[*imsg.TableAnswer](t, h.mta, &imsg.TableQuery{Table: "sources", Service: "source", Fetch: true}).Value)
	}
	if want := "192.0.2.1 192.0.2.2 192.0.2.1"; strings.Join(got, " ") != want {
		t.Errorf("fetch: got %v, want %s", got, want)
	}
	for sender, want := range map[string]bool{"alice@example.org": true, "Alice+tag@Example.ORG": true, "x@own.test": true, "x@else.test": false, "": false} {
		a := ask[*imsg.TableAnswer](t, h.smtp, &imsg.SenderCheck{Table: "senders", User: "alice", Sender: mail.SplitAddress(sender)})
		if a.Found != want || a.Temporary {
			t.Errorf("sender %q: got %+v, want %v", sender, *a, want)
		}
	}
	if a := ask[*imsg.TableAnswer](t, h.smtp, &imsg.SenderCheck{Table: "senders", User: "bob"}); a.Found || a.Temporary {
		t.Errorf("a login without senders: got %+v", *a)
	}
	for key, want := range map[string]imsg.TableAnswer{ // a login, as a client's
		"alice:secret": {Found: true}, "Alice:secret": {Found: true}, "alice:Secret": {}, "nobody:secret": {}, "alice": {},
		"a\nlice:secret": {},
	} {
		if a := ask[*imsg.TableAnswer](t, h.control, &imsg.TableQuery{Table: "creds", Service: "auth", Key: key}); *a != want {
			t.Errorf("auth %q: got %+v, want %+v", key, *a, want)
		}
	}
	a := ask[*imsg.TableAnswer](t, h.control, &imsg.TableQuery{Table: "domains", Service: "domain", Key: "a\nb"})
	if a.Found || a.Temporary || a.Reason == "" {
		t.Errorf("a key that no table can hold: got %+v", *a)
	}
	lines := ask[*imsg.Lines](t, h.control, &imsg.Show{What: "tables"})
	if !strings.Contains(string(lines.Text), "sources|static|entries=2|lookups=43|misses=2|") || lines.More {
		t.Errorf("show tables: got %s", lines.Text)
	}
}

func TestUserbase(t *testing.T) {
	h := start(t, conf(t), false)
	tests := map[string]struct {
		table, user string
		want        imsg.UserInfo
	}{
		"system":        {"", "alice", imsg.UserInfo{Found: true, Name: "alice", UID: aliceUID, GID: 1001, Home: "/home/alice"}},
		"nobody":        {"", "nosuch", imsg.UserInfo{Name: "nosuch"}},
		"not now":       {"", "later", imsg.UserInfo{Name: "later", Temporary: true}},
		"table":         {"users", "virt", imsg.UserInfo{Found: true, Name: "virt", UID: 5000, GID: 5000, Home: "/home/virt"}},
		"not in table":  {"users", "alice", imsg.UserInfo{Name: "alice"}},
		"no such table": {"nosuch", "alice", imsg.UserInfo{Name: "alice", Temporary: true}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if a := ask[*imsg.UserInfo](t, h.mda, &imsg.UserbaseQuery{Table: tt.table, User: tt.user}); *a != tt.want {
				t.Errorf("got %+v, want %+v", *a, tt.want)
			}
		})
	}
}

func TestNames(t *testing.T) {
	srv, err := dnstest.Start(`
example.org MX 10 mx.example.org
mx.example.org A 192.0.2.7
7.2.0.192.in-addr.arpa PTR mx.example.org
8.2.0.192.in-addr.arpa PTR mx.example.org
9.2.0.192.in-addr.arpa PTR bad\032name.example.org
10.2.0.192.in-addr.arpa PTR broken.example.org
!servfail broken.example.org
!servfail 11.2.0.192.in-addr.arpa
`)
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	c := conf(t)
	c.Resolvers = []string{srv.Addr()}
	h := start(t, c, false)
	tests := map[string]imsg.ClientName{
		"192.0.2.7":  {Host: "mx.example.org", FCrDNS: "pass"},
		"192.0.2.8":  {Host: "mx.example.org", FCrDNS: "fail"},
		"192.0.2.9":  {Host: "<unknown>", FCrDNS: "fail"},
		"192.0.2.10": {Host: "broken.example.org", FCrDNS: "error"},
		"192.0.2.11": {Host: "<unknown>", FCrDNS: "error"},
		"192.0.2.12": {Host: "<unknown>", FCrDNS: "fail"},
		"nonsense":   {Host: "<unknown>", FCrDNS: "fail"},
	}
	for addr, want := range tests {
		t.Run(addr, func(t *testing.T) {
			if a := ask[*imsg.ClientName](t, h.smtp, &imsg.ClientLookup{Addr: addr}); *a != want {
				t.Errorf("got %+v, want %+v", *a, want)
			}
		})
	}
	a := ask[*imsg.DNSAnswer](t, h.mta, &imsg.DNSQuery{Name: "example.org", QType: resolver.TypeMX})
	if a.Result != uint8(resolver.OK) || len(a.Records) != 1 || a.Records[0] != (imsg.DNSRecord{Pref: 10, TTL: 60, Data: "mx.example.org"}) {
		t.Errorf("got %+v", *a)
	}
	if a := ask[*imsg.DNSAnswer](t, h.mta, &imsg.DNSQuery{Name: "nosuch.example.org", QType: resolver.TypeMX}); a.Result != uint8(resolver.NoSuchName) {
		t.Errorf("got %+v", *a)
	}
}

// TestReload swaps the configuration while a question waits in the old one.
func TestReload(t *testing.T) {
	h := start(t, conf(t), false)
	block := make(chan struct{})
	h.parent.mu.Lock()
	h.parent.block, h.parent.waits = block, make(chan struct{}, 10)
	h.parent.mu.Unlock()
	first := make(chan *imsg.RcptAnswer, 1)
	go func() { first <- ask[*imsg.RcptAnswer](t, h.smtp, rcpt("alice@example.org")) }()
	<-h.parent.waits

	next := conf(t)
	next.Rules = next.Rules[2:]
	next.Tables["aliases"].Pairs = nil
	next.Tables["new"] = &config.Table{Name: "new", Backend: "static", Type: config.TableList, List: []string{"x"}}
	h.config <- next
	for began := time.Now(); !ask[*imsg.TableAnswer](t, h.smtp, &imsg.TableQuery{Table: "new", Service: "string", Key: "x"}).Found; {
		if time.Since(began) > 20*time.Second {
			t.Fatal("the new configuration does not come into force")
		}
	}
	// A static question does not wait behind the one that does.
	if got := show(ask[*imsg.RcptAnswer](t, h.smtp, rcpt("alice@example.org"))); !strings.HasPrefix(got, accepted+"[smtpd.conf:3] mta:out") {
		t.Errorf("by the new rules: got %s", got)
	}
	close(block)
	select {
	case a := <-first:
		if got := show(a); !strings.HasPrefix(got, accepted+"[smtpd.conf:1] mda:local") {
			t.Errorf("by the old rules: got %s", got)
		}
	case <-time.After(20 * time.Second):
		t.Error("the question from before is lost")
	}

	broken := conf(t)
	broken.Tables["aliases"] = &config.Table{Name: "aliases", Backend: "file", Param: filepath.Join(t.TempDir(), "nosuch")}
	h.config <- broken
	h.log.wait(t, "keeping the tables of before")
	if !ask[*imsg.TableAnswer](t, h.smtp, &imsg.TableQuery{Table: "new", Service: "string", Key: "x"}).Found {
		t.Error("a configuration that cannot be opened took the tables away")
	}
}

// TestFilesAreWatched changes a table file, breaks it, and asks for an update.
func TestFilesAreWatched(t *testing.T) {
	path := filepath.Join(t.TempDir(), "aliases")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("root: alice\n")
	c := conf(t)
	c.Tables["aliases"] = &config.Table{Name: "aliases", Backend: "file", Param: path}
	h := start(t, c, false)
	ok := func(text string) {
		t.Helper()
		a := ask[*imsg.Done](t, h.control, &imsg.TableUpdate{Table: "aliases"})
		if a.OK != (text == "") || !strings.Contains(a.Text, text) {
			t.Errorf("got %+v, want %q", *a, text)
		}
	}
	write("root: bob\nx: alice\n")
	h.log.wait(t, "table aliases updated")
	if a := ask[*imsg.TableAnswer](t, h.smtp, &imsg.TableQuery{Table: "aliases", Service: "alias", Key: "root"}); a.Value != "bob" {
		t.Errorf("got %+v", *a)
	}
	h.stale.Store(nil)
	write("root: carol\n")
	ok("")
	if name := h.stale.Load(); name == nil || *name != "aliases" {
		t.Error("the update was said to be done before smtp was told")
	}
	if a := ask[*imsg.TableCopied](t, h.smtp, &imsg.TableCopy{Table: "aliases"}); !a.OK || string(a.Keys) != "root\x00" {
		t.Errorf("copy: %+v", a)
	}
	write("root\nx y\n")
	ok(path + ":2: invalid map entry")
	if a := ask[*imsg.TableAnswer](t, h.smtp, &imsg.TableQuery{Table: "aliases", Service: "alias", Key: "root"}); a.Value != "carol" {
		t.Errorf("after a broken file: got %+v", *a)
	}
	if a := ask[*imsg.Done](t, h.control, &imsg.TableUpdate{Table: "nosuch"}); a.OK {
		t.Error("a table that does not exist was updated")
	}
}

// TestSlowTable has a table that does not answer; nobody else waits for it.
func TestSlowTable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	held := make(chan struct{}, 100)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			held <- struct{}{}
			go io.Copy(io.Discard, c)
		}
	}()
	c := conf(t)
	c.Tables["slow"] = &config.Table{Name: "slow", Backend: "socketmap", Param: "inet:" + l.Addr().String()}
	h := start(t, c, false)
	answers := make(chan *imsg.TableAnswer, 20)
	for range cap(answers) {
		go func() {
			answers <- ask[*imsg.TableAnswer](t, h.mta, &imsg.TableQuery{Table: "slow", Service: "alias", Key: "x"})
		}()
	}
	<-held
	for range 100 {
		if a := ask[*imsg.RcptAnswer](t, h.smtp, rcpt("x@else.test")); a.Status.Code != 250 {
			t.Fatalf("got %v", a.Status)
		}
	}
	select {
	case a := <-answers:
		t.Errorf("the slow table answered: %+v", *a)
	default:
	}
	h.stop() // what waits for the slow table is told "later"
	for range cap(answers) {
		select {
		case a := <-answers:
			if !a.Temporary {
				t.Errorf("got %+v, want temporary", *a)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("no answer at the end")
		}
	}
}

func TestStartFails(t *testing.T) {
	c := conf(t)
	c.Tables["x"] = &config.Table{Name: "x", Backend: "file", Param: "/nonexistent/table"}
	env := &privsep.Env{Log: log.Discard(), Now: time.Now, Config: make(chan *config.Config, 1), Ready: func() { t.Error("ready") }}
	ch := make(chan *config.Config, 1)
	ch <- c
	env.Config = ch
	if err := Run(t.Context(), env, Peers{}); err == nil || !strings.Contains(err.Error(), "/nonexistent/table") {
		t.Errorf("got %v", err)
	}
}

func TestLocalAddresses(t *testing.T) {
	c := conf(t)
	c.LocalAddrs = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	h := start(t, c, false)
	m := rcpt("x@else.test")
	m.Envelope.Client = "192.0.2.1"
	if a := ask[*imsg.RcptAnswer](t, h.smtp, m); a.Status.Code != 250 {
		t.Errorf("got %v", a.Status)
	}
}

// Recipients that come together get together what each gets alone.
func TestRcptCheckNext(t *testing.T) {
	h := start(t, conf(t), false)
	addrs := []string{"alice@example.org", "nosuch@example.org", "x@else.test", "bob@example.org"}
	m := rcpt(addrs[0])
	for _, a := range addrs[1:] {
		m.Next = append(m.Next, mail.Recipient{Address: mail.SplitAddress(a)})
	}
	together := ask[*imsg.RcptAnswer](t, h.smtp, m)
	got := append([]imsg.RcptOutcome{together.RcptOutcome}, together.Next...)
	if len(got) != len(addrs) {
		t.Fatalf("%d outcomes of %d", len(got), len(addrs))
	}
	for i, a := range addrs {
		alone := ask[*imsg.RcptAnswer](t, h.smtp, rcpt(a))
		if got, want := show(&imsg.RcptAnswer{RcptOutcome: got[i]}), show(alone); got != want {
			t.Errorf("%s: got %s; want %s", a, got, want)
		}
	}
}

func BenchmarkRcptCheck(b *testing.B) {
	h := start(b, conf(b), false)
	m := rcpt("x@else.test")
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if a := ask[*imsg.RcptAnswer](b, h.smtp, m); a.Status.Code != 250 {
				b.Error(a.Status)
			}
		}
	})
}
