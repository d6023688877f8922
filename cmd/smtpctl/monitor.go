package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"smtpd/internal/ctl"
)

const (
	monitorEvery  = time.Second
	monitorHeader = "--- client ---  -- envelope --   ---- relay/delivery --- ------- misc -------\n" +
		"curr conn disc  curr  enq  deq   ok tmpfail prmfail loop expire remove bounce\n"
	monitorLines = 25 // between two headers
)

// load is the counters that monitor prints.
type load struct {
	clients, connects                           int64
	envelopes                                   int64
	ok, tempfail, permfail, loop                int64
	expired, removed, bounced, dequeued, leaves int64
}

// monitor prints a line of differences every second until it is interrupted or
// the daemon goes away.
func monitor(p *program, ctx context.Context, _ []string) error {
	if err := errors.Join(p.settle(), p.needRoot()); err != nil {
		return err
	}
	c, err := p.dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	tick := p.tick
	if tick == nil {
		t := time.NewTicker(monitorEvery)
		defer t.Stop()
		tick = t.C
	}
	last, err := readLoad(c)
	if err != nil {
		return err
	}
	now := last
	for n := 0; ; n++ {
		if n%monitorLines == 0 {
			if n > 0 {
				fmt.Fprintln(p.stdout)
			}
			fmt.Fprint(p.stdout, monitorHeader)
		}
		now.print(p, last)
		if err := p.stdout.Flush(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-tick:
			if !ok {
				return nil
			}
		}
		last = now
		if now, err = readLoad(c); err != nil {
			return err
		}
	}
}

func readLoad(c *ctl.Client) (load, error) {
	v := map[string]int64{}
	_, err := c.Do(func(f ctl.Frame) error {
		if n, err := strconv.ParseInt(f.Arg(1), 10, 64); err == nil { // uptime.human is no number
			v[f.Arg(0)] = n
		}
		return nil
	}, ctl.ReqStats)
	l := load{
		clients:   v["smtp.session"],
		connects:  v["smtp.session.inet4"] + v["smtp.session.inet6"] + v["smtp.session.local"],
		envelopes: v["scheduler.envelope"],
		ok:        v["scheduler.delivery.ok"], tempfail: v["scheduler.delivery.tempfail"],
		permfail: v["scheduler.delivery.permfail"], loop: v["scheduler.delivery.loop"],
		expired: v["scheduler.envelope.expired"], removed: v["scheduler.envelope.removed"],
		bounced: v["queue.bounce"],
	}
	l.leaves = l.connects - l.clients
	l.dequeued = l.ok + l.permfail + l.loop + l.expired + l.removed
	return l, err
}

// print writes the line for what happened since last. Counters of a process
// that was replaced begin anew: what would be negative then is 0.
func (l load) print(p *program, last load) {
	since := func(now, then int64) int64 { return max(now-then, 0) }
	dequeued := since(l.dequeued, last.dequeued)
	fmt.Fprintf(p.stdout, "%4d %4d %4d  %4d %4d %4d %4d    %4d    %4d %4d   %4d   %4d   %4d\n",
		l.clients, since(l.connects, last.connects), since(l.leaves, last.leaves),
		l.envelopes, max(l.envelopes-last.envelopes+dequeued, 0), dequeued,
		since(l.ok, last.ok), since(l.tempfail, last.tempfail), since(l.permfail, last.permfail), since(l.loop, last.loop),
		since(l.expired, last.expired), since(l.removed, last.removed), since(l.bounced, last.bounced))
}
