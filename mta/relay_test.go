package mta

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/mail"
)

// many submits n messages for domain, one recipient each.
func (w *world) many(e *Engine, a *config.Relay, n int, domain string) {
	for i := range n {
		e.Submit(context.Background(), w.message(a, fmt.Sprintf("u%d@%s", i, domain)))
	}
}

// codes counts the reports by code.
func (w *world) codes() map[int]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := map[int]int{}
	for _, r := range w.reports {
		m[r.Status.Code]++
	}
	return m
}

func TestManyMails(t *testing.T) {
	tests := map[string]struct {
		ext    []string
		mails  int
		limits func(l *config.MTALimits)
		conns  int // at most
		peak   int // at most
	}{
		"pipelined":         {[]string{"PIPELINING"}, 300, func(l *config.MTALimits) {}, 30, 20},
		"one by one":        {nil, 300, func(l *config.MTALimits) {}, 30, 20},
		"five per route":    {[]string{"PIPELINING"}, 300, func(l *config.MTALimits) { l.MaxConnPerRoute = 5 }, 10, 5},
		"one connection":    {[]string{"PIPELINING"}, 50, func(l *config.MTALimits) { l.MaxConnPerRoute = 1 }, 1, 1},
		"one per host":      {nil, 50, func(l *config.MTALimits) { l.MaxConnPerHost = 1 }, 1, 1},
		"one per relay":     {nil, 50, func(l *config.MTALimits) { l.MaxConnPerRelay = 1 }, 1, 1},
		"one per domain":    {nil, 50, func(l *config.MTALimits) { l.MaxConnPerDomain = 1 }, 1, 1},
		"two per source":    {nil, 50, func(l *config.MTALimits) { l.MaxConnPerSource = 2 }, 2, 2},
		"two per connector": {nil, 50, func(l *config.MTALimits) { l.MaxConnPerConnector = 2 }, 2, 2},
		"ten mails each":    {[]string{"PIPELINING"}, 100, func(l *config.MTALimits) { l.SessionMailMax = 10 }, 25, 20},
		"pause between":     {[]string{"PIPELINING"}, 20, func(l *config.MTALimits) { l.SessionTransactionDelay = time.Minute }, 10, 10},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.mx("d.test", "10 mx.d.test 192.0.2.1")
			w.cfg.MTA.Default.TaskHiwat = 0
			tt.limits(&w.cfg.MTA.Default)
			h := &goodHost{ext: tt.ext}
			w.hosts["192.0.2.1:25"] = h.serve
			w.run(func(e *Engine) {
				w.many(e, &config.Relay{}, tt.mails, "d.test")
				w.wait(tt.mails)
			})
			if got := w.codes()[250]; got != tt.mails || len(w.reports) != tt.mails {
				t.Errorf("%d of %d delivered, %d reports", got, tt.mails, len(w.reports))
			}
			if h.conns > tt.conns || h.peak > tt.peak || len(h.bodies) != tt.mails {
				t.Errorf("%d connections, %d at a time, %d texts; want at most %d, %d, and %d", h.conns, h.peak,
					len(h.bodies), tt.conns, tt.peak, tt.mails)
			}
			for _, b := range h.bodies {
				if b != "Subject: x\r\n\r\nhello\r\n..\r\n" {
					t.Fatalf("text: %q", b)
				}
			}
			seen := map[mail.EnvelopeID]int{}
			for _, r := range w.reports {
				if seen[r.Envelope.ID]++; seen[r.Envelope.ID] > 1 {
					t.Errorf("%s reported twice", r.Envelope.ID)
				}
			}
		})
	}
}

func TestPipelinedRoundTrips(t *testing.T) {
	w := newWorld(t)
	w.mx("d.test", "10 mx.d.test 192.0.2.1")
	w.cfg.MTA.Default.MaxConnPerRoute = 1
	// The next transaction begins behind the text of the one before.
	host := play(`S: 220 mx
		C: EHLO me.test
		S: 250-mx
		S: 250 PIPELINING
		C: MAIL FROM:<a@b.test>
		C: RCPT TO:<u0@d.test>
		C: DATA
		S: 250 a
		S: 250 b
		S: 354 c
		D
		C: MAIL FROM:<a@b.test>
		C: RCPT TO:<u1@d.test>
		C: DATA
		S: 250 done 0
		S: 250 a
		S: 250 b
		S: 354 c
		D
		S: 250 done 1
		C: QUIT
		S: 221 bye`)
	w.run(func(e *Engine) {
		both := make(chan struct{}) // are there before the first is sent
		w.hosts["192.0.2.1:25"] = func(p *peer) { <-both; host(p) }
		w.many(e, &config.Relay{}, 2, "d.test")
		synctest.Wait()
		close(both)
		w.wait(2)
	})
	if got := w.results(); got != "u0@d.test 250 250 done 0\nu1@d.test 250 250 done 1\n" {
		t.Errorf("got %s", got)
	}
}

