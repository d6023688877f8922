package mta

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"smtpd/internal/config"
)

// More hosts that do not answer than may be waited for: the others' turn comes
// all the same, and each of the silent has had its time.
func TestSilentCrowd(t *testing.T) {
	const silent, living = maxSlow + 400, 50
	tests := map[string]struct {
		silence func(p *peer) // nil: does not take the connection
		soon    time.Duration // when the living must be done
		least   time.Duration // what each of the silent must be given
	}{
		"nobody answers": {nil, 8 * time.Second, dialPatience},
		"no greeting":    {func(p *peer) { io.Copy(io.Discard, p.in) }, 33 * time.Second, hostPatience},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.opt.Timeouts = DefaultTimeouts()
			h := &goodHost{}
			for i := range silent + living {
				addr := fmt.Sprintf("10.1.%d.%d", i/250, i%250+1)
				w.mx(fmt.Sprintf("d%d.test", i), fmt.Sprintf("10 mx%d.test %s", i, addr))
				w.hosts[addr+":25"] = tt.silence
				if i >= silent {
					w.hosts[addr+":25"] = h.serve
				}
			}
			w.run(func(e *Engine) {
				begin := time.Now()
				send := func(i int) {
					e.Submit(context.Background(), w.message(&config.Relay{}, fmt.Sprintf("u@d%d.test", i)))
				}
				for i := range silent {
					send(i)
				}
				w.pass(tt.least - time.Second)
				if n := len(w.reports); n != 0 {
					t.Errorf("%d gave up before their time", n)
				}
				for i := range living {
					send(silent + i)
				}
				w.pass(tt.soon - time.Since(begin))
			})
			if n := w.codes()[250]; n != living {
				t.Errorf("%d of %d of the living done in %v", n, living, tt.soon)
			}
			if n := len(w.holds); n < silent/2 {
				t.Errorf("%d relays gave back what waits for the silent", n)
			}
		})
	}
}

// Where many hosts are silent a relay keeps nothing in memory; it asks for its
// mail again when one of its hosts speaks after all, and tries each of them.
func TestShelve(t *testing.T) {
	w := newWorld(t)
	w.cfg.Scheduler.MaxInflight = 3 * slowShare
	w.opt.Timeouts = DefaultTimeouts()
	h := &goodHost{}
	for i := range 6 {
		w.mx(fmt.Sprintf("d%d.test", i), fmt.Sprintf("10 a%d.test 192.0.2.1%d", i, i), fmt.Sprintf("10 b%d.test 192.0.2.2%d", i, i))
		w.hosts[fmt.Sprintf("192.0.2.1%d:25", i)] = nil
		w.hosts[fmt.Sprintf("192.0.2.2%d:25", i)] = nil
	}
	w.hosts["192.0.2.25:25"] = func(p *peer) { w.pass(4 * time.Second); h.serve(p) }
	w.run(func(e *Engine) {
		for i := range 6 {
			w.many(e, &config.Relay{}, 3, fmt.Sprintf("d%d.test", i))
		}
		w.pass(3 * time.Second)
		e.mu.Lock()
		key := e.lastRelay
		e.mu.Unlock()
		w.mu.Lock()
		last := w.holds[key]
		w.mu.Unlock()
		if n := w.count("^release"); last != 3 || n != 0 {
			t.Errorf("%d of 3 held, %d releases:\n%s", last, n, w.text())
		}
		w.pass(4 * time.Second)
		if n := w.count("^release 0$"); n == 0 {
			t.Errorf("nothing is wanted after the host spoke:\n%s", w.text())
		}
		e.Submit(context.Background(), w.message(&config.Relay{}, "again@d5.test"))
		w.pass(time.Second)
	})
	if w.codes()[250] != 1 {
		t.Errorf("%s", w.results())
	}
}

// The operator's own max-conn-per-source holds for connections that are not
// ready yet; the default leaves them out once they have proved slow.
func TestSourceLimitGiven(t *testing.T) {
	for name, tt := range map[string]struct {
		given bool
		peak  int // at most
	}{"default": {false, 8}, "given": {true, 2}} {
		w := newWorld(t)
		w.opt.Timeouts = DefaultTimeouts()
		w.cfg.MTA.Default.MaxConnPerSource, w.cfg.MTA.Default.SourceLimitGiven = 2, tt.given
		var open, peak atomic.Int32
		h := &goodHost{}
		for i := range 8 {
			addr := fmt.Sprintf("192.0.2.%d", i+1)
			w.mx(fmt.Sprintf("d%d.test", i), fmt.Sprintf("10 mx%d.test %s", i, addr))
			w.hosts[addr+":25"] = func(p *peer) {
				peak.Store(max(peak.Load(), open.Add(1)))
				w.pass(2 * time.Second)
				h.serve(p)
				open.Add(-1)
			}
		}
		w.run(func(e *Engine) {
			for i := range 8 {
				w.many(e, &config.Relay{}, 1, fmt.Sprintf("d%d.test", i))
			}
			w.wait(8)
		})
		got := int(peak.Load())
		if w.codes()[250] != 8 || got > tt.peak || !tt.given && got <= 2 {
			t.Errorf("%s: %d connections at a time\n%s", name, got, w.results())
		}
	}
}

// A relay that meets a route which another found disabled says why it is.
func TestCauseOfDisabledRoute(t *testing.T) {
	w := newWorld(t)
	w.mx("d.test", "10 mx.d.test 192.0.2.1")
	w.mx("e.test", "10 mx.d.test")
	w.run(func(e *Engine) {
		w.many(e, &config.Relay{}, 1, "d.test")
		w.wait(1)
		w.many(e, &config.Relay{}, 1, "e.test")
		w.wait(2)
	})
	for _, r := range w.reports {
		if want := "Network error on destination MXs: mx.d.test (192.0.2.1): IO Error: Connection refused"; r.Line != want {
			t.Errorf("%s: %q, want %q", r.Envelope.Dest, r.Line, want)
		}
	}
}
