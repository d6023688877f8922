package parent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/imsg"
)

// Bounds of a change of configuration. Ours.
const (
	prepareLimit = 40 * time.Second // for all processes to get ready for it
	applyLimit   = 15 * time.Second // for all to take it over
	maxWarnings  = 50               // that are told when it is in force
)

// order is the wish for another configuration.
type order struct {
	read   func(context.Context) (*config.Config, error)
	done   string // what the log says when it is in force
	failed string // and what stands in front of each reason when it is not
	quiet  bool   // reads no file; the service manager need not know
	tell   []func(warnings []string, err error)
}

// change is a configuration on its way to the processes. In a first step all get
// ready for it: only when every one can work by it, all use it; else it is
// forgotten by all. In use it comes to smtp last, so that a session that begins
// by it finds everybody else prepared.
type change struct {
	order    *order
	conf     *config.Config
	opened   *staging
	prepared map[imsg.Role]*exec.Cmd // who can work by it
	waiting  map[imsg.Role]*exec.Cmd // who has not answered yet
	errs     []error
	step     int // 0: getting ready; then 1 + index in applyOrder
	limit    *time.Timer
}

// applyOrder is who takes a configuration over before whom.
var applyOrder = [][]imsg.Role{
	{imsg.Keys, imsg.Lookup, imsg.Queue, imsg.Scheduler, imsg.MTA, imsg.MDA, imsg.Control},
	{imsg.SMTP},
}

// reload reads the configuration file and, when it is good, puts it in force;
// any error leaves the old one. tell, which may be nil, hears the end.
func (p *parent) reload(tell func([]string, error)) {
	p.renew(&order{read: p.o.Parse, done: "info: configuration reloaded", failed: "warn: configuration not reloaded: "}, tell)
}

// renew carries out an order, after those before it. One of the same kind that
// has not begun yet does for both.
func (p *parent) renew(o *order, tell func([]string, error)) {
	if tell != nil {
		o.tell = append(o.tell, tell)
	}
	for _, waiting := range p.orders {
		if waiting.done == o.done {
			waiting.tell = append(waiting.tell, o.tell...)
			return
		}
	}
	p.orders = append(p.orders, o)
	p.nextOrder()
}

// nextOrder begins the next order unless one is being carried out. The
// configuration is read on a goroutine of its own: that may ask the resolver.
func (p *parent) nextOrder() {
	if p.busy || len(p.orders) == 0 || p.stopping || !p.started {
		return
	}
	o := p.orders[0]
	p.orders, p.busy = p.orders[1:], true
	if !o.quiet {
		p.o.Notify("RELOADING=1")
	}
	began := p.o.Now()
	p.tasks.Go(func() {
		conf, err := o.read(p.ctx)
		p.do(func() { p.begin(o, conf, err, began) })
	})
}

// begin has every process get ready for a configuration that was read at began.
func (p *parent) begin(o *order, conf *config.Config, err error, began time.Time) {
	ch := &change{order: o, conf: conf, prepared: map[imsg.Role]*exec.Cmd{}, waiting: map[imsg.Role]*exec.Cmd{}}
	if err == nil && conf == p.conf {
		ch.order.done = ""
		if !o.quiet {
			p.files.next(conf, began)
			p.files.adopt()
		}
		p.finish(ch, nil)
		return
	}
	if err == nil && !conf.Renewal {
		p.inline.name(conf)
	}
	if err == nil {
		ch.opened, err = p.sockets.stage(conf)
	}
	if err != nil {
		p.finish(ch, err)
		return
	}
	p.generation++ // never used twice, whatever becomes of this one
	conf.Generation = p.generation
	p.change = ch
	if !o.quiet {
		p.files.next(conf, began)
	}
	for _, role := range imsg.Children {
		if c := p.children[role]; c != nil && c.running && c.ready {
			ch.waiting[role] = c.cmd
			p.sendConfig(c, conf, true)
		}
	}
	p.bound(prepareLimit)
	p.advance()
}

// bound limits the present step.
func (p *parent) bound(d time.Duration) {
	ch, step := p.change, p.change.step
	if ch.limit != nil {
		ch.limit.Stop()
	}
	ch.limit = time.AfterFunc(d, func() { p.do(func() { p.late(ch, step) }) })
}

// late ends a step that takes too long.
func (p *parent) late(ch *change, step int) {
	if p.change != ch || ch.step != step {
		return
	}
	for _, role := range slices.Sorted(maps.Keys(ch.waiting)) {
		cmd := ch.waiting[role]
		delete(ch.waiting, role)
		if step == 0 {
			ch.errs = append(ch.errs, fmt.Errorf("%s: not ready for it after %s", role, prepareLimit))
			continue
		}
		p.kill(p.children[role], cmd, "it does not take over the configuration") // its successor does
	}
	p.advance()
}

// isPrepared is a process's word on what was staged.
func (p *parent) isPrepared(c *child, cmd *exec.Cmd, m *imsg.Prepared) {
	ch := p.change
	if ch == nil || ch.step != 0 || ch.conf.Generation != m.Generation || ch.waiting[c.role] != cmd {
		return
	}
	delete(ch.waiting, c.role)
	if m.Error == "" {
		ch.prepared[c.role] = cmd
	} else {
		ch.errs = append(ch.errs, errors.New(m.Error))
	}
	p.advance()
}

