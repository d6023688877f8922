// Package queue is the process that keeps mail: the only one that touches the
// spool. It makes what smtp commits durable, lends envelopes to mta and mda as
// the scheduler orders, makes their results durable, and writes notices to
// senders. It owns the store, the leases and a goroutine for each neighbour
// that it hands work to. It must never use the network, and never answer
// before the disk has what it answers for.
package queue

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/log"
	"smtpd/internal/mail"
	"smtpd/internal/privsep"
	"smtpd/internal/stat"
	"smtpd/queue"
)

// Peers are the channels this process is given, and all that it is given.
type Peers struct{ SMTP, Scheduler, MTA, MDA, Control *ipc.Link }

// Bounds. All are ours.
const (
	// leaseTime is how long an attempt may take: longer than any session with
	// all its timeouts. What is not reported then is tried again.
	leaseTime = 6 * time.Hour
	// leaseCheck is how often expired leases are looked for.
	leaseCheck = 10 * time.Minute
	// maxInline bounds the bodies that travel with Transfers to one neighbour
	// and are not reported yet, in octets. Others are asked for when needed.
	maxInline = 8 << 20
	// maxParts bounds the messages that have begun with CommitPart, and
	// queue.MaxRecipients the envelopes of each.
	maxParts = 1024
	// maxOrders bounds what the scheduler may have ordered and not got.
	maxOrders = 1 << 16
	// lockWait is how long a predecessor that was killed may take to be gone.
	lockWait = 5 * time.Second
	// stopTime is how long a stopping process finishes what it has begun.
	stopTime = 5 * time.Second
	// frameRoom is what a list may take of a frame, in octets, estimated.
	frameRoom = imsg.MaxFrame / 2
	// noticeTTL is how long a notice is tried (spec: 7 days).
	noticeTTL = 7 * 24 * time.Hour
)

// opener opens the store.
type opener func(queue.Options) (queue.Store, error)

// Run keeps the spool in dir until ctx ends. A spool that cannot be opened is
// reported to the parent and ends it, and so does one that turns out to be
// damaged while in use: it is mended when it is opened again.
func Run(ctx context.Context, env *privsep.Env, p Peers, dir string) error {
	open := func(o queue.Options) (queue.Store, error) { return queue.Open(dir, o) }
	return run(ctx, env, p, dir, open, gatherTime)
}