func TestRecipients(t *testing.T) {
	refuse := func(n int, reply string) func(string) string {
		return func(line string) string {
			if strings.Contains(line, fmt.Sprintf("<u%d@", n)) {
				return reply
			}
			return "250 ok"
		}
	}
	taken := 0
	tests := map[string]struct {
		n      int
		ext    []string
		rcpt   func(string) string
		data   func(string) string
		want   map[int]int // codes
		bodies int
	}{
		"all well":            {100, []string{"PIPELINING"}, nil, nil, map[int]int{250: 100}, 1},
		"one bad":             {100, []string{"PIPELINING"}, refuse(7, "550 5.1.1 no"), nil, map[int]int{250: 99, 550: 1}, 1},
		"one bad, one by one": {100, nil, refuse(7, "550 5.1.1 no"), nil, map[int]int{250: 99, 550: 1}, 1},
		"one later":           {100, []string{"PIPELINING"}, refuse(99, "450 4.2.0 greylisted"), nil, map[int]int{250: 99, 450: 1}, 1},
		"text refused":        {3, []string{"PIPELINING"}, refuse(0, "550 no"), func(string) string { return "554 5.6.0 spam" }, map[int]int{550: 1, 554: 2}, 1},
		"more than a hundred": {250, []string{"PIPELINING"}, nil, nil, map[int]int{250: 250}, 3},
		"host takes ten": {25, []string{"PIPELINING"}, func(string) string {
			taken++
			return map[bool]string{true: "250 ok", false: "452 4.5.3 too many"}[(taken-1)%25 < 10]
		}, nil, nil, 0},
		"too many for the day": {3, nil, refuse(0, "452 4.2.2 full"), nil, map[int]int{250: 2, 452: 1}, 1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.mx("d.test", "10 mx.d.test 192.0.2.1")
			w.cfg.MTA.Default.MaxConnPerRoute = 1
			h := &goodHost{ext: tt.ext, rcpt: tt.rcpt, data: tt.data}
			if tt.want == nil { // ten of each transaction
				n := 0
				h.mail = func(string) string { n = 0; return "250 ok" }
				h.rcpt = func(string) string {
					if n++; n > 10 {
						return "452 4.5.3 too many recipients"
					}
					return "250 ok"
				}
				tt.want, tt.bodies = map[int]int{250: 25}, 3
			}
			w.hosts["192.0.2.1:25"] = h.serve
			var rcpts []string
			for i := range tt.n {
				rcpts = append(rcpts, fmt.Sprintf("u%d@d.test", i))
			}
			w.run(func(e *Engine) {
				e.Submit(context.Background(), w.message(&config.Relay{}, rcpts...))
				w.wait(tt.n)
			})
			got := w.codes()
			for code, n := range tt.want {
				if got[code] != n {
					t.Errorf("codes %v, want %v", got, tt.want)
				}
			}
			if len(h.bodies) != tt.bodies {
				t.Errorf("%d texts, want %d", len(h.bodies), tt.bodies)
			}
		})
	}
}

func TestTooManyErrors(t *testing.T) {
	for _, ext := range [][]string{nil, {"PIPELINING"}} {
		w := newWorld(t)
		w.mx("d.test", "10 mx.d.test 192.0.2.1")
		h := &goodHost{ext: ext, rcpt: func(string) string { return "550 5.1.1 no" }}
		w.hosts["192.0.2.1:25"] = h.serve
		var rcpts []string
		for i := range 40 {
			rcpts = append(rcpts, fmt.Sprintf("u%d@d.test", i))
		}
		w.run(func(e *Engine) {
			e.Submit(context.Background(), w.message(&config.Relay{}, rcpts...))
			w.wait(40)
		})
		if got := w.codes(); ext == nil && (got[550] != 25 || got[451] != 15) || ext != nil && got[550] != 40 {
			t.Errorf("%v: codes %v", ext, got)
		}
		if !strings.Contains(w.text(), "mta error reason=Too many consecutive errors, closing connection") {
			t.Errorf("log:\n%s", w.text())
		}
	}
}

func TestRejectsAll(t *testing.T) {
	w := newWorld(t)
	w.mx("d.test", "10 mx.d.test 192.0.2.1")
	h := &goodHost{ext: []string{"PIPELINING"}, mail: func(string) string { return "550 5.7.1 no" }}
	w.cfg.MTA.Default.MaxConnPerRoute = 1
	w.hosts["192.0.2.1:25"] = h.serve
	w.run(func(e *Engine) {
		w.many(e, &config.Relay{}, 30, "d.test")
		w.wait(30)
	})
	if n := w.count("mta host-rejects-all-mails$"); n != 3 || w.codes()[550] != 30 {
		t.Errorf("%d times; codes %v", n, w.codes())
	}
}

