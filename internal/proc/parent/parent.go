// Package parent is the only process that runs as root. It owns the
// configuration text, the listening sockets, the children and the user
// database: it starts and replaces the other processes, hands each pair of
// neighbours a channel, opens what others may not (.forward files), checks
// system passwords and starts deliveries as a user. It must never parse what
// comes from the network; of the children it believes only what it has checked.
package parent

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"smtpd/internal/accounts"
	"smtpd/internal/auth"
	"smtpd/internal/config"
	"smtpd/internal/imsg"
	"smtpd/internal/log"
	"smtpd/internal/privsep"
	"smtpd/mda"
)

// Options is all that the parent is told.
type Options struct {
	Config *config.Config
	Began  time.Time // when Config began to be read
	// Parse reads the configuration again, for a reload. It returns the
	// diagnostics as text when there are errors.
	Parse func(context.Context) (*config.Config, error)
	// Renew reads the certificates, keys and authorities that a configuration
	// names and the addresses of this host again, and nothing else, and returns a
	// copy with them; without files the addresses alone.
	Renew func(ctx context.Context, conf *config.Config, files bool) (*config.Config, error)

	Sockets []GivenSocket // opened by the service manager

	Spool  string // folder of the queue
	Socket string // path of the control socket
	Empty  string // root folder of processes that need no files

	Unprivileged bool
	Daemon       Identity // _smtpd
	QueueUser    Identity // _smtpq

	Switches imsg.Switches // as started: -v, -T, -P
	Log      *log.Logger
	Form     log.Form                    // of the children's lines
	Stderr   io.Writer                   // where children's lines go, when not to Line
	Lines    func(pid int, lines []byte) // takes lines of a child; nil: they write to standard error themselves
	Version  string
	Smtpctl  string // path of the program that resubmits offline mail; empty: none

	// Started is called once, when everything works.
	Started func()
	// Notify tells the service manager of a change; Watchdog is how often it
	// wants to hear that the daemon lives, or 0.
	Notify   func(state string)
	Watchdog time.Duration
	// Passwords checks passwords against the hashes of the shadow file.
	Passwords *auth.Pool
	// Now is the clock.
	Now func() time.Time
}

// Identity is a user that processes run as.
type Identity struct{ UID, GID int }

// shutdownLimit bounds an orderly end (the issue that asked for it: at most
// 10 s), with a second left for what must be killed.
const shutdownLimit = 9 * time.Second

// parent is the state of the process. One goroutine, in run, owns it; others
// send it functions to run by way of do.
type parent struct {
	o         Options
	ctx       context.Context
	conf      *config.Config
	log       *log.Logger
	children  map[imsg.Role]*child
	sockets   *sockets
	switches  imsg.Switches
	traceEnds map[string]*time.Timer // by topic, those that end by themselves
	workers   *workers
	programs  *programs
	accounts  *accounts.Accounts
	classes   *bsdAuth // who checks passwords by login class; nil: hashes are compared
	actions   chan func()
	quit      chan struct{}  // closed when run has ended
	tasks     sync.WaitGroup // answers that take time
	started   bool
	stopping  bool
	failed    error // why a start cannot succeed

	shared     atomic.Pointer[config.Config] // conf, for other goroutines
	generation uint64                        // the last that was given out
	procs      []procsOf                     // of the last configurations, the present one included
	inline     inlineTables
	files      files
	said       string   // the last reason why an order failed
	looks      int      // how often there has been time to look
	looking    bool     // files are being looked at
	orders     []*order // that wait
	busy       bool     // with an order
	change     *change  // what has been read of that, or nil
}

// Run starts everything and serves until ctx ends or the start fails. A signal
// on reload reads the configuration again. What it returns is one line for the
// operator.
func Run(ctx context.Context, o Options, reload <-chan os.Signal) error {
	p := &parent{
		o: o, ctx: ctx, conf: o.Config, log: o.Log,
		children: map[imsg.Role]*child{},
		switches: o.Switches,
		actions:  make(chan func(), 256),
		quit:     make(chan struct{}),
	}
	defer close(p.quit)
	p.switches.Started = o.Now()
	p.generation, p.procs = p.conf.Generation, []procsOf{{p.conf.Generation, p.conf.Procs}}
	p.inline.name(p.conf)
	p.shared.Store(p.conf)
	p.files.next(p.conf, o.Began)
	p.files.adopt()
	p.workers = newWorkers(p)
	p.workers.allow(p.conf.MDA.MaxSession)
	p.accounts = accounts.New(o.Now)
	if runtime.GOOS == "openbsd" {
		p.classes = newBSDAuth()
	}
	p.programs = &programs{p: p, running: map[programKey]*exec.Cmd{}}
	var err error
	if err := checkSpool(o); err != nil {
		return err
	}
	if p.sockets, err = openSockets(o); err != nil {
		return err
	}
	defer p.sockets.close()
	if err := createSpool(o); err != nil {
		return err
	}
	p.log.Info("info: smtpd " + o.Version + " starting")
	if o.Unprivileged {
		p.log.Info(fmt.Sprintf("info: running unprivileged as uid %d: mail is delivered to this user only, or relayed", os.Getuid()))
	}
	p.warnMailboxes()
	p.warnSockets()
	for _, role := range imsg.Children {
		if err := p.start(role); err != nil {
			p.killAll()
			return err
		}
	}
	return p.run(ctx, reload)
}

// warnMailboxes says at start what would keep mail out of the system mailboxes.
func (p *parent) warnMailboxes() {
	if err := CheckMailboxes(p.conf); err != nil && !p.o.Unprivileged {
		p.log.Warn("warn: " + err.Error())
	}
}

