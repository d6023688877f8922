package ruleset

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"smtpd/internal/config"
	"smtpd/internal/mail"
	"smtpd/table"
)

// answers are tables as a test states them; "down" cannot answer.
type answers map[string]*table.Table

func (a answers) Check(ctx context.Context, name string, s table.Service, key string) (bool, error) {
	if a[name] == nil {
		return false, errors.New("table " + name + " is down")
	}
	return a[name].Check(ctx, s, key)
}

func lists(pairs map[string][]string) answers {
	a := answers{}
	for name, entries := range pairs {
		a[name] = table.New(name, "static", table.NewList(entries...))
	}
	return a
}

var tables = lists(map[string][]string{
	"nets":    {"192.0.2.0/24", "local"},
	"others":  {"198.51.100.7"},
	"doms":    {"example.org", "*.wild.test"},
	"hosts":   {"*.example.net"},
	"senders": {"@bad.test", "worse@good.test", ""},
	"rcpts":   {"info@example.org", "postmaster"},
	"users":   {"alice", "bob@example.org"},
	"tags":    {"LAN"},
	"words":   {"^a", `\.test$`, "^192", "^$"},
})

// match makes a rule from the options of a `match` line.
func match(change func(r *config.Rule)) *config.Rule {
	r := &config.Rule{Pos: config.Pos{File: "c", Line: 1}, From: config.From{Kind: config.FromAny},
		For: config.For{Kind: config.ForAny}, Action: "a"}
	change(r)
	return r
}

func m(table string) config.Match { return config.Match{Table: table} }

func not(m config.Match) config.Match { m.Not = true; return m }

func regex(table string) config.Match { return config.Match{Table: table, Regex: true} }

// from, to, client and with make the parts of a case.
func from(kind config.FromKind, m config.Match) func(*config.Rule) {
	return func(r *config.Rule) { r.From = config.From{Kind: kind, Match: m} }
}

func to(kind config.ForKind, m config.Match) func(*config.Rule) {
	return func(r *config.Rule) { r.For = config.For{Kind: kind, Match: m} }
}

func client(addr string) Facts {
	a, _ := netip.ParseAddr(strings.Trim(addr, "[]"))
	return Facts{Client: addr, Addr: a, Host: UnknownHost}
}

func with(f Facts, change func(*Facts)) Facts { change(&f); return f }

func dest(addr string) Facts {
	return with(client("192.0.2.7"), func(f *Facts) { f.Dest = mail.SplitAddress(addr) })
}

// optionCase is one option of a rule against facts.
type optionCase struct {
	option func(*config.Rule)
	facts  Facts
	want   bool
}

func tryOptions(t *testing.T, tests map[string]optionCase) {
	cfg := config.Defaults()
	cfg.LocalNames = []string{"mx.example.org"}
	cfg.LocalAddrs = []netip.Addr{netip.MustParseAddr("203.0.113.1")}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cfg.Rules = []*config.Rule{match(tt.option)}
			r, err := Evaluate(t.Context(), cfg, tables, &tt.facts, nil)
			if (r != nil) != tt.want || err != nil {
				t.Errorf("got %v, %v, want %v", r != nil, err, tt.want)
			}
		})
	}
}

