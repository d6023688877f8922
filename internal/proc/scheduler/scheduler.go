// Package scheduler is the process that decides what is tried when. It owns the
// due times of all envelopes (internal/runq) in memory and nothing else: what
// it knows it learnt from the queue, and after a restart of either it asks
// again. It has the queue lease envelopes, give them up and remove them, and
// never sees a message.
package scheduler

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/log"
	"smtpd/internal/mail"
	"smtpd/internal/privsep"
	"smtpd/internal/runq"
	"smtpd/internal/stat"
)

// Peers are the channels this process is given, and all that it is given.
type Peers struct{ Queue, Control *ipc.Link }

// Run serves until ctx ends; the queue keeps everything. Handlers change the
// state under its lock and wake the one goroutine, this one, that talks to the
// queue.
func Run(ctx context.Context, env *privsep.Env, p Peers) error {
	s := newState(p.Queue, env.Now, env.Stat, env.Log)
	select {
	case c := <-env.Config:
		s.configure(c)
	case <-ctx.Done():
		return nil
	}
	select {
	case sw := <-env.Switches:
		s.switched(sw)
	case <-ctx.Done():
		return nil
	}
	p.Queue.Serve(s.fromQueue, s.attached, s.lost)
	p.Control.Serve(func(r *ipc.Request) {
		if _, ok := r.Msg.(*imsg.StatsGet); ok {
			s.gauges()
			env.AnswerStats(r)
			return
		}
		s.fromControl(r.Msg, func(m imsg.Msg) { r.Reply(m, nil) })
	}, nil, nil)
	env.Ready()
	s.run(ctx, env.Config, env.Switches, env.Works)
	return nil
}

// queueLink is the way to the queue: an *ipc.Link.
type queueLink interface {
	Send(imsg.Msg, *os.File) error
	Up() bool
}

// state is all that the process has.
type state struct {
	queue queueLink
	now   func() time.Time
	stat  *stat.Set
	log   *log.Logger
	wake  chan struct{} // of one place: there is something new

	mu        sync.Mutex
	runq      *runq.Queue
	ttl       time.Duration // of an envelope without its own
	maxList   int           // ids in one imsg that is not an Attempt
	loads     int           // LoadAlls that were not answered in full
	out       []imsg.Msg    // to be sent before anything that runq wants
	discovers []*discovery
	removals  []*removal
	seen      bool // there was an envelope ever

	releases     []imsg.DomainRelease // of domains whose mail is not held back
	toldReleases bool                 // the queue has told of those that it kept, if any
	releasing    []release            // that are not durable yet
	lastRelease  uint64               // its number
}

func newState(q queueLink, now func() time.Time, st *stat.Set, l *log.Logger) *state {
	return &state{queue: q, now: now, stat: st, log: l,
		wake: make(chan struct{}, 1), runq: runq.New(runq.Policy{}), maxList: 1}
}

// configure makes the configuration count from now on.
func (s *state) configure(c *config.Config) {
	l := c.Scheduler
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ttl = c.Queue.TTL
	s.maxList = min(max(l.MaxMsgBatchSize, 1), imsg.MaxItems)
	s.runq.SetPolicy(s.now(), runq.Policy{
		MaxInflight: l.MaxInflight,
		MaxBatch:    min(l.MaxEvpBatchSize, imsg.MaxItems),
		MaxTurn:     l.MaxSchedule,
		MaxList:     s.maxList,
		Warn:        c.Warn,
		Known:       func(name string) bool { return c.Actions[name] != nil },
		Hold:        func(name string, now time.Time) (bool, time.Time) { return holdOf(c, name, now) },
		Backoff:     func(k mail.Kind, name string) runq.Backoff { return backoff(c, k, name) },
	})
}

