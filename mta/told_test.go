package mta

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/mail"
)

// listener writes down what is told of connections.
type listener struct {
	mu    sync.Mutex
	lines []string
	open  int
}

func (l *listener) tell(filters []string, _ mail.SessionID) Told {
	if strings.Join(filters, ",") != "f,g" {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open++
	return &oneTold{l}
}

type oneTold struct{ l *listener }

func (o *oneTold) Tell(event string, fields ...string) {
	o.l.mu.Lock()
	defer o.l.mu.Unlock()
	o.l.lines = append(o.l.lines, strings.TrimSpace(event+" "+strings.Join(fields, "|")))
}

func (o *oneTold) Close() {
	o.l.mu.Lock()
	defer o.l.mu.Unlock()
	o.l.open--
}

// What is told, event by event, in the order of the dialogue; the first lines
// and the last are checked by themselves.
func TestTold(t *testing.T) {
	const hello = "S: 220 mx.d.test ESMTP\nC: EHLO me.test\nS: 250-mx.d.test\nS: 250 PIPELINING\n"
	const mailOK = hello + "C: MAIL FROM:<a@b.test>\nS: 250 ok\n"
	const rcptOK = mailOK + "C: RCPT TO:<u@d.test>\nS: 250 2.1.5 ok\n"
	const dataOK = rcptOK + "C: DATA\nS: 354 go\nD\n"
	const id = "00000001"
	const toMail = "protocol-client MAIL FROM:<a@b.test>\nprotocol-server 250 ok\ntx-begin " + id + "\ntx-mail " + id + "|ok|a@b.test\n" +
		"protocol-client RCPT TO:<u@d.test>\ntx-envelope " + id + "|" + id + "00000001\n"
	const toRcpt = toMail + "protocol-server 250 2.1.5 ok\ntx-rcpt " + id + "|ok|u@d.test\nprotocol-client DATA\n"
	const toData = toRcpt + "protocol-server 354 go\ntx-data " + id + "|ok\nprotocol-client .\n"
	const rolledBack = "tx-rollback " + id + "\ntx-reset " + id + "\n"
	const bye = "protocol-client QUIT\nprotocol-server 221 bye\n"
	const quit = "\nC: QUIT\nS: 221 bye"
	const rset = "protocol-client RSET\nprotocol-server 250 reset\n"
	const resets = "\nC: RSET\nS: 250 reset"
	tests := map[string]struct{ script, want string }{
		"delivered": {dataOK + "S: 250-2.0.0 a\nS: 250 2.0.0 b" + quit,
			toData + "protocol-server 250-2.0.0 a\nprotocol-server 250 2.0.0 b\ntx-commit " + id + "|25\ntx-reset " + id + "\n" + bye},
		"text refused": {dataOK + "S: 552 no" + quit, toData + "protocol-server 552 no\n" + rolledBack + bye},
		"MAIL refused": {hello + "C: MAIL .*\nS: 550 no" + quit,
			"protocol-client MAIL FROM:<a@b.test>\nprotocol-server 550 no\n" + bye},
		"RCPT refused": {mailOK + "C: RCPT .*\nS: 550 5.1.1 no" + resets + quit,
			toMail + "protocol-server 550 5.1.1 no\n" + rolledBack + rset + bye},
		"DATA refused": {rcptOK + "C: DATA\nS: 451 later" + resets + quit,
			toRcpt + "protocol-server 451 later\ntx-data " + id + "|tempfail\n" + rolledBack + rset + bye},
		"dropped": {rcptOK + "C: DATA\ndrop", toRcpt + rolledBack},
		"silent":  {rcptOK + "C: DATA\nhang", toRcpt + "timeout\n" + rolledBack},
		"421":     {mailOK + "C: RCPT .*\nS: 421 bye", toMail + "protocol-server 421 bye\n" + rolledBack},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			l := &listener{}
			w := newWorld(t)
			w.opt.Tell = l.tell
			w.mx("d.test", "10 mx.d.test 192.0.2.1")
			w.dns["PTR 1.2.0.192.in-addr.arpa"] = fakeAnswer{records: []Record{{Data: "mx.d.test"}}}
			w.hosts["192.0.2.1:25"] = play(tt.script)
			w.run(func(e *Engine) {
				e.Submit(t.Context(), w.message(&config.Relay{Filter: []string{"f", "g"}}, "u@d.test"))
				w.wait(1)
				w.pass(time.Minute)
			})
			got := strings.Join(l.lines, "\n") + "\n"
			want := "link-connect mx.d.test|pass|192.0.2.200:40000|192.0.2.1:25\nprotocol-server 220 mx.d.test ESMTP\n" +
				"link-greeting mx.d.test\nprotocol-client EHLO me.test\nlink-identify EHLO|me.test\n" +
				"protocol-server 250-mx.d.test\nprotocol-server 250 PIPELINING\n" + tt.want + "link-disconnect\n"
			if got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			if l.open != 0 {
				t.Errorf("%d connections are not closed", l.open)
			}
		})
	}
}