// hasApplied is a process's word that it works by a configuration.
func (p *parent) hasApplied(c *child, cmd *exec.Cmd, m *imsg.Applied) {
	ch := p.change
	if ch == nil || ch.step == 0 || ch.conf.Generation != m.Generation || ch.waiting[c.role] != cmd {
		return
	}
	delete(ch.waiting, c.role)
	p.advance()
}

// lostInChange takes a process that died out of the change under way. While all
// get ready that ends the change: whether it can work by it is not known. Later
// its successor begins with it.
func (p *parent) lostInChange(c *child, cmd *exec.Cmd) {
	ch := p.change
	if ch == nil || ch.waiting[c.role] != cmd {
		return
	}
	delete(ch.waiting, c.role)
	if ch.step == 0 {
		ch.errs = append(ch.errs, fmt.Errorf("%s ended while it got ready for it", c.role))
	}
	p.advance()
}

// advance goes on once nobody is waited for.
func (p *parent) advance() {
	for ch := p.change; ch != nil && p.change == ch && len(ch.waiting) == 0; {
		switch {
		case ch.step == 0 && len(ch.errs) > 0:
			p.abort(ch)
		case ch.step == len(applyOrder):
			p.sockets.retire(p.conf)
			p.warnMissing(p.sockets.fresh)
			p.sayOpened(ch)
			p.finish(ch, nil)
		default:
			if ch.step == 0 {
				p.commit(ch)
			}
			ch.step++
			p.apply(ch, applyOrder[ch.step-1])
			p.bound(applyLimit)
		}
	}
}

// sayOpened names the listeners that have come by themselves.
func (p *parent) sayOpened(ch *change) {
	if !ch.conf.Renewal {
		return
	}
	for _, l := range ch.conf.Listeners {
		if ch.opened.opened[l.Addr] != nil {
			p.log.Info(fmt.Sprintf("info: listening on %s", l.Addr))
		}
	}
}

// abort has all forget the configuration.
func (p *parent) abort(ch *change) {
	for role, cmd := range ch.prepared {
		if c := p.children[role]; c.running && c.cmd == cmd {
			_ = c.link.Send(&imsg.Apply{Generation: ch.conf.Generation}, nil) // who is gone has forgotten
		}
	}
	ch.opened.close()
	p.files.forget()
	p.finish(ch, errors.Join(ch.errs...))
}

// commit makes the configuration the one that counts here.
func (p *parent) commit(ch *change) {
	p.conf = ch.conf
	p.shared.Store(p.conf)
	p.workers.allow(p.conf.MDA.MaxSession)
	p.procs = append(p.procs, procsOf{p.conf.Generation, p.conf.Procs})
	if n := len(p.procs) - imsg.MaxGenerations - 1; n > 0 {
		p.procs = p.procs[n:]
	}
	p.sockets.adopt(ch.opened)
	p.files.adopt()
}

// apply has some processes use what they are ready for. One that was not there
// in the first step gets it whole.
func (p *parent) apply(ch *change, roles []imsg.Role) {
	for _, role := range roles {
		c := p.children[role]
		if c == nil || !c.running {
			continue // its successor begins with it
		}
		ch.waiting[role] = c.cmd
		if ch.prepared[role] == c.cmd {
			_ = c.link.Send(&imsg.Apply{Generation: ch.conf.Generation, Commit: true}, nil) // its end will be noticed
		} else {
			p.sendConfig(c, p.conf, false)
		}
		p.sockets.send(c, p.conf)
	}
}

// finish ends a change and tells everybody who waits for it.
func (p *parent) finish(ch *change, err error) {
	if ch.limit != nil {
		ch.limit.Stop()
	}
	p.change, p.busy = nil, false
	var warnings []string
	switch {
	case err == nil && ch.order.done != "":
		if !ch.conf.Renewal {
			warnings = ch.conf.Warnings[:min(len(ch.conf.Warnings), maxWarnings)]
		}
		for _, w := range warnings {
			p.log.Warn("warn: " + w)
		}
		p.log.Info(ch.order.done)
	case err != nil && ch.order.quiet && err.Error() == p.said:
	case err != nil:
		p.said = err.Error()
		for line := range strings.Lines(err.Error()) {
			p.log.Warn(ch.order.failed + strings.TrimSuffix(line, "\n"))
		}
	}
	if !ch.order.quiet {
		p.o.Notify("READY=1")
	}
	for _, tell := range ch.order.tell {
		tell(warnings, err)
	}
	p.nextOrder()
}

// procsOf are the processors of one configuration: sessions that began by it
// may need theirs started again.
type procsOf struct {
	generation uint64
	procs      map[string]*config.Proc
}

// procOf finds a processor as a configuration describes it; nil: there is none.
func (p *parent) procOf(name string, generation uint64) *config.Proc {
	if ch := p.change; ch != nil && ch.conf != nil && ch.conf.Generation == generation {
		return ch.conf.Procs[name]
	}
	for _, g := range p.procs {
		if g.generation == generation {
			return g.procs[name]
		}
	}
	return nil
}