// backoff is what the configuration says about retries: of the action, else of
// the kind.
func backoff(c *config.Config, k mail.Kind, name string) runq.Backoff {
	var r config.Retry
	switch k {
	case mail.KindMDA:
		r = c.Queue.RetryMDA
	case mail.KindMTA:
		r = c.Queue.RetryMTA
	default:
		return runq.Backoff{} // notices are no concern of the action
	}
	if a := c.Actions[name]; a != nil && !a.Retry.IsZero() {
		r = a.Retry
	}
	return runq.Backoff{Base: r.Base, Delays: r.Delays}
}

// switched follows what the operator paused.
func (s *state) switched(sw *imsg.Switches) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.runq.Pause(mail.KindMTA, sw.PauseMTA)
	s.runq.Pause(mail.KindMDA, sw.PauseMDA)
}

// maxSleep bounds the sleep of an idle scheduler: the wall clock may be set
// while it lasts.
const maxSleep = time.Minute

// run is the goroutine that talks to the queue. It ends with ctx.
func (s *state) run(ctx context.Context, configs <-chan *config.Config, switches <-chan *imsg.Switches, works func(*config.Config)) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case c := <-configs:
			s.configure(c)
			works(c)
		case sw := <-switches:
			s.switched(sw)
		case <-s.wake:
		case <-timer.C:
		}
		timer.Reset(s.dispatch(ctx))
	}
}

func (s *state) notify() {
	select {
	case s.wake <- struct{}{}:
	default: // it will wake anyway
	}
}

// maxRound is how many imsgs are taken under the lock at a time. Ours: handlers
// wait for the lock, some 100 µs.
const maxRound = 64

// dispatch sends the queue what is due, and says how long nothing will be. It
// blocks while the queue does not read.
func (s *state) dispatch(ctx context.Context) time.Duration {
	for ctx.Err() == nil {
		if !s.queue.Up() {
			return maxSleep // until it is attached
		}
		msgs, wait := s.due()
		for _, m := range msgs {
			err := s.queue.Send(m, nil)
			if errors.Is(err, ipc.ErrDown) || errors.Is(err, ipc.ErrGone) {
				return maxSleep // the next queue is asked for everything again
			}
			if err != nil {
				s.log.Warn("warn: scheduler: " + err.Error())
			}
		}
		if wait > 0 {
			return min(wait, maxSleep)
		}
	}
	return maxSleep
}

// due takes what is to be sent now, at most maxRound imsgs; wait is 0 when
// there may be more.
func (s *state) due() (msgs []imsg.Msg, wait time.Duration) {
	now := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	n := min(len(s.out), maxRound)
	msgs = append(msgs, s.out[:n]...)
	if s.out = s.out[n:]; len(s.out) > 0 {
		return msgs, 0
	}
	s.out = nil
	for len(msgs) < maxRound {
		a, ok := s.runq.Next(now)
		if !ok {
			return msgs, s.untilWake(now)
		}
		msgs = append(msgs, s.order(a))
	}
	return msgs, 0
}

func (s *state) untilWake(now time.Time) time.Duration {
	w, ok := s.runq.Wake()
	if !ok {
		return maxSleep
	}
	return max(w.Sub(now), 0)
}

// order is what an action is for the queue.
func (s *state) order(a runq.Action) imsg.Msg {
	if s.log.Tracing("scheduler") {
		s.trace(a)
	}
	switch a.Op {
	case runq.Attempt:
		return &imsg.Attempt{IDs: a.IDs}
	case runq.Expire:
		return &imsg.Expire{IDs: a.IDs}
	case runq.Remove:
		return &imsg.Remove{IDs: a.IDs}
	case runq.Delay:
		return &imsg.Delayed{ID: a.IDs[0], Interval: a.Interval, Number: a.Number}
	}
	panic("scheduler: an operation of runq that is not known here")
}

func (s *state) trace(a runq.Action) {
	words := map[runq.Op]string{runq.Attempt: "attempt", runq.Expire: "expire", runq.Remove: "remove", runq.Delay: "delayed"}
	for _, id := range a.IDs {
		s.log.Trace("scheduler", words[a.Op]+" "+id.String())
	}
}