func TestFrom(t *testing.T) {
	far := client("192.0.2.7")
	socket := with(client("local"), func(f *Facts) { f.Socket, f.Authenticated, f.Host = true, true, "mx.example.org" })
	internal := with(far, func(f *Facts) { f.Internal = true })
	named := with(far, func(f *Facts) { f.Host = "a.example.net" })
	alice := with(far, func(f *Facts) { f.Authenticated, f.Username = true, "Alice" })
	tryOptions(t, map[string]optionCase{
		"from local, far":              {from(config.FromLocal, m("")), far, false},
		"from local, loopback":         {from(config.FromLocal, m("")), client("127.0.0.1"), true},
		"from local, other loopback":   {from(config.FromLocal, m("")), client("127.0.0.2"), false},
		"from local, loopback 6":       {from(config.FromLocal, m("")), client("[::1]"), true},
		"from local, own address":      {from(config.FromLocal, m("")), client("203.0.113.1"), true},
		"from local, socket":           {from(config.FromLocal, m("")), socket, true},
		"from local, internal":         {from(config.FromLocal, m("")), internal, true},
		"from local, login":            {from(config.FromLocal, m("")), alice, false},
		"no from":                      {from("", m("")), far, false},
		"!from local":                  {from(config.FromLocal, not(m(""))), far, true},
		"from any":                     {from(config.FromAny, m("")), far, true},
		"!from any":                    {from(config.FromAny, not(m(""))), far, false},
		"from socket":                  {from(config.FromSocket, m("")), socket, true},
		"from socket, loopback":        {from(config.FromSocket, m("")), client("127.0.0.1"), false},
		"from socket, internal":        {from(config.FromSocket, m("")), with(socket, func(f *Facts) { f.Internal = true }), false},
		"from src":                     {from(config.FromSrc, m("nets")), far, true},
		"from src, not in it":          {from(config.FromSrc, m("others")), far, false},
		"from src, internal":           {from(config.FromSrc, m("nets")), with(client("10.0.0.1"), func(f *Facts) { f.Internal = true }), true},
		"from src, internal not in it": {from(config.FromSrc, m("others")), internal, false},
		"from src, socket":             {from(config.FromSrc, m("nets")), socket, true},
		"!from src":                    {from(config.FromSrc, not(m("others"))), far, true},
		"from src regex":               {from(config.FromSrc, regex("words")), far, true},
		"from rdns":                    {from(config.FromRDNS, m("")), named, true},
		"from rdns, unknown":           {from(config.FromRDNS, m("")), far, false},
		"!from rdns":                   {from(config.FromRDNS, not(m(""))), named, false},
		"!from rdns, unknown":          {from(config.FromRDNS, not(m(""))), far, false},
		"from rdns T":                  {from(config.FromRDNS, m("hosts")), named, true},
		"from rdns T, unknown":         {from(config.FromRDNS, m("hosts")), far, false},
		"!from rdns T, unknown":        {from(config.FromRDNS, not(m("hosts"))), far, false},
		"from rdns regex":              {from(config.FromRDNS, regex("words")), named, true},
		"from rdns, internal":          {from(config.FromRDNS, m("")), with(named, func(f *Facts) { f.Internal = true }), false},
	})
}