func TestStaleConnection(t *testing.T) {
	const first = `S: 220 mx
		C: EHLO me.test
		S: 250-mx
		S: 250 PIPELINING
		C: MAIL FROM:<a@b.test>
		C: RCPT TO:<u0@d.test>
		C: DATA
		S: 250 a
		S: 250 b
		S: 354 c
		D
		S: 250 done
		`
	for name, end := range map[string]string{
		"closed":          "drop",
		"421 while idle":  "S: 421 too slow\ndrop",
		"421 to MAIL":     "C: MAIL.*\nC: RCPT.*\nC: DATA\nS: 421 enough\ndrop",
		"dropped at MAIL": "C: MAIL.*\ndrop",
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.mx("d.test", "10 mx.d.test 192.0.2.1")
			n := 0
			good := &goodHost{}
			w.hosts["192.0.2.1:25"] = func(p *peer) {
				if n++; n == 1 {
					play(first + end)(p)
					return
				}
				good.serve(p)
			}
			w.run(func(e *Engine) {
				w.many(e, &config.Relay{}, 1, "d.test")
				w.wait(1)
				synctest.Wait()
				w.many(e, &config.Relay{}, 1, "d.test")
				w.wait(2)
			})
			if w.codes()[250] != 2 || len(w.reports) != 2 {
				t.Errorf("got\n%s%s", w.results(), w.text())
			}
		})
	}
}

func TestLMTP(t *testing.T) {
	for _, ext := range [][]string{nil, {"PIPELINING"}} {
		w := newWorld(t)
		w.lists["<hosts>"] = []string{"lmtp://192.0.2.1:24"}
		n := 0
		h := &goodHost{ext: ext, lmtp: true, data: func(string) string {
			if n++; n == 2 {
				return "452 4.2.2 full"
			}
			return fmt.Sprintf("250 2.0.0 delivered %d", n)
		}}
		w.hosts["192.0.2.1:24"] = h.serve
		w.run(func(e *Engine) {
			e.Submit(context.Background(), w.message(&config.Relay{Host: "<hosts>"}, "a@d.test", "b@d.test", "c@d.test"))
			w.wait(3)
		})
		want := "a@d.test 250 250 2.0.0 delivered 1\nb@d.test 452 452 4.2.2 full\nc@d.test 250 250 2.0.0 delivered 3\n"
		if got := w.results(); got != want {
			t.Errorf("got\n%swant\n%s", got, want)
		}
		if h.lines[0] != "LHLO me.test" {
			t.Errorf("began with %q", h.lines[0])
		}
		if !strings.Contains(w.text(), "mta connecting address=lmtp://192.0.2.1:24 host=192.0.2.1\n") {
			t.Errorf("log:\n%s", w.text())
		}
	}
}

