package main

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"smtpd/internal/config"
	"smtpd/internal/expand"
	"smtpd/internal/mail"
	"smtpd/parser"
)

// Mails are generated from this seed, so many for each file.
const (
	alikeSeed  = 20261121
	alikeMails = 400
)

// TestModernDecidesAlike: a file of any generation and its modern form decide
// alike about mails that are generated from the names the file holds.
func TestModernDecidesAlike(t *testing.T) {
	t.Logf("seed %d", alikeSeed)
	files, err := filepath.Glob(confDir + "/*/*.conf")
	if err != nil {
		t.Fatal(err)
	}
	w := newConfWorld(t)
	tried := 0
	for _, path := range files {
		if !expectedOK(t, path) {
			continue
		}
		name := filepath.Base(filepath.Dir(path)) + "/" + filepath.Base(path)
		t.Run(name, func(t *testing.T) {
			o := w.options(t, path)
			o.Macros = headerMacros(string(o.Text))
			old, now := w.decider(t, o), w.decider(t, modernize(t, o))
			g := newMailGenerator(old.conf)
			outcomes := map[string]int{}
			for i := range alikeMails {
				q := g.mail()
				before := old.outcome(t.Context(), q)
				outcomes[before[:min(len(before), 7)]]++
				if after := now.outcome(t.Context(), q); before != after {
					t.Fatalf("mail %d, %s:\nthe file:  %s\nas modern: %s\n%s", i, describeMail(q), before, after, now.conf.File)
				}
			}
			if outcomes["refused"] < alikeMails {
				tried++
			}
		})
	}
	if tried < 100 {
		t.Errorf("only %d files accepted any mail", tried)
	}
}

var headerArgs = regexp.MustCompile(`(?m)^# args: *-D *(\S.*?) *$`)

func headerMacros(text string) map[string]string {
	out := map[string]string{}
	for _, m := range headerArgs.FindAllStringSubmatch(text, -1) {
		if name, value, ok := parser.SplitMacro(m[1]); ok {
			out[name] = value
		}
	}
	return out
}

func describeMail(q *expand.Request) string {
	e := &q.Envelope
	return fmt.Sprintf("client=%s local=%t rdns=%s helo=%s from=%s rcpt=%s auth=%q tag=%s tls=%t",
		e.Client, q.Local, e.Host, e.Helo, e.Sender, e.Rcpt, e.Username, e.Tag, q.TLS)
}

// mailGenerator makes mails of the names in a configuration, near misses of
// them, and strangers.
type mailGenerator struct {
	r                            *rand.Rand
	users, domains, clients, tag []string
}

func newMailGenerator(conf *config.Config) *mailGenerator {
	g := &mailGenerator{
		r:       rand.New(rand.NewPCG(alikeSeed, 1)),
		users:   []string{"alice", "bob", "root", "nobody", "alice+tag", "team", "list"},
		domains: []string{"localhost", "mail.example.org", "example.org", "far.example", "a.example.org", ""},
		clients: []string{"127.0.0.1", "[::1]", "192.0.2.7", "198.51.100.9", "[2001:db8::7]", "172.20.0.12"},
		tag:     []string{""},
	}
	for _, l := range conf.Listeners {
		g.tag = append(g.tag, l.Tag)
		g.domains = append(g.domains, l.Hostname)
	}
	g.domains = append(g.domains, conf.LocalNames...)
	for _, name := range slices.Sorted(maps.Keys(conf.Tables)) {
		t := conf.Tables[name]
		words := slices.Clone(t.List)
		for _, p := range t.Pairs {
			words = append(words, p[:]...)
		}
		if t.Backend == "file" {
			b, _ := os.ReadFile(t.Param)
			words = append(words, strings.FieldsFunc(string(b), func(r rune) bool { return strings.ContainsRune(" \t\n,:", r) })...)
		}
		for _, w := range words {
			g.learn(w)
		}
	}
	return g
}

// learn takes a word of a table for whatever it can be.
func (g *mailGenerator) learn(w string) {
	w = strings.Trim(w, "[]")
	if p, err := netip.ParsePrefix(w); err == nil {
		g.clients = append(g.clients, client(p.Addr()), client(p.Addr().Next()))
		return
	}
	if a, err := netip.ParseAddr(w); err == nil {
		g.clients = append(g.clients, client(a), client(a.Next()))
		return
	}
	user, domain, ok := strings.Cut(w, "@")
	if !ok && strings.Contains(w, ".") {
		user, domain = "", w
	}
	if domain = strings.NewReplacer("*", "sub", "^", "", "$", "", "\\", "").Replace(domain); domain != "" {
		g.domains = append(g.domains, domain)
	}
	if user != "" && len(user) < 64 {
		g.users = append(g.users, user)
	}
	g.tag = append(g.tag, w)
}

func client(a netip.Addr) string {
	if a.Is6() {
		return "[" + a.String() + "]"
	}
	return a.String()
}

func (g *mailGenerator) pick(list []string) string { return list[g.r.IntN(len(list))] }

func (g *mailGenerator) address() mail.Address {
	return mail.Address{User: g.pick(g.users), Domain: g.pick(g.domains)}
}

func (g *mailGenerator) mail() *expand.Request {
	q := &expand.Request{Envelope: mail.Envelope{Client: g.pick(g.clients), Host: "<unknown>", Helo: g.pick(g.domains), Rcpt: g.address()}}
	e := &q.Envelope
	one := func(n int) bool { return g.r.IntN(n) == 0 }
	if one(6) {
		q.Local, e.Client, e.Host = true, "local", "localhost"
	} else if one(2) {
		e.Host = g.pick(g.domains)
	}
	if !one(5) {
		e.Sender = g.address()
	}
	if one(3) {
		e.Username = g.pick(g.users)
		e.Flags |= mail.FlagAuthenticated
	}
	if one(2) {
		e.Tag = g.pick(g.tag)
	}
	q.TLS = one(2)
	return q
}