func TestOptions(t *testing.T) {
	far := client("192.0.2.7")
	socket := with(client("local"), func(f *Facts) { f.Socket, f.Authenticated = true, true })
	alice := with(far, func(f *Facts) { f.Authenticated, f.Username = true, "Alice" })
	bob := with(far, func(f *Facts) { f.Authenticated, f.Username = true, "bob@example.org" })
	sender := func(addr string) Facts { return with(far, func(f *Facts) { f.Sender = mail.SplitAddress(addr) }) }
	tryOptions(t, map[string]optionCase{
		"for local, localhost":     {to(config.ForLocal, m("")), dest("x@LocalHost"), true},
		"for local, server name":   {to(config.ForLocal, m("")), dest("x@MX.example.org"), true},
		"for local, literal":       {to(config.ForLocal, m("")), dest("x@[203.0.113.1]"), true},
		"for local, literal 6":     {to(config.ForLocal, m("")), dest("x@[IPv6:::1]"), true},
		"for local, other literal": {to(config.ForLocal, m("")), dest("x@[203.0.113.2]"), false},
		"for local, elsewhere":     {to(config.ForLocal, m("")), dest("x@example.org"), false},
		"no for":                   {to("", m("")), dest("x@example.org"), false},
		"!for local":               {to(config.ForLocal, not(m(""))), dest("x@example.org"), true},
		"for domain":               {to(config.ForDomain, m("doms")), dest("x@Example.ORG"), true},
		"for domain, wild":         {to(config.ForDomain, m("doms")), dest("x@a.wild.test"), true},
		"for domain, no":           {to(config.ForDomain, m("doms")), dest("x@example.com"), false},
		"!for domain":              {to(config.ForDomain, not(m("doms"))), dest("x@example.com"), true},
		"for domain regex":         {to(config.ForDomain, regex("words")), dest("x@b.test"), true},
		"auth":                     {func(r *config.Rule) { r.Auth = &config.Match{} }, alice, true},
		"auth, no":                 {func(r *config.Rule) { r.Auth = &config.Match{} }, far, false},
		"auth, socket":             {func(r *config.Rule) { r.Auth = &config.Match{} }, socket, true},
		"!auth":                    {func(r *config.Rule) { r.Auth = &config.Match{Not: true} }, far, true},
		"auth T":                   {func(r *config.Rule) { x := m("users"); r.Auth = &x }, alice, true},
		"auth T, address":          {func(r *config.Rule) { x := m("users"); r.Auth = &x }, bob, true},
		"auth T, no login":         {func(r *config.Rule) { x := m("users"); r.Auth = &x }, far, false},
		"!auth T, no login":        {func(r *config.Rule) { x := not(m("users")); r.Auth = &x }, far, true},
		"auth regex":               {func(r *config.Rule) { x := regex("words"); r.Auth = &x }, alice, true},
		"tls":                      {func(r *config.Rule) { r.TLS = &config.Match{} }, with(far, func(f *Facts) { f.TLS = true }), true},
		"tls, no":                  {func(r *config.Rule) { r.TLS = &config.Match{} }, far, false},
		"!tls":                     {func(r *config.Rule) { r.TLS = &config.Match{Not: true} }, far, true},
		"tag":                      {func(r *config.Rule) { x := m("tags"); r.Tag = &x }, with(far, func(f *Facts) { f.Tag = "lan" }), true},
		"tag, none":                {func(r *config.Rule) { x := m("tags"); r.Tag = &x }, far, false},
		"!tag":                     {func(r *config.Rule) { x := not(m("tags")); r.Tag = &x }, far, true},
		"helo":                     {func(r *config.Rule) { x := m("hosts"); r.HELO = &x }, with(far, func(f *Facts) { f.Helo = "x.example.net" }), true},
		"helo, no":                 {func(r *config.Rule) { x := m("hosts"); r.HELO = &x }, with(far, func(f *Facts) { f.Helo = "x" }), false},
		"mail-from domain":         {func(r *config.Rule) { x := m("senders"); r.MailFrom = &x }, sender("a@bad.test"), true},
		"mail-from user":           {func(r *config.Rule) { x := m("senders"); r.MailFrom = &x }, sender("worse+tag@Good.test"), true},
		"mail-from, no":            {func(r *config.Rule) { x := m("senders"); r.MailFrom = &x }, sender("a@good.test"), false},
		"mail-from null":           {func(r *config.Rule) { x := m("senders"); r.MailFrom = &x }, sender(""), true},
		"mail-from null regex":     {func(r *config.Rule) { x := regex("words"); r.MailFrom = &x }, sender(""), true},
		"rcpt-to":                  {func(r *config.Rule) { x := m("rcpts"); r.RcptTo = &x }, dest("info@example.org"), true},
		"rcpt-to user":             {func(r *config.Rule) { x := m("rcpts"); r.RcptTo = &x }, dest("Postmaster@else.test"), true},
		"!rcpt-to":                 {func(r *config.Rule) { x := not(m("rcpts")); r.RcptTo = &x }, dest("x@else.test"), true},
	})
}