func run(ctx context.Context, env *privsep.Env, p Peers, dir string, open opener, gather time.Duration) error {
	var c *config.Config
	select {
	case c = <-env.Config:
	case <-ctx.Done():
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := newState(ctx, env, p, c)
	s.dir, s.notices.wait = dir, gather
	if err := s.open(open, c); err != nil {
		env.Parent.Send(&imsg.Fatal{Text: mail.Clean(err.Error(), imsg.MaxText)}, nil)
		return err
	}
	if b, ok := s.store.(interface{ Gone() <-chan struct{} }); ok {
		s.begin(func() {
			select {
			case <-b.Gone():
				cancel(errDamaged)
			case <-ctx.Done():
			}
		})
	}
	s.begin(func() { s.out.run(ctx) })
	s.begin(s.lapseLoop)
	s.begin(s.nameOld)
	for _, a := range s.agents {
		s.begin(func() { a.run(ctx) })
	}
	s.serve()
	env.OnPrepare(func(c *config.Config) (func(), error) { return nil, s.prepare(c) })
	env.Ready()
	for ctx.Err() == nil {
		select {
		case c := <-env.Config:
			s.configure(c)
			env.Works(c)
		case <-env.Switches: // the scheduler stops what is paused
		case <-ctx.Done():
		}
	}
	return s.stop(context.Cause(ctx))
}

var errDamaged = errors.New("queue: the spool is damaged, and is mended by opening it again")

// state is what all goroutines of the process share.
type state struct {
	ctx    context.Context // of the process: ends all waits
	work   context.Context // never ends: for what has begun and must not be half done
	env    *privsep.Env
	log    *log.Logger
	stat   *stat.Set
	now    func() time.Time
	peers  Peers
	config atomic.Pointer[config.Config]
	dir    string // of the spool
	store  queue.Store

	out      *outbox
	agents   map[mail.Kind]*agent // mta and mda
	notices  *noticer
	intake   intake
	orders   orders
	pauses   *backlog[*imsg.Suspend]
	delays   *backlog[*imsg.Delayed]
	releases *backlog[*imsg.Releases]
	tasks    tasks

	mu         sync.Mutex
	wg         sync.WaitGroup
	closing    bool
	complained time.Time
}

func newState(ctx context.Context, env *privsep.Env, p Peers, c *config.Config) *state {
	s := &state{ctx: ctx, work: context.WithoutCancel(ctx), env: env, log: env.Log, stat: env.Stat, now: env.Now, peers: p}
	s.config.Store(c)
	s.out = newOutbox(p.Scheduler)
	s.agents = map[mail.Kind]*agent{
		mail.KindMTA: newAgent(s, "mta", mail.KindMTA, p.MTA),
		mail.KindMDA: newAgent(s, "mda", mail.KindMDA, p.MDA),
	}
	s.notices = newNoticer(s)
	s.pauses, s.delays, s.releases = newBacklog[*imsg.Suspend](), newBacklog[*imsg.Delayed](), newBacklog[*imsg.Releases]()
	return s
}

func (s *state) open(open opener, c *config.Config) error {
	o := queue.Options{Compress: c.Queue.Compression, Now: s.now, Moved: s.moved, Slow: s.slow, Wait: lockWait}
	if k := c.Queue.EncryptionKey; k != "" {
		o.Key = []byte(k)
	}
	store, err := open(o)
	if err != nil {
		return err
	}
	s.store = store
	return nil
}

var errKey = errors.New("queue encryption: the key of the queue cannot change while the daemon runs: restart it")

// prepare reports what keeps the queue from working by a configuration: what is
// stored under one key is not readable under another.
func (s *state) prepare(c *config.Config) error {
	if c.Queue.EncryptionKey != s.config.Load().Queue.EncryptionKey {
		return errKey
	}
	return nil
}

// configure works by a configuration from here on.
func (s *state) configure(c *config.Config) {
	s.config.Store(c)
	if b, ok := s.store.(interface{ Compress(bool) }); ok {
		b.Compress(c.Queue.Compression)
	}
}

// serve begins to hear the neighbours.
func (s *state) serve() {
	s.peers.Scheduler.Serve(s.fromScheduler, s.schedulerAttached, func(error) { s.out.detach() })
	for _, a := range s.agents {
		a.link.Serve(a.receive, a.attached, func(error) { a.lost() })
	}
	s.peers.SMTP.Serve(s.fromSMTP, nil, func(error) { s.smtpLost() })
	s.peers.Control.Serve(s.fromControl, nil, nil)
	s.begin(s.orderLoop)
	s.begin(func() { s.pauses.run(s.ctx, 1, s.pause) })
	s.begin(func() { s.delays.run(s.ctx, outboxPart, s.delayed) })
	s.begin(func() { s.releases.run(s.ctx, imsg.MaxReleases, s.keepReleases) })
}

// begin runs f on a goroutine that stop waits for. It reports whether there was
// still time for that.
func (s *state) begin(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	s.wg.Go(f)
	return true
}

// stop finishes what has begun and closes the store.
func (s *state) stop(cause error) error {
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	done := make(chan struct{})
	go func() { s.wg.Wait(); close(done) }() // ends with what it waits for
	select {
	case <-done:
	case <-time.After(stopTime):
		s.log.Warn("warn: queue: not everything ended in time")
	}
	err := s.store.Close()
	if errors.Is(cause, errDamaged) {
		return errDamaged
	}
	if err != nil {
		return fmt.Errorf("close the spool: %w", err)
	}
	return nil
}

// moved is told by the store of what it moved aside. It may not call the store.
func (s *state) moved(m queue.Moved) {
	what := " moved aside: "
	if m.Mended {
		what = " put right: "
	}
	s.log.Warn("warn: queue: " + m.Name + what + m.Reason)
	if len(m.Envelopes) > 0 {
		s.begin(func() { s.out.gone(mail.GoneCorrupt, m.Envelopes...) })
	}
}

// slow is told by the store why it does without its log, or that it no longer does.
func (s *state) slow(why error) {
	if why == nil {
		s.log.Info("info: queue: the log of the spool is in use again")
		return
	}
	s.log.Warn("warn: queue: mail is taken more slowly: the log of the spool cannot be used: " + mail.Clean(why.Error(), imsg.MaxText))
}

// nameOld says what OpenSMTPD left in the folder: nothing of it is sent before it
// is taken over.
func (s *state) nameOld() {
	old, err := queue.OldMessages(s.dir)
	what := count(len(old), "message")
	switch {
	case errors.Is(err, fs.ErrPermission): // its user had another name: smtpctl changes that
		what = "mail"
	case err != nil:
		s.complain("what OpenSMTPD left", err)
		return
	case len(old) == 0:
		return
	}
	s.log.Warn("warn: queue: " + what + " of OpenSMTPD in the queue folder of the spool: `smtpctl queue import` has it delivered")
}

// statusOf is what others are told of an error of the store.
func statusOf(err error) mail.Status {
	if st, ok := errors.AsType[*mail.Status](err); ok {
		return *st
	}
	return *mail.LocalError()
}

// complainEvery bounds how often the log repeats that the disk fails. Ours.
const complainEvery = 10 * time.Second

// complain logs an error of the store, not more often than makes sense.
func (s *state) complain(what string, err error) {
	s.mu.Lock()
	now := s.now()
	quiet := !s.complained.IsZero() && now.Sub(s.complained) < complainEvery
	if !quiet {
		s.complained = now
	}
	s.mu.Unlock()
	if !quiet {
		s.log.Warn("warn: queue: " + what + ": " + mail.Clean(err.Error(), imsg.MaxText))
	}
}

// lapseLoop ends leases that have expired: whoever had them has forgotten.
func (s *state) lapseLoop() {
	t := time.NewTicker(leaseCheck)
	defer t.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-t.C:
		}
		for _, a := range s.agents {
			a.expireLeases()
		}
	}
}
