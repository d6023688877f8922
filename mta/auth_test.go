package mta

import (
	"context"
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"smtpd/internal/config"
)

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func TestAuth(t *testing.T) {
	const ehlo = "C: EHLO me.test\nS: 250-mx\nS: 250 AUTH "
	const took = "\nC: MAIL.*\nS: 250 a\nC: RCPT.*\nS: 250 b\nC: DATA\nS: 354 c\nD\nS: 250 taken"
	const ok = "u@d.test 250 250 taken\n"
	plain := "C: AUTH PLAIN " + b64("\x00user\x00pass") + "\n"
	tests := map[string]struct {
		script string
		value  string // of the credentials
		relay  config.Relay
		want   string
	}{
		"PLAIN":              {ehlo + "LOGIN PLAIN\n" + plain + "S: 235 ok" + took, "user:pass", config.Relay{}, ok},
		"colon in password":  {ehlo + "PLAIN\nC: AUTH PLAIN " + b64("\x00user\x00p:s") + "\nS: 235 ok" + took, "user:p:s", config.Relay{}, ok},
		"label is the user":  {ehlo + "PLAIN\nC: AUTH PLAIN " + b64("\x00lbl\x00pass") + "\nS: 235 ok" + took, "pass", config.Relay{}, ok},
		"by label@host":      {ehlo + "PLAIN\nC: AUTH PLAIN " + b64("\x00lbl\x00pass") + "\nS: 235 ok" + took, "lbl@mx.d.test:pass", config.Relay{}, ok},
		"LOGIN":              {ehlo + "LOGIN\nC: AUTH LOGIN\nS: 334 VXNlcm5hbWU6\nC: dXNlcg==\nS: 334 UGFzc3dvcmQ6\nC: cGFzcw==\nS: 235 ok" + took, "user:pass", config.Relay{}, ok},
		"lower case":         {ehlo + "plain\n" + plain + "S: 235 ok" + took, "user:pass", config.Relay{}, ok},
		"refused":            {ehlo + "PLAIN\n" + plain + "S: 535 5.7.8 bad", "user:pass", config.Relay{}, "u@d.test 451 AUTH rejected: 535 5.7.8 bad\n"},
		"not offered":        {"C: EHLO me.test\nS: 250 mx", "user:pass", config.Relay{}, "u@d.test 451 AUTH not advertised\n"},
		"none in common":     {ehlo + "GSSAPI", "user:pass", config.Relay{}, "u@d.test 451 no supported AUTH method\n"},
		"endless challenges": {ehlo + "PLAIN\n" + plain + strings.Repeat("S: 334 eA==\nC: .*\n", 7) + "S: 334 eA==", "user:pass", config.Relay{}, "u@d.test 451 AUTH rejected: too many steps\n"},
		"challenge no base64": {ehlo + "PLAIN\n" + plain + "S: 334 !!\nC: [*]\nS: 501 cancelled", "user:pass", config.Relay{},
			"u@d.test 451 AUTH rejected: 501 cancelled\n"},
		"impostor, SCRAM": {ehlo + "PLAIN SCRAM-SHA-256\nC: AUTH SCRAM-SHA-256 .*\nS: 235 welcome", "user:pass", config.Relay{TLS: true, NoVerify: true},
			"u@d.test 451 AUTH rejected: the host did not prove that it knows us\n"},
	}
	a := newAuthority(t)
	cert := a.leaf("mx.d.test", -time.Hour, time.Hour, false)
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.trace = true
			w.roots = a.pool()
			w.lists["<h>"] = []string{"smtp+tls://lbl@mx.d.test"}
			key := "lbl"
			if user, _, _ := strings.Cut(tt.value, ":"); strings.Contains(user, "@") {
				key = user // as a table says of a line without a colon
			}
			w.tables["<secrets>"] = map[string]string{key: tt.value}
			w.addr("mx.d.test", "192.0.2.1")
			tt.relay.Host, tt.relay.Auth = "<h>", "<secrets>"
			w.hosts["192.0.2.1:25"] = func(p *peer) {
				p.say("220 mx")
				p.hear()
				p.say("250-mx\r\n250 STARTTLS\r\n")
				p.hear()
				p.say("220 go")
				if p.secure(cert, nil) {
					play(tt.script)(p)
				}
			}
			w.run(func(e *Engine) {
				e.Submit(context.Background(), w.message(&tt.relay, "u@d.test"))
				w.wait(1)
			})
			if got := w.results(); got != tt.want {
				t.Errorf("got %q, want %q\n%s", got, tt.want, w.text())
			}
			for _, secret := range []string{"pass", b64("\x00user\x00pass"), "cGFzcw"} {
				if strings.Contains(w.text(), secret) {
					t.Errorf("the log has %q:\n%s", secret, w.text())
				}
			}
		})
	}
}

// Credentials that are refused are not tried again at once, and the route stays
// good for others.
func TestAuthPenalty(t *testing.T) {
	a := newAuthority(t)
	w := newWorld(t)
	w.roots = a.pool()
	w.lists["<h>"] = []string{"smtps://lbl@mx.d.test:25"}
	w.lists["<other>"] = []string{"smtps://mx.d.test:25"}
	w.tables["<secrets>"] = map[string]string{"lbl": "user:pass"}
	w.addr("mx.d.test", "192.0.2.1")
	w.hosts["192.0.2.1:25"] = tlsHost(a.leaf("mx.d.test", -time.Hour, time.Hour, false), true, &goodHost{ext: []string{"AUTH PLAIN"}})
	relay := &config.Relay{Host: "<h>", Auth: "<secrets>"}
	w.run(func(e *Engine) {
		w.many(e, relay, 1, "d.test")
		w.wait(1)
		w.many(e, relay, 3, "d.test")
		w.wait(4)
		if len(w.dialed) != 1 {
			t.Errorf("%d connections, want 1", len(w.dialed))
		}
		w.many(e, &config.Relay{Host: "<other>"}, 1, "d.test")
		w.wait(5)
	})
	if w.codes()[250] != 1 || w.codes()[451] != 4 || strings.Contains(w.text(), "Disabling") {
		t.Errorf("%s%s", w.results(), w.text())
	}
}

// The exchange of RFC 7677 section 3.
func TestScram(t *testing.T) {
	c := newScram("user", "pencil", "rOprNGfwEbeRWgbNEkqO")
	_, first, _ := c.Start()
	if got := string(first); got != "n,,n=user,r=rOprNGfwEbeRWgbNEkqO" {
		t.Errorf("first: %s", got)
	}
	final, err := c.Next([]byte("r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"))
	if want := "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="; err != nil || string(final) != want {
		t.Fatalf("final: %s, %v", final, err)
	}
	if _, err := c.Next([]byte("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")); err != nil || !c.done {
		t.Errorf("server's signature: %v", err)
	}
	for name, challenge := range map[string]string{
		"foreign nonce":   "r=xOprNGfwEbeRWgbNEkqO%x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
		"no nonce added":  "r=rOprNGfwEbeRWgbNEkqO,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
		"too much work":   "r=rOprNGfwEbeRWgbNEkqOx,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096000000",
		"no work":         "r=rOprNGfwEbeRWgbNEkqOx,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=0",
		"must understand": "m=x,r=rOprNGfwEbeRWgbNEkqOx,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
		"nothing":         "",
	} {
		c := newScram("user", "pencil", "rOprNGfwEbeRWgbNEkqO")
		c.Start()
		if _, err := c.Next([]byte(challenge)); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}