// Some recipients are refused: each answer is told, and the mail goes on. A
// second mail goes over the same connection, one without filters over another.
func TestToldSeveral(t *testing.T) {
	l := &listener{}
	w := newWorld(t)
	w.opt.Tell = l.tell
	w.mx("d.test", "10 mx.d.test 192.0.2.1")
	h := &goodHost{ext: []string{"PIPELINING"}, rcpt: func(line string) string {
		switch {
		case strings.Contains(line, "<no@"):
			return "550 5.1.1 no"
		case strings.Contains(line, "<later@"):
			return "450 4.2.0 later"
		}
		return "250 ok"
	}}
	w.hosts["192.0.2.1:25"] = h.serve
	relay := &config.Relay{Filter: []string{"f", "g"}}
	w.run(func(e *Engine) {
		e.Submit(t.Context(), w.message(relay, "no@d.test", "later@d.test", "a@d.test"))
		w.wait(3)
		e.Submit(t.Context(), w.message(relay, "b@d.test"))
		w.wait(4)
		e.Submit(t.Context(), w.message(&config.Relay{}, "c@d.test"))
		w.wait(5)
		w.pass(time.Minute)
	})
	var told []string
	for _, line := range l.lines {
		if strings.HasPrefix(line, "tx-") || strings.HasPrefix(line, "link-") {
			told = append(told, line)
		}
	}
	const one, two = "00000001", "00000002"
	want := "link-connect <unknown>|pass|192.0.2.200:40000|192.0.2.1:25 link-greeting mx link-identify EHLO|me.test " +
		"tx-begin " + one + " tx-mail " + one + "|ok|a@b.test tx-envelope " + one + "|" + one + "00000001 tx-rcpt " + one + "|permfail|no@d.test " +
		"tx-envelope " + one + "|" + one + "00000002 tx-rcpt " + one + "|tempfail|later@d.test " +
		"tx-envelope " + one + "|" + one + "00000003 tx-rcpt " + one + "|ok|a@d.test tx-data " + one + "|ok tx-commit " + one + "|25 tx-reset " + one + " " +
		"tx-begin " + two + " tx-mail " + two + "|ok|a@b.test tx-envelope " + two + "|" + two + "00000001 tx-rcpt " + two + "|ok|b@d.test " +
		"tx-data " + two + "|ok tx-commit " + two + "|25 tx-reset " + two + " link-disconnect"
	if got := strings.Join(told, " "); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if h.conns != 2 {
		t.Errorf("%d connections", h.conns)
	}
}

// Inside TLS the cipher is told after the name by which we introduce ourselves,
// or at once; of a login everything but the secret.
func TestToldTLS(t *testing.T) {
	a := newAuthority(t)
	tests := map[string]struct {
		url      string
		implicit bool
		mech     string
		want     string // what the lines begin with, one word each
	}{
		"STARTTLS": {"smtp+tls://lbl@mx.d.test:25", false, "PLAIN", "link-connect protocol-server link-greeting protocol-client link-identify " +
			"protocol-server protocol-server protocol-client protocol-server " +
			"protocol-client link-identify link-tls protocol-server protocol-server protocol-server " +
			"protocol-client protocol-server link-auth link-disconnect"},
		"smtps": {"smtps://lbl@mx.d.test:25", true, "PLAIN", "link-connect link-tls protocol-server link-greeting protocol-client link-identify " +
			"protocol-server protocol-server protocol-server protocol-client protocol-server link-auth link-disconnect"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			l := &listener{}
			w := newWorld(t)
			w.opt.Tell = l.tell
			w.roots = a.pool()
			w.lists["<h>"] = []string{tt.url}
			w.tables["<secrets>"] = map[string]string{"lbl": "user:pass"}
			w.addr("mx.d.test", "192.0.2.1")
			w.hosts["192.0.2.1:25"] = tlsHost(a.leaf("mx.d.test", -time.Hour, time.Hour, false), tt.implicit,
				&goodHost{ext: []string{"AUTH " + tt.mech}})
			w.run(func(e *Engine) {
				e.Submit(context.Background(), w.message(&config.Relay{Host: "<h>", Auth: "<secrets>", Filter: []string{"f", "g"}}, "u@d.test"))
				w.wait(1)
				w.pass(time.Minute)
			})
			var words []string
			for _, line := range l.lines {
				word, rest, _ := strings.Cut(line, " ")
				words = append(words, word)
				switch {
				case strings.Contains(rest, b64("\x00user\x00pass")):
					t.Errorf("a secret is told: %s", line)
				case word == "link-tls" && !strings.HasPrefix(rest, "TLSv1.3:TLS_"):
					t.Errorf("%s", line)
				case word == "link-auth" && rest != "fail|user":
					t.Errorf("%s", line)
				}
			}
			if got := strings.Join(words, " "); !strings.HasPrefix(got, tt.want) {
				t.Errorf("got\n%s\nwant\n%s\n%s", got, tt.want, strings.Join(l.lines, "\n"))
			}
		})
	}
}
