package mta

import (
	"strings"
	"testing"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/mail"
)

// TestRetryDeferred: what a domain deferred is wanted again when it takes a
// recipient, as long as it is remembered and has rested.
func TestRetryDeferred(t *testing.T) {
	const first, second = "retry [0000000100000001]\n", "retry [0000000100000002]\n"
	const both = "retry [0000000100000001 0000000100000002]\n"
	tests := map[string]struct {
		max   int
		retry uint16
		pass  time.Duration
		taken string // who is accepted later
		again bool   // the first is tried once more before
		want  string
	}{
		"both":            {100, 0, 0, "ok@d.test", false, both},
		"other case":      {100, 0, 0, "ok@D.TEST", false, both},
		"one remembered":  {1, 0, 0, "ok@d.test", false, first},
		"none":            {0, 0, 0, "ok@d.test", false, ""},
		"another domain":  {100, 0, 0, "ok@e.test", false, ""},
		"still resting":   {100, 2, 39 * time.Second, "ok@d.test", false, ""},
		"rested":          {100, 2, 41 * time.Second, "ok@d.test", false, both},
		"tried meanwhile": {100, 0, 0, "ok@d.test", true, second},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.cfg.MTA.MaxDeferred = tt.max
			w.mx("d.test", "10 mx.d.test 192.0.2.1")
			w.mx("e.test", "10 mx.d.test 192.0.2.1")
			host := &goodHost{rcpt: func(line string) string {
				switch {
				case strings.Contains(line, "late"):
					return "451 4.7.1 come back later"
				case strings.Contains(line, "no"):
					return "550 5.1.1 no"
				}
				return "250 2.1.5 ok"
			}}
			w.hosts["192.0.2.1:25"] = host.serve
			w.run(func(e *Engine) {
				m := w.message(&config.Relay{}, "late1@d.test", "late2@d.test", "no@d.test")
				for i := range m.Envelopes {
					m.Envelopes[i].Retry = tt.retry
				}
				e.Submit(w.t.Context(), m)
				w.wait(3)
				w.pass(tt.pass)
				if tt.again {
					gone := mail.SplitAddress("no@d.test")
					again := m.Envelopes[0]
					again.Retry, again.Dest = 1, gone
					n := *m
					n.Envelopes = []mail.Envelope{again}
					e.Submit(w.t.Context(), &n)
					w.wait(4)
				}
				ok := w.message(&config.Relay{}, tt.taken, tt.taken)
				e.Submit(w.t.Context(), ok)
				w.wait(5)
			})
			got := ""
			for line := range strings.Lines(w.text()) {
				if strings.HasPrefix(line, "retry ") {
					got += line
				}
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// TestDeferredBounded: what is forgotten of domains is not counted on.
func TestDeferredBounded(t *testing.T) {
	w := newWorld(t)
	e := New(w.cfg, w.opt)
	now := time.Now()
	st := &mail.Status{Code: 451}
	env := &mail.Envelope{}
	for i := range maxHoststats + 500 {
		env.ID = mail.EnvelopeID(i)
		env.Dest.Domain = strings.Repeat("d", 1+i%200) + "." + time.Duration(i).String()
		e.remember(env, st, "451", now)
	}
	n := 0
	for _, h := range e.stats {
		n += len(h.deferred)
	}
	if n != e.ndeferred || n > maxHoststats || len(e.stats) > maxHoststats {
		t.Errorf("%d deferred, %d counted, %d domains", n, e.ndeferred, len(e.stats))
	}
}