// TestOrder: the options are tried in one order, and what cannot be decided
// ends the search.
func TestOrder(t *testing.T) {
	cfg := config.Defaults()
	down := m("down")
	all := match(func(r *config.Rule) {
		no := m("others")
		r.Tag, r.HELO, r.Auth, r.TLS, r.MailFrom, r.RcptTo = &no, &no, &no, &config.Match{}, &no, &no
		r.From, r.For = config.From{Kind: config.FromSrc, Match: no}, config.For{Kind: config.ForDomain, Match: no}
	})
	f := Facts{Client: "192.0.2.7", Addr: netip.MustParseAddr("192.0.2.7")}
	clauses := []string{"tag <others>", "from src <others>", "for domain <others>", "helo <others>", "auth <others>", "tls",
		"mail-from <others>", "rcpt-to <others>"}
	satisfy := []func(){
		func() { all.Tag.Not = true }, func() { all.From.Kind = config.FromAny }, func() { all.For.Kind = config.ForAny },
		func() { all.HELO = nil }, func() { all.Auth = nil }, func() { f.TLS = true }, func() { all.MailFrom = nil }, func() { all.RcptTo = nil },
	}
	for i, want := range clauses {
		all.Tag = &config.Match{Table: all.Tag.Table, Not: all.Tag.Not} // apart from the others
		cfg.Rules = []*config.Rule{all}
		tr := &Trace{}
		r, err := Evaluate(t.Context(), cfg, tables, &f, tr)
		if r != nil || err != nil || tr.Steps[0].Clause != want || tr.Steps[0].Reason == "" {
			t.Errorf("got %v, %v, %+v, want %s", r, err, tr.Steps[0], want)
		}
		satisfy[i]()
	}
	if r, err := Evaluate(t.Context(), cfg, tables, &f, nil); r != all || err != nil {
		t.Errorf("with all options satisfied: got %v, %v", r, err)
	}
	first := match(func(r *config.Rule) { r.MailFrom = &down })
	cfg.Rules = []*config.Rule{first, match(func(*config.Rule) {})}
	tr := &Trace{}
	if r, err := Evaluate(t.Context(), cfg, tables, &f, tr); r != nil || err == nil || len(tr.Steps) != 1 || tr.Steps[0].Err == nil {
		t.Errorf("got %v, %v", r, err)
	}
	first.MailFrom.Not = true
	if r, err := Evaluate(t.Context(), cfg, tables, &f, nil); r != nil || err == nil {
		t.Errorf("negated: got %v, %v", r, err)
	}
	cfg.Rules = nil
	if r, err := Evaluate(t.Context(), cfg, tables, &f, nil); r != nil || err != nil {
		t.Errorf("no rules: got %v, %v", r, err)
	}
}

func TestText(t *testing.T) {
	tests := map[string]func(*config.Rule){
		`match from any for any action "a"`:                    func(*config.Rule) {},
		`match from any for any reject`:                        func(r *config.Rule) { r.Reject, r.Action = true, "" },
		`match !tag <t> from any for any tls action "a"`:       func(r *config.Rule) { r.Tag, r.TLS = &config.Match{Not: true, Table: "t"}, &config.Match{} },
		`match from src regex <dynamic:1> for any action "a"`:  func(r *config.Rule) { r.From = config.From{Kind: config.FromSrc, Match: regex("<dynamic:1>")} },
		`match from any for any auth mail-from <s> action "a"`: func(r *config.Rule) { x := m("s"); r.Auth, r.MailFrom = &config.Match{}, &x },
		`match from any !for domain <d> rcpt-to <r> action "a"`: func(r *config.Rule) {
			x := m("r")
			r.For, r.RcptTo = config.For{Kind: config.ForDomain, Match: not(m("d"))}, &x
		},
	}
	for want, change := range tests {
		if got := Text(match(change)); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func BenchmarkEvaluate(b *testing.B) {
	cfg := config.Defaults()
	for range 20 {
		cfg.Rules = append(cfg.Rules, match(func(r *config.Rule) { r.For = config.For{Kind: config.ForDomain, Match: m("doms")} }))
	}
	f := Facts{Client: "192.0.2.7", Addr: netip.MustParseAddr("192.0.2.7"), Dest: mail.SplitAddress("x@none.test")}
	b.ReportAllocs()
	for b.Loop() {
		Evaluate(b.Context(), cfg, tables, &f, nil)
	}
}