func TestParameters(t *testing.T) {
	all := []string{"PIPELINING", "8BITMIME", "DSN", "SIZE 1000", "SMTPUTF8"}
	tests := map[string]struct {
		ext     []string
		relay   config.Relay
		change  func(e *mail.Envelope)
		text    string
		want    string // MAIL and RCPT; or the result
		relayed bool
	}{
		"nothing asked":   {all, config.Relay{}, func(*mail.Envelope) {}, "", "MAIL FROM:<a@b.test> SIZE=24|RCPT TO:<u@d.test>", false},
		"nothing offered": {nil, config.Relay{}, func(e *mail.Envelope) { e.DSN.Notify = mail.NotifyFailure; e.Flags = mail.Flag8BitMIME }, "", "MAIL FROM:<a@b.test>|RCPT TO:<u@d.test>", false},
		"DSN": {all, config.Relay{}, func(e *mail.Envelope) {
			e.DSN = mail.DSN{Notify: mail.NotifySuccess | mail.NotifyDelay, Ret: mail.RetFull, EnvID: "QQ314159", ORcpt: "rfc822;ok@d.test"}
		}, "", "MAIL FROM:<a@b.test> SIZE=24 RET=FULL ENVID=QQ314159|RCPT TO:<u@d.test> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;ok@d.test", false},
		"DSN never, headers": {all, config.Relay{}, func(e *mail.Envelope) { e.DSN = mail.DSN{Notify: mail.NotifyNever, Ret: mail.RetHeaders} }, "",
			"MAIL FROM:<a@b.test> SIZE=24 RET=HDRS|RCPT TO:<u@d.test> NOTIFY=NEVER", false},
		"success, no DSN": {nil, config.Relay{}, func(e *mail.Envelope) { e.DSN.Notify = mail.NotifySuccess }, "", "MAIL FROM:<a@b.test>|RCPT TO:<u@d.test>", true},
		"DSN with a blank": {all, config.Relay{}, func(e *mail.Envelope) { e.DSN.EnvID = "x BODY=8BITMIME" }, "",
			"u@d.test 553 Reverse-path cannot be sent\n", false},
		"ORCPT with a line": {all, config.Relay{}, func(e *mail.Envelope) { e.DSN.ORcpt = "rfc822;x\r\nDATA" }, "",
			"u@d.test 553 Recipient address cannot be sent\n", false},
		"8BITMIME":        {all, config.Relay{}, func(e *mail.Envelope) { e.Flags = mail.Flag8BitMIME }, "", "MAIL FROM:<a@b.test> SIZE=24 BODY=8BITMIME|RCPT TO:<u@d.test>", false},
		"null":            {nil, config.Relay{MailFrom: "x@y.test"}, func(e *mail.Envelope) { e.Sender = mail.Address{} }, "", "MAIL FROM:<>|RCPT TO:<u@d.test>", false},
		"mail-from":       {nil, config.Relay{MailFrom: "fixed@dom.test"}, func(*mail.Envelope) {}, "", "MAIL FROM:<fixed@dom.test>|RCPT TO:<u@d.test>", false},
		"mail-from user":  {nil, config.Relay{MailFrom: "fixed"}, func(*mail.Envelope) {}, "", "MAIL FROM:<fixed@b.test>|RCPT TO:<u@d.test>", false},
		"mail-from @":     {nil, config.Relay{MailFrom: "@dom.test"}, func(*mail.Envelope) {}, "", "MAIL FROM:<a@dom.test>|RCPT TO:<u@d.test>", false},
		"SRS, same":       {nil, config.Relay{SRS: true}, func(*mail.Envelope) {}, "", "MAIL FROM:<a@b.test>|RCPT TO:<u@d.test>", false},
		"SRS":             {nil, config.Relay{SRS: true}, func(e *mail.Envelope) { e.Rcpt = mail.SplitAddress("f@us.test") }, "", "MAIL FROM:<SRS0=fKEr=WN=b.test=a@us.test>|RCPT TO:<u@d.test>", false},
		"UTF-8 user":      {all, config.Relay{}, func(e *mail.Envelope) { e.Dest.User = "jürg" }, "", "MAIL FROM:<a@b.test> SIZE=24 SMTPUTF8|RCPT TO:<jürg@d.test>", false},
		"UTF-8, no":       {nil, config.Relay{}, func(e *mail.Envelope) { e.Dest.User = "jürg" }, "", "jürg@d.test 553 Remote host does not support SMTPUTF8\n", false},
		"UTF-8 flag":      {nil, config.Relay{}, func(e *mail.Envelope) { e.Flags = mail.FlagUTF8 }, "Subject: x\r\n\r\nü\r\n", "MAIL FROM:<a@b.test>|RCPT TO:<u@d.test>", false},
		"UTF-8 header":    {nil, config.Relay{}, func(e *mail.Envelope) { e.Flags = mail.FlagUTF8 }, "Subject: ü\r\n\r\n", "u@d.test 553 Remote host does not support SMTPUTF8\n", false},
		"sender CR":       {nil, config.Relay{}, func(e *mail.Envelope) { e.Sender.User = "a\rb" }, "", "u@d.test 553 Reverse-path cannot be sent\n", false},
		"recipient blank": {nil, config.Relay{}, func(e *mail.Envelope) { e.Dest.User = "u v" }, "", "u v@d.test 553 Recipient address cannot be sent\n", false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.mx("d.test", "10 mx.d.test 192.0.2.1")
			w.cfg.SRS.Key = "secret"
			h := &goodHost{ext: tt.ext}
			w.hosts["192.0.2.1:25"] = h.serve
			w.run(func(e *Engine) {
				m := w.message(&tt.relay, "u@d.test")
				tt.change(&m.Envelopes[0])
				if tt.text != "" {
					m.Open = func(context.Context) (Text, error) { return Text{Data: []byte(tt.text)}, nil }
				}
				e.Submit(context.Background(), m)
				w.wait(1)
			})
			got := ""
			for _, l := range h.lines {
				if strings.HasPrefix(l, "MAIL") {
					got = l
				}
				if strings.HasPrefix(l, "RCPT") {
					got += "|" + l
				}
			}
			if !strings.Contains(tt.want, "|") {
				got = w.results()
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if r := w.reports[0].Relayed; r != tt.relayed {
				t.Errorf("Relayed: %v", r)
			}
		})
	}
}

