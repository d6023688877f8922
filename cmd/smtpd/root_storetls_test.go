package main

import (
	"bytes"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
)

// wire is what went by a proxy to a store, from our side.
type wire struct {
	mu   sync.Mutex
	sent bytes.Buffer
}

func (w *wire) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sent.Write(b)
}

// holds counts a text on the wire.
func (w *wire) holds(text string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return bytes.Count(w.sent.Bytes(), []byte(text))
}

// proxyStore stands before a store. A spoilt one agrees to STARTTLS and then speaks
// no TLS.
func proxyStore(t *testing.T, to string, spoilt bool) (addr string, w *wire) {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w = &wire{}
	var conns sync.WaitGroup
	t.Cleanup(func() { ln.Close(); conns.Wait() })
	conns.Go(func() {
		for {
			near, err := ln.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { w.pass(near, to, spoilt) })
		}
	})
	return ln.Addr().String(), w
}

func (w *wire) pass(near net.Conn, to string, spoilt bool) {
	defer near.Close()
	far, err := net.Dial("tcp4", to)
	if err != nil {
		return
	}
	defer far.Close()
	go func() { _, _ = io.Copy(near, far); near.Close() }() // ends with far
	b := make([]byte, 1<<16)
	for {
		n, err := near.Read(b)
		if err != nil {
			return
		}
		_, _ = w.Write(b[:n])
		if spoilt && string(b[:n]) == "STARTTLS\r\n" {
			_, _ = io.WriteString(near, "220 go\r\n")
			_, _ = near.Read(b)
			_, _ = io.WriteString(near, "what?\r\n")
			return
		}
		if _, err := far.Write(b[:n]); err != nil {
			return
		}
	}
}

// TestRootStoreTLS delivers to Dovecot's lmtpd by TCP and asks it about recipients:
// what can be heard on the way is TLS, whoever signed the certificate; where TLS is
// offered and does not work, mail comes without it.
func TestRootStoreTLS(t *testing.T) {
	if !asRoot(t) {
		return
	}
	socket, port, _ := startDovecot(t)
	if socket == "" {
		return
	}
	good, goodWire := proxyStore(t, "127.0.0.1:"+port, false)
	bad, badWire := proxyStore(t, "127.0.0.1:"+port, true)
	d := startRoot(t, `listen on 127.0.0.1 port 25
table base { ghost = 64203:64203:/home/alice }
action good lmtp "`+good+`" rcpt-to verify-rcpt
action ghost lmtp "`+good+`" verify-rcpt userbase <base>
action bad lmtp "`+bad+`" rcpt-to verify-rcpt
action badghost lmtp "`+bad+`" verify-rcpt userbase <base>
match from any for domain good.test action good
match from any for domain ghost.test action ghost
match from any for domain bad.test action bad
match from any for domain badghost.test action badghost
`)
	for _, to := range []string{"ghost@ghost.test", "ghost@badghost.test"} {
		if got := rcpt(t, to); !strings.HasPrefix(got, "550") || !strings.Contains(got, "User doesn't exist") {
			t.Errorf("%s, unknown to the store: %s", to, got)
		}
	}
	l := &ledger{acked: map[string]string{}}
	l.send(20, 2, []string{"alice@good.test", "bob@bad.test"}, nil)
	waitEmpty(t, d, waitLimit)
	l.check(t, collect(t, "/home/alice/Store/new", "/home/bob/Store/new"), false)
	if goodWire.holds("STARTTLS") == 0 || goodWire.holds("RCPT TO") > 0 || goodWire.holds("X-Token") > 0 {
		t.Errorf("with TLS: %d STARTTLS, then %d RCPT, %d mails can be heard", goodWire.holds("STARTTLS"), goodWire.holds("RCPT TO"), goodWire.holds("X-Token"))
	}
	plain := 0
	for _, text := range l.acked {
		plain += strings.Count(text, "\nTo: <bob@bad.test>\n")
	}
	if badWire.holds("STARTTLS") == 0 || plain == 0 || badWire.holds("X-Token") != plain {
		t.Errorf("without: %d STARTTLS, %d of %d mails", badWire.holds("STARTTLS"), badWire.holds("X-Token"), plain)
	}
	if !strings.Contains(d.log(), "warn: mda: store "+bad+": opportunistic TLS failed, downgrading to plain: ") {
		t.Errorf("nothing is said of it:\n%s", d.log())
	}
	if err := d.stop(); err != nil {
		t.Error(err)
	}
}
