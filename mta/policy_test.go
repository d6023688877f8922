package mta

import (
	"context"
	"strings"
	"testing"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/mail"
)

// What mta tls says of a domain, of those above it, and of none.
func TestTLSWish(t *testing.T) {
	a := newAuthority(t)
	self := a.leaf("mx.d.test", -time.Hour, time.Hour, true)
	tests := map[string]struct {
		domain string
		offers bool
		want   string
	}{
		"verified":      {"d.test", true, "451 Network error on destination MXs"},
		"required":      {"r.test", true, "250 250 2.0.0 queued as ABC123"},
		"required, not": {"r.test", false, "451 Network error on destination MXs"},
		"below":         {"a.b.sub.test", false, "451 Network error on destination MXs"},
		"not below":     {"sub.test", false, "250 250 2.0.0 queued as ABC123"},
		"never":         {"n.test", true, "250 250 2.0.0 in clear"},
		"nonsense":      {"odd.test", true, "451 Could not retrieve TLS policy"},
		"other":         {"o.test", true, "250 250 2.0.0 queued as ABC123"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.roots = a.pool()
			w.cfg.MTA.TLS = "<tls>"
			w.tables["<tls>"] = map[string]string{"d.test": "verified", "r.test": "Required", "*.sub.test": "required",
				"n.test": "never", "odd.test": "perhaps"}
			w.mx(tt.domain, "10 mx.d.test 192.0.2.1")
			w.hosts["192.0.2.1:25"] = (&goodHost{}).serve
			if tt.offers {
				w.hosts["192.0.2.1:25"] = tlsHost(self, false, &goodHost{})
			}
			w.run(func(e *Engine) {
				e.Submit(context.Background(), w.message(&config.Relay{}, "u@"+tt.domain))
				w.wait(1)
			})
			if got := strings.TrimSpace(w.results()); got != "u@"+tt.domain+" "+tt.want {
				t.Errorf("got %q\n%s", got, w.text())
			}
		})
	}
}

func TestShowTLS(t *testing.T) {
	w := newWorld(t)
	w.cfg.MTA.TLS = "<tls>"
	w.tables["<tls>"] = map[string]string{"d.test": "verified"}
	w.lists["<h>"] = []string{"smtps://hub.test"}
	w.mx("d.test", "10 mx.d.test 192.0.2.1")
	w.mx("o.test", "10 mx.d.test")
	w.secured = map[string]bool{"MX o.test": true}
	w.addr("hub.test", "192.0.2.9")
	w.cfg.Actions = map[string]*config.Action{"hub": {Relay: &config.Relay{Host: "<h>"}}, "out": {Relay: &config.Relay{}},
		"in": {}}
	for domain, want := range map[string]string{
		"D.test": "action hub: from the first octet, verified: the relay URL says smtps\n" +
			"  with REQUIRETLS: from the first octet, verified, to hosts that offer it\n" +
			"  0 hub.test 192.0.2.9: certificate must be for hub.test\n" +
			"action out: required, verified: mta tls says verified for the domain\n" +
			"  with REQUIRETLS: mail is refused: the message asks for REQUIRETLS, and neither DNSSEC nor MTA-STS secures the mail exchangers\n" +
			"  10 mx.d.test 192.0.2.1: certificate must be for mx.d.test",
		"o.test": "action hub: from the first octet, verified: the relay URL says smtps\n" +
			"  with REQUIRETLS: from the first octet, verified, to hosts that offer it\n" +
			"  0 hub.test 192.0.2.9: certificate must be for hub.test\n" +
			"action out: when offered, not verified: nothing asks for more\n" +
			"  with REQUIRETLS: required, verified, to hosts that offer it\n" +
			"  10 mx.d.test 192.0.2.1: any certificate",
	} {
		if got := strings.Join(New(w.cfg, w.opt).ShowTLS(t.Context(), domain), "\n"); got != want {
			t.Errorf("%s: got\n%s\nwant\n%s", domain, got, want)
		}
	}
}