func TestRoutes(t *testing.T) {
	const network = "u@d.test 451 Network error on destination MXs\n"
	const ok = "u@d.test 250 250 2.0.0 queued as ABC123\n"
	good := func(w *world, addr string) { w.hosts[addr] = (&goodHost{}).serve }
	tests := map[string]struct {
		setup  func(w *world)
		relay  config.Relay
		want   string
		dialed []string // in order; nil: not looked at
		within time.Duration
	}{
		"second preference": {func(w *world) {
			w.mx("d.test", "10 a.test 192.0.2.1", "20 b.test 192.0.2.2")
			good(w, "192.0.2.2:25")
		}, config.Relay{}, ok, []string{"192.0.2.1:25", "192.0.2.2:25"}, time.Second},
		"first is silent": {func(w *world) {
			w.mx("d.test", "10 a.test 192.0.2.1 192.0.2.2")
			w.hosts["192.0.2.1:25"] = nil
			w.hosts["192.0.2.2:25"] = nil
			w.addr("a.test", "192.0.2.3")
			good(w, "192.0.2.3:25")
		}, config.Relay{}, ok, nil, 10 * time.Second},
		"silent preference waits": {func(w *world) {
			w.mx("d.test", "10 a.test 192.0.2.1", "20 b.test 192.0.2.2")
			w.hosts["192.0.2.1:25"] = nil
			good(w, "192.0.2.2:25")
		}, config.Relay{}, ok, []string{"192.0.2.1:25", "192.0.2.2:25"}, time.Minute},
		"IPv6 does not work": {func(w *world) {
			w.mx("d.test", "10 a.test 192.0.2.1 2001:db8::1")
			good(w, "192.0.2.1:25")
		}, config.Relay{}, ok, []string{"[2001:db8::1]:25", "192.0.2.1:25"}, time.Second},
		"only IPv4 wanted": {func(w *world) {
			w.mx("d.test", "10 a.test 192.0.2.1 2001:db8::1")
			w.cfg.MTA.Default.Family = "inet4"
			good(w, "192.0.2.1:25")
		}, config.Relay{}, ok, []string{"192.0.2.1:25"}, time.Second},
		"family mismatch": {func(w *world) {
			w.mx("d.test", "10 a.test 2001:db8::1")
			w.cfg.MTA.Default.Family = "inet4"
		}, config.Relay{}, "u@d.test 451 Address family mismatch on destination MXs\n", []string{}, time.Second},
		"source of the other family": {func(w *world) {
			w.mx("d.test", "10 a.test 2001:db8::1 192.0.2.1")
			w.lists["<src>"] = []string{"192.0.2.50"}
			good(w, "192.0.2.1:25")
		}, config.Relay{Src: "<src>"}, ok, []string{"192.0.2.1:25"}, time.Second},
		"no source":      {func(w *world) { w.mx("d.test", "10 a.test 192.0.2.1") }, config.Relay{Src: "<src>"}, "u@d.test 451 Could not retrieve source address\n", []string{}, time.Second},
		"all refuse":     {func(w *world) { w.mx("d.test", "10 a.test 192.0.2.1 192.0.2.2") }, config.Relay{}, network, nil, time.Second},
		"domain literal": {func(w *world) { good(w, "192.0.2.1:25") }, config.Relay{}, "u@[192.0.2.1] 250 250 2.0.0 queued as ABC123\n", nil, time.Second},
		"smarthost":      {func(w *world) { w.lists["<h>"] = []string{"smtp://192.0.2.1:587"}; good(w, "192.0.2.1:587") }, config.Relay{Host: "<h>"}, ok, nil, time.Second},
		"second smarthost": {func(w *world) {
			w.lists["<h>"] = []string{"smtp://192.0.2.1", "smtp://192.0.2.2", "smtp://192.0.2.3"}
			good(w, "192.0.2.3:25")
		}, config.Relay{Host: "<h>"}, ok, []string{"192.0.2.1:25", "192.0.2.2:25", "192.0.2.3:25"}, time.Second},
		"no smarthost left": {func(w *world) {
			w.lists["<h>"] = []string{"smtp://192.0.2.1", "smtp://192.0.2.2"}
		}, config.Relay{Host: "<h>"}, network, []string{"192.0.2.1:25", "192.0.2.2:25"}, time.Second},
		"smarthost by domain": {func(w *world) {
			w.tables["<t>"] = map[string]string{"d.test": "192.0.2.1:26"}
			good(w, "192.0.2.1:26")
		}, config.Relay{Domain: "<t>"}, ok, nil, time.Second},
		"no smarthost":  {func(w *world) { w.tables["<t>"] = map[string]string{} }, config.Relay{Domain: "<t>"}, "u@d.test 451 Cannot retrieve smarthost\n", nil, time.Second},
		"bad smarthost": {func(w *world) { w.lists["<h>"] = []string{"gopher://x"} }, config.Relay{Host: "<h>"}, "u@d.test 451 Cannot parse smarthost\n", nil, time.Second},
		"tls and notls": {func(w *world) { w.lists["<h>"] = []string{"smtp+notls://x"} }, config.Relay{Host: "<h>", TLS: true}, "u@d.test 451 TLS required for relaying\n", nil, time.Second},
		"no auth table": {func(w *world) { w.lists["<h>"] = []string{"smtps://l@x"} }, config.Relay{Host: "<h>"}, "u@d.test 451 No auth table for relaying\n", nil, time.Second},
		"no credentials": {func(w *world) {
			w.lists["<h>"] = []string{"smtps://l@x"}
			w.tables["<a>"] = map[string]string{"l": ":"}
		}, config.Relay{Host: "<h>", Auth: "<a>"}, "u@d.test 451 Could not retrieve credentials\n", nil, time.Second},
		"backup": {func(w *world) { w.mx("d.test", "10 me.test 192.0.2.9") }, config.Relay{Backup: true}, "u@d.test 451 No MX found for destination\n", nil, time.Second},
		"ourselves": {func(w *world) {
			w.mx("d.test", "10 x.test 192.0.2.9")
			w.cfg.Listeners = []*config.Listener{{Addr: netip.MustParseAddrPort("0.0.0.0:25")}}
			w.cfg.LocalAddrs = []netip.Addr{netip.MustParseAddr("192.0.2.9")}
		}, config.Relay{}, "u@d.test 554 mail for d.test loops back to myself\n", []string{}, time.Second},
		"blocked": {func(w *world) {
			w.mx("d.test", "10 a.test 192.0.2.1")
			good(w, "192.0.2.1:25")
			w.lists["<src>"] = []string{"192.0.2.50"}
		}, config.Relay{Src: "<src>"}, "u@d.test 451 All routes to destination blocked\n", []string{}, time.Second},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			tt.setup(w)
			var took time.Duration
			w.run(func(e *Engine) {
				if name == "blocked" {
					e.Block(true, netip.MustParseAddr("192.0.2.50"), "D.test")
				}
				begin := time.Now()
				to := "u@d.test"
				if name == "domain literal" {
					to = "u@[192.0.2.1]"
				}
				e.Submit(context.Background(), w.message(&tt.relay, to))
				w.wait(1)
				took = time.Since(begin)
			})
			if got := w.results(); got != tt.want {
				t.Errorf("got %q, want %q\n%s", got, tt.want, w.text())
			}
			if tt.dialed != nil && !slices.Equal(w.dialed, tt.dialed) {
				t.Errorf("dialed %v, want %v", w.dialed, tt.dialed)
			}
			if took > tt.within {
				t.Errorf("took %v, want at most %v", took, tt.within)
			}
		})
	}
}