// CheckMailboxes reports what would keep mail out of the system mailboxes, where
// conf delivers to those, and what to do about it.
func CheckMailboxes(conf *config.Config) error {
	for _, a := range conf.Actions {
		if a.Method == config.MethodMbox {
			return mda.CheckSpool(mailSpool)
		}
	}
	return nil
}

// warnSockets says what is not listened on, or not yet.
func (p *parent) warnSockets() {
	for _, line := range p.sockets.given.unused() {
		p.log.Warn("warn: " + line)
	}
	p.sockets.given.odd = nil
	p.warnMissing(p.sockets.fresh)
	for _, l := range p.conf.Pending {
		p.log.Warn(fmt.Sprintf("warn: listen on %s: no such interface, or it has no address; waiting for it", l.Listener.Name))
	}
}

// warnMissing says which addresses are waited for.
func (p *parent) warnMissing(addrs []netip.AddrPort) {
	for _, a := range addrs {
		p.log.Warn(fmt.Sprintf("warn: listen on %s: no interface has this address; waiting for it", a))
	}
}

// retrySockets opens the listeners whose address has come. The addresses of
// this host count in rules as well, so that they are found out again.
func (p *parent) retrySockets() {
	if p.looks++; p.looks%pendingLooks == 0 && len(p.conf.Pending) > 0 && !p.busy && p.started && !p.stopping {
		p.renewAddresses()
		return
	}
	if len(p.sockets.missing) == 0 || p.busy || !p.started || p.stopping {
		return
	}
	opened, errs := p.sockets.retry(p.conf)
	for _, err := range errs {
		p.log.Warn("warn: " + err.Error())
	}
	if len(opened) == 0 {
		return
	}
	for _, a := range opened {
		p.log.Info(fmt.Sprintf("info: listening on %s", a))
	}
	if c := p.children[imsg.SMTP]; c != nil && c.running {
		p.sockets.send(c, p.conf)
	}
	p.renewAddresses()
}

// pendingLooks is at every how many looks interfaces are asked for again.
const pendingLooks = 3

func (p *parent) renewAddresses() {
	p.renew(&order{read: p.again(false), quiet: true, done: "info: the addresses of this host are known again",
		failed: "warn: the addresses of this host: "}, nil)
}

// run is the loop that owns the state.
func (p *parent) run(ctx context.Context, reload <-chan os.Signal) error {
	var watchdog <-chan time.Time
	if p.o.Watchdog > 0 {
		t := time.NewTicker(p.o.Watchdog)
		defer t.Stop()
		watchdog = t.C
	}
	look := time.NewTicker(watchEvery)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return p.shutdown()
		case <-reload:
			p.reload(nil)
		case <-look.C:
			p.watch()
			p.retrySockets()
		case <-watchdog:
			p.o.Notify("WATCHDOG=1")
		case act := <-p.actions:
			act()
		}
		if p.failed != nil {
			p.killAll()
			return p.failed
		}
	}
}

// do has the owner of the state run f; it returns at once unless a great many
// wait already.
func (p *parent) do(f func()) {
	select {
	case p.actions <- f:
	case <-p.quit:
	}
}

// isReady notes that a child works, and after the last of the first round that
// the daemon does.
func (p *parent) isReady(c *child) {
	c.ready = true
	if p.started {
		p.log.Info(fmt.Sprintf("info: %s is back (pid %d)", c.role, c.cmd.Process.Pid))
		return
	}
	for _, role := range imsg.Children {
		if ch := p.children[role]; ch == nil || !ch.ready {
			return
		}
	}
	p.started = true
	if p.o.Started != nil {
		p.o.Started()
	}
	p.o.Notify("READY=1")
	p.resubmit()
	p.nextOrder()
}

// stopOrder is the order in which an orderly end asks the children to finish:
// who takes mail in first, who keeps it last.
var stopOrder = [][]imsg.Role{
	{imsg.SMTP},
	{imsg.MTA, imsg.MDA},
	{imsg.Control, imsg.Scheduler, imsg.Lookup, imsg.Keys},
	{imsg.Queue},
}

// shutdown ends all in order, within shutdownLimit.
func (p *parent) shutdown() error {
	p.stopping = true
	p.o.Notify("STOPPING=1")
	limit := time.NewTimer(shutdownLimit)
	defer limit.Stop()
	expired := false
	for _, group := range stopOrder {
		for _, role := range group {
			if c := p.children[role]; c != nil && c.running {
				_ = c.link.Send(&imsg.Shutdown{}, nil)
			}
		}
		for !expired && p.anyRunning(group) {
			select {
			case act := <-p.actions:
				act()
			case <-limit.C:
				expired = true
			}
		}
	}
	p.killAll()
	p.log.Info("Exiting")
	return nil
}

func (p *parent) anyRunning(group []imsg.Role) bool {
	for _, role := range group {
		if c := p.children[role]; c != nil && c.running {
			return true
		}
	}
	return false
}

// asBoot is what a child of that role is started with.
func (p *parent) asBoot(role imsg.Role) privsep.Boot {
	b := privsep.Boot{
		UID: p.o.Daemon.UID, GID: p.o.Daemon.GID,
		Root: p.o.Empty, Dir: "/",
		Unprivileged: p.o.Unprivileged,
		JSONLog:      p.o.Form == log.FormJSON,
		Severity:     p.o.Form == log.FormSeverity,
	}
	switch role {
	case imsg.Queue:
		b.UID, b.GID, b.Root = p.o.QueueUser.UID, p.o.QueueUser.GID, queueDir(p.o.Spool)
	case imsg.Lookup:
		b.Root = ""
	}
	if b.Unprivileged {
		b.Root = ""
		if role == imsg.Queue {
			b.Dir = queueDir(p.o.Spool)
		}
	}
	return b
}