// REQUIRETLS: a host that does not offer it is passed over; when none does the
// mail goes back, and nothing of it has left (RFC 8689 section 4.2.1).
func TestRequireTLS(t *testing.T) {
	a := newAuthority(t)
	cert := a.leaf("mx.d.test", -time.Hour, time.Hour, false)
	other := a.leaf("b.d.test", -time.Hour, time.Hour, false)
	self := a.leaf("b.d.test", -time.Hour, time.Hour, true)
	without, with := &goodHost{ext: []string{"PIPELINING"}}, &goodHost{ext: []string{"PIPELINING", "REQUIRETLS"}}
	tests := map[string]struct {
		first, second func(*peer)
		want          string
		notice        bool
		unsecured     bool
	}{
		"nothing secures the MX":   {tlsHost(cert, false, with), nil, "550 Mail exchangers are not secured as REQUIRETLS demands", false, true},
		"a notice, MX not secured": {tlsHost(cert, false, without), nil, "250 250 2.0.0 queued as ABC123", true, true},
		"the second does":          {tlsHost(cert, false, without), tlsHost(other, false, with), "250 250 2.0.0 queued as ABC123", false, false},
		"none does":                {tlsHost(cert, false, without), tlsHost(other, false, without), "550 Remote host does not support REQUIRETLS", false, false},
		"no TLS, then none":        {without.serve, tlsHost(other, false, without), "550 Remote host does not support REQUIRETLS", false, false},
		"the second is away":       {tlsHost(cert, false, without), nil, "451 Network error on destination MXs", false, false},
		"bad certificate":          {without.serve, tlsHost(self, false, with), "451 Network error on destination MXs", false, false},
		"a notice is not lost":     {tlsHost(cert, false, without), nil, "250 250 2.0.0 queued as ABC123", true, false},
		"a notice, in TLS only":    {without.serve, tlsHost(other, false, with), "250 250 2.0.0 queued as ABC123", true, false},
		"a notice, never in clear": {without.serve, tlsHost(self, false, without), "451 Network error on destination MXs", true, false},
		"only in clear, or hidden": {with.serve, with.serve, "550 Remote host does not support REQUIRETLS", false, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.roots = a.pool()
			w.mx("d.test", "10 mx.d.test 192.0.2.1", "20 b.d.test 192.0.2.2")
			w.hosts["192.0.2.1:25"] = tt.first
			if tt.second != nil {
				w.hosts["192.0.2.2:25"] = tt.second
			}
			w.secured = map[string]bool{"MX d.test": !tt.unsecured}
			without.lines, with.lines = nil, nil
			w.run(func(e *Engine) {
				m := w.message(&config.Relay{}, "u@d.test")
				m.Envelopes[0].Flags = mail.FlagRequireTLS
				if tt.notice {
					m.Envelopes[0].Sender = mail.Address{}
				}
				e.Submit(context.Background(), m)
				w.wait(1)
				if tt.want[:3] == "550" { // others may use the host as before
					e.Submit(context.Background(), w.message(&config.Relay{TLS: false}, "v@d.test"))
					w.wait(2)
				}
			})
			got, rest, _ := strings.Cut(w.results(), "\n")
			if got != "u@d.test "+tt.want || rest != "" && !strings.HasPrefix(rest, "v@d.test 250") {
				t.Errorf("got %q, then %q\n%s", got, rest, w.text())
			}
			for _, l := range append(without.lines, with.lines...) {
				if strings.HasPrefix(l, "MAIL") && !tt.notice && (tt.want[:3] == "250") != strings.HasSuffix(l, " REQUIRETLS") {
					t.Errorf("host heard %q", l)
				}
			}
		})
	}
}

// A table of senders names relay and credentials; who is not in it goes where
// the action says.
func TestBySender(t *testing.T) {
	a := newAuthority(t)
	w := newWorld(t)
	w.roots = a.pool()
	w.mx("d.test", "10 mx.d.test 192.0.2.1")
	w.addr("one.test", "192.0.2.11")
	w.addr("two.test", "192.0.2.12")
	w.tables["<s>"] = map[string]string{"ann@b.test": "smtp+tls://ann@one.test:587", "@b.test": "smtp+tls://all@one.test:587",
		"@": "two.test"}
	w.tables["<only>"] = map[string]string{"ann@b.test": "two.test"}
	w.tables["<auth>"] = map[string]string{"ann": "ann:pw", "all": "all:pw"}
	w.lists["<h>"] = []string{"two.test"}
	one := &goodHost{ext: []string{"AUTH PLAIN"}}
	plain := map[string]*goodHost{}
	for _, addr := range []string{"192.0.2.1:25", "192.0.2.12:25"} {
		plain[addr] = &goodHost{}
		w.hosts[addr] = plain[addr].serve
	}
	cert := a.leaf("one.test", -time.Hour, time.Hour, false)
	users := map[string]int{}
	w.hosts["192.0.2.11:587"] = func(p *peer) {
		p.say("220 one")
		p.hear()
		p.say("250-one\r\n250 STARTTLS\r\n")
		p.hear()
		p.say("220 go")
		if !p.secure(cert, nil) {
			return
		}
		p.hear()
		p.say("250-one\r\n250 AUTH PLAIN\r\n")
		users[p.hear()]++
		p.say("235 ok")
		one.serveFrom(p)
	}
	w.run(func(e *Engine) {
		send := func(r config.Relay, from string) {
			m := w.message(&r, "u@d.test")
			m.Envelopes[0].Sender = mail.SplitAddress(from)
			e.Submit(context.Background(), m)
		}
		full := config.Relay{Sender: "<s>", Auth: "<auth>"}
		send(full, "Ann@B.test")
		send(full, "bob@b.test")
		send(full, "")
		send(full, "x@else.test")
		send(config.Relay{Sender: "<only>"}, "x@else.test")
		send(config.Relay{Sender: "<only>", Host: "<h>"}, "x@else.test")
		send(config.Relay{Sender: "<no such table>"}, "x@else.test")
		w.wait(7)
	})
	if got := w.codes(); got[250] != 6 || got[451] != 1 {
		t.Errorf("codes %v\n%s", got, w.text())
	}
	if len(users) != 2 || len(one.bodies) != 2 || len(plain["192.0.2.1:25"].bodies) != 1 || len(plain["192.0.2.12:25"].bodies) != 3 {
		t.Errorf("users %v, at one %d, by MX %d, at two %d", users, len(one.bodies),
			len(plain["192.0.2.1:25"].bodies), len(plain["192.0.2.12:25"].bodies))
	}
}