func TestPenalty(t *testing.T) {
	w := newWorld(t)
	w.mx("d.test", "10 mx.d.test 192.0.2.1")
	w.dns["PTR 1.2.0.192.in-addr.arpa"] = fakeAnswer{records: []Record{{Data: "ptr.d.test"}}}
	h := &goodHost{}
	w.run(func(e *Engine) {
		w.many(e, &config.Relay{}, 1, "d.test")
		w.wait(1)
		w.many(e, &config.Relay{}, 1, "d.test") // the route is out of use: not tried
		w.wait(2)
		if n := len(w.dialed); n != 1 {
			t.Errorf("%d connections, want 1", n)
		}
		w.pass(16 * time.Second)
		w.mu.Lock()
		w.hosts["192.0.2.1:25"] = h.serve
		w.mu.Unlock()
		w.many(e, &config.Relay{}, 1, "d.test")
		w.wait(3)
	})
	want := "u0@d.test 451 Network error on destination MXs\n"
	if got := w.results(); got != want+want+"u0@d.test 250 250 2.0.0 queued as ABC123\n" {
		t.Errorf("got\n%s", got)
	}
	for _, line := range []string{
		"smtp-out: Disabling route [] <-> 192.0.2.1 (ptr.d.test) for 15s\n",
		"smtp-out: Enabling route [] <-> 192.0.2.1 (ptr.d.test)\n",
		"smtp-out: No valid route for [connector:[]->[relay:d.test,smtp],0x0]\n",
		" mta connecting address=smtp://192.0.2.1:25 host=ptr.d.test\n",
	} {
		if !strings.Contains(w.text(), line) {
			t.Errorf("log has no %q:\n%s", line, w.text())
		}
	}
	if got := w.reports[0].Line; got != "Network error on destination MXs: mx.d.test (192.0.2.1): IO Error: Connection refused" {
		t.Errorf("line: %q", got)
	}
}

// A route that was never ready gets one connection, however much there is to do.
func TestProbe(t *testing.T) {
	w := newWorld(t)
	w.cfg.MTA.Default.TaskHiwat = 0 // nothing is given back
	w.mx("d.test", "10 mx.d.test 192.0.2.1")
	w.hosts["192.0.2.1:25"] = nil
	w.run(func(e *Engine) {
		w.many(e, &config.Relay{}, 40, "d.test")
		w.wait(40)
	})
	if len(w.dialed) != 1 || w.codes()[451] != 40 {
		t.Errorf("%d connections, codes %v", len(w.dialed), w.codes())
	}
}

// A host that bears two connections is not punished for refusing the third.
func TestHostLimit(t *testing.T) {
	w := newWorld(t)
	w.mx("d.test", "10 mx.d.test 192.0.2.1")
	w.cfg.MTA.Default.TaskHiwat = 0
	h := &goodHost{ext: []string{"PIPELINING"}}
	w.hosts["192.0.2.1:25"] = func(p *peer) {
		h.mu.Lock()
		full := h.now >= 2
		h.mu.Unlock()
		if full {
			p.say("421 4.7.0 too many connections")
			return
		}
		h.serve(p)
	}
	w.run(func(e *Engine) {
		w.many(e, &config.Relay{}, 500, "d.test")
		w.wait(500)
	})
	if w.codes()[250] != 500 || strings.Contains(w.text(), "Disabling route") {
		t.Errorf("codes %v\n%s", w.codes(), w.text())
	}
}

func TestKeepalive(t *testing.T) {
	w := newWorld(t)
	w.mx("d.test", "10 mx.d.test 192.0.2.1")
	h := &goodHost{}
	w.hosts["192.0.2.1:25"] = h.serve
	w.run(func(e *Engine) {
		w.many(e, &config.Relay{}, 1, "d.test")
		w.wait(1)
		w.pass(9 * time.Second)
		if strings.Contains(w.text(), "disconnected") {
			t.Error("left before its time")
		}
		w.pass(2 * time.Second)
		if !strings.Contains(w.text(), "mta disconnected reason=quit messages=1\n") {
			t.Errorf("still there after 11 s:\n%s", w.text())
		}
	})
}

