package main

import (
	"bufio"
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"smtpd/internal/resolver"
)

// Bounds of a walk over one domain. RFC 7208 section 4.6.4 allows 10 questions
// to a mail server; a walk lists what many records hold together, so it gets
// more.
const (
	spfQuestions = 200 // ours
	spfDepth     = 10  // includes within includes; ours
	spfTimeout   = 2 * time.Minute
)

// asker is the part of a resolver that a walk needs.
type asker interface {
	Lookup(ctx context.Context, name string, qtype uint16) resolver.Answer
	Addrs(ctx context.Context, name string) ([]netip.Addr, resolver.Result)
}

// spfWalk prints the addresses and networks that may send for each domain of
// standard input.
func spfWalk(p *program, ctx context.Context, _ []string) error {
	if err := p.becomeNobody(); err != nil {
		return err
	}
	r := resolver.New(resolver.Options{})
	defer r.Close()
	return p.spfWalk(ctx, r)
}

func (p *program) spfWalk(ctx context.Context, dns asker) error {
	in := bufio.NewScanner(p.stdin)
	for in.Scan() {
		domain := strings.TrimSpace(in.Text())
		if domain == "" || domain[0] == '#' {
			continue
		}
		w := &walk{p: p, dns: dns, seen: map[string]bool{}, left: spfQuestions}
		wctx, cancel := context.WithTimeout(ctx, spfTimeout)
		err := w.record(wctx, domain, 0)
		cancel()
		if err != nil {
			return err
		}
		if err := p.stdout.Flush(); err != nil {
			return err
		}
	}
	return in.Err()
}

// walk is the state of a walk over one domain.
type walk struct {
	p    *program
	dns  asker
	seen map[string]bool // records read already
	left int             // questions
}

// may counts a question.
func (w *walk) may() bool {
	w.left--
	return w.left >= 0
}

// record reads the SPF record of a domain (RFC 7208 section 4.5). What cannot
// be read is reported and left out.
func (w *walk) record(ctx context.Context, domain string, depth int) error {
	domain = strings.ToLower(strings.TrimSuffix(domain, "."))
	if w.seen[domain] || depth > spfDepth || !w.may() {
		return nil
	}
	w.seen[domain] = true
	a := w.dns.Lookup(ctx, domain, resolver.TypeTXT)
	if a.Result == resolver.Failure {
		fmt.Fprintf(w.p.stderr, "smtpctl: %q: no answer from the name system\n", domain)
	}
	for _, r := range a.Records {
		words := strings.Fields(r.Data)
		if len(words) == 0 || !strings.EqualFold(words[0], "v=spf1") {
			continue
		}
		for _, word := range words[1:] {
			if err := w.term(ctx, domain, word, depth); err != nil {
				return err
			}
		}
		return nil // a second record is an error of its owner
	}
	return nil
}

// term follows one term. Mechanisms that deny, and those that only a mail at
// hand can decide (ptr, exists, macros), say nothing about addresses.
func (w *walk) term(ctx context.Context, domain, word string, depth int) error {
	if word[0] == '-' || strings.Contains(word, "%") {
		return nil
	}
	word = strings.TrimLeft(word, "+?~")
	if target, ok := cutFold(word, "redirect="); ok {
		return w.record(ctx, target, depth+1)
	}
	name, arg, _ := strings.Cut(word, ":")
	name, mask, masked := strings.Cut(name, "/")
	if !masked && !strings.HasPrefix(strings.ToLower(name), "ip") {
		arg, mask, _ = strings.Cut(arg, "/")
	}
	if arg == "" {
		arg = domain
	}
	switch strings.ToLower(name) {
	case "include":
		return w.record(ctx, arg, depth+1)
	case "ip4", "ip6":
		return w.network(arg)
	case "a":
		return w.host(ctx, arg, mask)
	case "mx":
		return w.mx(ctx, arg, mask)
	}
	return nil
}

func cutFold(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return s, false
	}
	return s[len(prefix):], true
}

// network prints an address or network as the record gives it, once it is known
// to be one.
func (w *walk) network(text string) error {
	if prefix, err := netip.ParsePrefix(text); err == nil {
		_, err = fmt.Fprintln(w.p.stdout, prefix)
		return err
	}
	if addr, err := netip.ParseAddr(text); err == nil {
		_, err = fmt.Fprintln(w.p.stdout, addr.WithZone(""))
		return err
	}
	return nil
}

// host prints the addresses of a name, IPv4 first; mask is "24", "24//64",
// "/64" or empty.
func (w *walk) host(ctx context.Context, name, mask string) error {
	if !w.may() {
		return nil
	}
	addrs, _ := w.dns.Addrs(ctx, name)
	mask4, mask6, _ := strings.Cut(mask, "/")
	mask6 = strings.TrimPrefix(mask6, "/")
	for _, is4 := range []bool{true, false} {
		bits := map[bool]string{true: mask4, false: mask6}[is4]
		for _, a := range addrs {
			if a.Is4() != is4 {
				continue
			}
			if err := w.address(a, bits); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *walk) address(a netip.Addr, bits string) error {
	if n, err := strconv.Atoi(bits); err == nil {
		if prefix, err := a.Prefix(n); err == nil && n < a.BitLen() {
			_, err = fmt.Fprintln(w.p.stdout, prefix)
			return err
		}
	}
	_, err := fmt.Fprintln(w.p.stdout, a)
	return err
}

func (w *walk) mx(ctx context.Context, name, mask string) error {
	if !w.may() {
		return nil
	}
	for _, r := range w.dns.Lookup(ctx, name, resolver.TypeMX).Records {
		if r.Data == "." {
			continue // takes no mail (RFC 7505)
		}
		if err := w.host(ctx, r.Data, mask); err != nil {
			return err
		}
	}
	return nil
}
