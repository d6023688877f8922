package mta

import (
	"context"
	"fmt"
	"testing"
	"time"

	"smtpd/internal/config"
)

// Two thousand destinations, a quarter of them refusing and a quarter silent:
// the others are done at once, nobody is forgotten, and one that comes back is
// noticed within its penalty.
func TestManyDestinations(t *testing.T) {
	const domains, mails = 2000, 5
	w := newWorld(t)
	w.cfg.MTA.Default.TaskHiwat = 0 // nobody here brings back what is given back
	h := &goodHost{ext: []string{"PIPELINING"}}
	addr := func(i int) string { return fmt.Sprintf("10.1.%d.%d", i/250, i%250+1) }
	for i := range domains {
		w.mx(fmt.Sprintf("d%d.test", i), fmt.Sprintf("10 mx%d.test %s", i, addr(i)))
		switch i % 4 {
		case 0: // refuses
		case 1:
			w.hosts[addr(i)+":25"] = nil // silent
		default:
			w.hosts[addr(i)+":25"] = h.serve
		}
	}
	var good, all time.Duration
	w.run(func(e *Engine) {
		begin := time.Now()
		for n := range mails {
			for i := range domains {
				e.Submit(context.Background(), w.message(&config.Relay{}, fmt.Sprintf("u%d@d%d.test", n, i)))
			}
		}
		w.wait(domains * mails * 3 / 4)
		good = time.Since(begin)
		w.wait(domains * mails)
		all = time.Since(begin)

		w.mu.Lock()
		w.reports = nil
		w.hosts[addr(0)+":25"] = h.serve
		w.hosts[addr(1)+":25"] = h.serve
		w.mu.Unlock()
		w.pass(penaltyBase + time.Second)
		e.Submit(context.Background(), w.message(&config.Relay{}, "u@d0.test"))
		e.Submit(context.Background(), w.message(&config.Relay{}, "u@d1.test"))
		w.wait(2)
		if w.codes()[250] != 2 {
			t.Errorf("hosts that came back: %s", w.results())
		}
		w.mu.Lock()
		w.reports = nil
		w.mu.Unlock()
		w.pass(time.Hour)
		e.mu.Lock()
		defer e.mu.Unlock()
		if len(e.relays)+len(e.routes)+len(e.hosts)+len(e.sources)+len(e.domains) != 0 {
			t.Errorf("after an hour without work: %d relays, %d routes, %d hosts, %d sources, %d domains",
				len(e.relays), len(e.routes), len(e.hosts), len(e.sources), len(e.domains))
		}
	})
	if good > 6*time.Second || all > 40*time.Second {
		t.Errorf("the good ones took %v, all %v", good, all)
	}
	if len(h.bodies) != domains*mails/2+2 {
		t.Errorf("%d texts", len(h.bodies))
	}
}