// Many small domains behind one host take turns on its few connections.
func TestSharedHost(t *testing.T) {
	w := newWorld(t)
	h := &goodHost{ext: []string{"PIPELINING"}}
	w.hosts["192.0.2.1:25"] = h.serve
	var took time.Duration
	w.run(func(e *Engine) {
		begin := time.Now()
		for i := range 200 {
			d := fmt.Sprintf("d%d.test", i)
			w.mx(d, "10 mx.test")
		}
		w.addr("mx.test", "192.0.2.1")
		for i := range 200 {
			w.many(e, &config.Relay{}, 2, fmt.Sprintf("d%d.test", i))
		}
		w.wait(400)
		took = time.Since(begin)
	})
	if w.codes()[250] != 400 || h.peak > 20 || took > 10*time.Second {
		t.Errorf("codes %v, peak %d, took %v", w.codes(), h.peak, took)
	}
}

func TestDelays(t *testing.T) {
	w := newWorld(t)
	w.mx("d.test", "10 mx.d.test 192.0.2.1")
	h := &goodHost{}
	w.hosts["192.0.2.1:25"] = h.serve
	l := &w.cfg.MTA.Default
	l.SessionMailMax, l.ConnDelayRoute = 1, 7*time.Second
	var took time.Duration
	w.run(func(e *Engine) {
		begin := time.Now()
		w.many(e, &config.Relay{}, 5, "d.test")
		w.wait(5)
		took = time.Since(begin)
	})
	if took < 28*time.Second || took > 29*time.Second {
		t.Errorf("five connections with 7 s between them took %v", took)
	}
}

func TestHold(t *testing.T) {
	w := newWorld(t)
	w.mx("d.test", "10 mx.d.test 192.0.2.1")
	l := &w.cfg.MTA.Default
	l.TaskHiwat, l.TaskLowat, l.TaskRelease = 10, 5, 3
	l.MaxConnPerRoute = 1
	gate := make(chan struct{})
	h := &goodHost{mail: func(string) string { <-gate; return "250 ok" }}
	w.run(func(e *Engine) {
		gate = make(chan struct{})
		w.hosts["192.0.2.1:25"] = h.serve
		w.many(e, &config.Relay{}, 26, "d.test") // one of them is under way at once
		if strings.Contains(w.text(), "hold") {
			t.Error("given back before it was known to be slow")
		}
		w.pass(3 * time.Second)
		if n := w.count("^hold 15$"); n != 1 {
			t.Errorf("what is too much was not given back:\n%s", w.text())
		}
		w.many(e, &config.Relay{}, 5, "d.test")
		if n := w.count("^hold 1$"); n != 5 {
			t.Errorf("%d envelopes given back, want 5", n)
		}
		close(gate)
		w.wait(11)
		synctest.Wait()
	})
	// At 5 left, three are wanted; at each three taken, three more; at the end all.
	if got := w.count("^release 3$"); got < 2 {
		t.Errorf("%d releases of 3:\n%s", got, w.text())
	}
	if len(w.reports) != 11 {
		t.Errorf("%d reports", len(w.reports))
	}
}

func TestSources(t *testing.T) {
	w := newWorld(t)
	w.mx("d.test", "10 mx.d.test 192.0.2.1")
	w.lists["<src>"] = []string{"192.0.2.50", "192.0.2.51", "192.0.2.52"}
	w.tables["<names>"] = map[string]string{"192.0.2.50": "n50.test", "192.0.2.51": "n51.test", "192.0.2.52": "n52.test"}
	h := &goodHost{}
	w.hosts["192.0.2.1:25"] = h.serve
	w.run(func(e *Engine) {
		w.many(e, &config.Relay{Src: "<src>", HeloSrc: "<names>"}, 40, "d.test")
		w.wait(40)
	})
	names := map[string]bool{}
	for _, l := range h.lines {
		if n, ok := strings.CutPrefix(l, "EHLO "); ok {
			names[n] = true
		}
	}
	if len(names) != 3 {
		t.Errorf("names used: %v", names)
	}
	for _, r := range w.reports {
		if !strings.HasPrefix(r.Source, "192.0.2.5") {
			t.Errorf("source %q", r.Source)
		}
	}
}

func TestTextNotReadable(t *testing.T) {
	w := newWorld(t)
	w.mx("d.test", "10 mx.d.test 192.0.2.1")
	h := &goodHost{}
	w.hosts["192.0.2.1:25"] = h.serve
	w.openFail = errors.New("queue is gone")
	w.run(func(e *Engine) {
		w.many(e, &config.Relay{}, 2, "d.test")
		w.wait(2)
		w.mu.Lock()
		w.openFail = nil
		w.mu.Unlock()
		w.many(e, &config.Relay{}, 1, "d.test")
		w.wait(3)
	})
	if got := w.results(); got != "u0@d.test 451 Temporary failure\nu1@d.test 451 Temporary failure\nu0@d.test 250 250 2.0.0 queued as ABC123\n" {
		t.Errorf("got\n%s", got)
	}
	if !w.reports[0].NoTry || w.reports[2].NoTry {
		t.Error("NoTry is wrong")
	}
}

// A panic ends one session; what it had in hand, here two mails, is tried again
// later.
func TestPanic(t *testing.T) {
	w := newWorld(t)
	w.mx("d.test", "10 mx.d.test 192.0.2.1")
	w.cfg.MTA.Default.MaxConnPerRoute = 1
	h := &goodHost{ext: []string{"PIPELINING"}}
	w.hosts["192.0.2.1:25"] = h.serve
	w.run(func(e *Engine) {
		w.many(e, &config.Relay{}, 2, "d.test")
		m := w.message(&config.Relay{}, "bad@d.test")
		m.Open = func(context.Context) (Text, error) { panic("boom") }
		e.Submit(context.Background(), m)
		w.many(e, &config.Relay{}, 2, "d.test")
		w.wait(5)
	})
	if w.codes()[250] != 3 || w.codes()[451] != 2 || !strings.Contains(w.text(), "panic: boom") {
		t.Errorf("%s%s", w.results(), w.text())
	}
}

// brokenFile fails to be read in the middle.
type brokenFile struct{ closed bool }

func (f *brokenFile) ReadAt(p []byte, off int64) (int, error) {
	if off > 0 {
		return 0, errors.New("input/output error")
	}
	return copy(p, "Subject: x\r\n\r\n"), nil
}
func (f *brokenFile) Close() error { f.closed = true; return nil }

func TestTextBreaksOff(t *testing.T) {
	w := newWorld(t)
	w.mx("d.test", "10 mx.d.test 192.0.2.1")
	h := &goodHost{ext: []string{"8BITMIME"}}
	w.hosts["192.0.2.1:25"] = h.serve
	f := &brokenFile{}
	w.run(func(e *Engine) {
		m := w.message(&config.Relay{}, "u@d.test")
		m.Open = func(context.Context) (Text, error) { return Text{File: f, Size: 100000}, nil }
		e.Submit(context.Background(), m)
		w.wait(1)
		synctest.Wait()
	})
	// The host must not take what it got for the whole.
	if got := w.results(); got != "u@d.test 451 Temporary failure\n" || !f.closed {
		t.Errorf("got %s, closed %v", got, f.closed)
	}
	for _, l := range h.lines {
		if l == "." || strings.HasPrefix(l, "QUIT") {
			t.Errorf("said %q", l)
		}
	}
}

func TestStop(t *testing.T) {
	w := newWorld(t)
	w.mx("d.test", "10 mx.d.test 192.0.2.1")
	w.mx("e.test", "10 mx.e.test 192.0.2.2")
	w.cfg.MTA.Default.MaxConnPerRoute = 1
	var took time.Duration
	slow := &goodHost{data: func(string) string { w.pass(2 * time.Second); return "250 2.0.0 slow" }}
	w.hosts["192.0.2.1:25"] = slow.serve
	w.hosts["192.0.2.2:25"] = func(p *peer) {
		h := &goodHost{data: func(string) string { io.Copy(io.Discard, p.in); return "250 never" }}
		h.serve(p)
	}
	var begin time.Time
	w.run(func(e *Engine) {
		w.many(e, &config.Relay{}, 2, "d.test")
		w.many(e, &config.Relay{}, 1, "e.test")
		synctest.Wait() // both hosts have a text now
		begin = time.Now()
		go func() { // measured inside the bubble
			e.wg.Wait()
			took = time.Since(begin)
		}()
	})
	if took < 4*time.Second || took > 5*time.Second {
		t.Errorf("ended after %v, want the 4 s of grace", took)
	}
	want := "u0@d.test 250 250 2.0.0 slow\nu0@e.test 451 Connection closed unexpectedly\n"
	if got := w.results(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// Of a relay whose host does not answer one task stays; the others are given back
// and wanted again when it is clear what becomes of it.
func TestSilentHostKeepsOne(t *testing.T) {
	for name, silence := range map[string]time.Duration{"for ever": 0, "for 3 s": 3 * time.Second} {
		w := newWorld(t)
		w.mx("d.test", "10 mx.d.test 192.0.2.1")
		h := &goodHost{ext: []string{"PIPELINING"}}
		w.hosts["192.0.2.1:25"] = func(p *peer) {
			if silence == 0 {
				io.Copy(io.Discard, p.in)
				return
			}
			w.pass(silence)
			h.serve(p)
		}
		w.opt.Timeouts = DefaultTimeouts()
		w.opt.Timeouts.Greeting = time.Minute
		w.run(func(e *Engine) {
			w.many(e, &config.Relay{}, 20, "d.test")
			w.wait(1)
			w.pass(2 * time.Second)
			if e.envelopes(0); w.holds[e.lastRelay] != 19 {
				t.Errorf("%s: %d held", name, w.holds[e.lastRelay])
			}
		})
		want := map[string]int{"for ever": 451, "for 3 s": 250}[name]
		if w.codes()[want] != 1 || w.count(`^release`) == 0 {
			t.Errorf("%s: %s%s", name, w.results(), w.text())
		}
	}
}
