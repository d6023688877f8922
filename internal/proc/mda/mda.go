// Package mda is the process that delivers to users: it takes leased envelopes
// from queue, finds out whose they are, has a worker that runs as this user
// carry them out, and brings the results back. It owns the channels to the
// workers and the results that queue has not taken yet. It opens no file and
// delivers nothing itself.
package mda

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/ctl"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/lease"
	"smtpd/internal/log"
	"smtpd/internal/mail"
	"smtpd/internal/privsep"
)

// Peers are the channels this process is given.
type Peers struct{ Queue, Lookup, Control *ipc.Link }

// finishTime is how long deliveries under way may take when the process shall
// end. Ours: the parent waits 10 s for all processes.
const finishTime = 4 * time.Second

// state is the process.
type state struct {
	env     *privsep.Env
	peers   Peers
	results *lease.Results
	lines   *lines
	pool    *pool
	uid     int // ours: the only one to deliver as when unprivileged

	mu      sync.Mutex
	conf    *config.Config
	users   map[userKey]*user
	stopped bool

	inline budget
}

// Run delivers until ctx ends. Then no more is taken, deliveries under way are
// finished as far as a few seconds allow, and their results brought to queue.
func Run(ctx context.Context, env *privsep.Env, p Peers) error {
	var conf *config.Config
	select {
	case conf = <-env.Config:
	case <-ctx.Done():
		return nil
	}
	return newState(env, p, conf).serve(ctx)
}

func (s *state) serve(ctx context.Context) error {
	lookups, stopLookups := context.WithCancel(context.Background())
	defer stopLookups()
	var tasks sync.WaitGroup
	s.results.Again = func(t *imsg.Transfer) { s.transfer(lookups, t, &tasks) }
	s.peers.Queue.Serve(func(r *ipc.Request) {
		if t, ok := r.Msg.(*imsg.Transfer); ok {
			s.transfer(lookups, t, &tasks)
		}
	}, s.results.Attached, nil)
	s.peers.Lookup.Serve(func(r *ipc.Request) {
		if m, ok := r.Msg.(*imsg.StoreCheck); ok {
			s.storeCheck(lookups, r, m, &tasks)
		}
	}, nil, nil)
	s.peers.Control.Serve(func(r *ipc.Request) {
		if _, ok := r.Msg.(*imsg.StatsGet); ok {
			s.env.AnswerStats(r)
		}
	}, nil, nil)

	flush, stopResults := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { s.results.Run(flush) })
	s.env.Ready()
	s.follow(ctx)

	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	stopLookups()
	tasks.Wait()
	s.pool.stop(finishTime)
	stopResults()
	wg.Wait()
	s.lines.flush()
	return nil
}

func newState(env *privsep.Env, p Peers, conf *config.Config) *state {
	s := &state{env: env, peers: p, conf: conf, uid: os.Getuid(), users: map[userKey]*user{}}
	s.results, s.lines = lease.New(p.Queue), newLines(env.Log)
	envelopes := env.Stat.Counter("mda.envelope")
	s.results.Before, s.results.Changed = s.lines.flush, func(n int) { envelopes.Add(int64(n)) }
	s.pool = newPool(env)
	s.pool.finished, s.pool.hold, s.pool.release = s.finished, s.hold, s.release
	s.pool.setLimits(conf.MDA)
	return s
}

// follow takes over each new configuration until ctx ends. Switches concern
// others: scheduler leases nothing while mda is paused.
func (s *state) follow(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case conf := <-s.env.Config:
			s.mu.Lock()
			s.conf = conf
			s.users = map[userKey]*user{} // lookups under way finish on their own
			s.mu.Unlock()
			s.pool.setLimits(conf.MDA)
			s.env.Works(conf)
		case <-s.env.Switches:
		}
	}
}

// transfer takes envelopes over from queue.
func (s *state) transfer(ctx context.Context, t *imsg.Transfer, tasks *sync.WaitGroup) {
	s.mu.Lock()
	conf, stopped := s.conf, s.stopped
	s.mu.Unlock()
	if stopped || !s.results.Take(t) {
		return
	}
	b := s.newBody(t)
	defer b.release()
	jobs := make([]*job, len(t.Envelopes))
	for i := range t.Envelopes {
		e := &t.Envelopes[i]
		jobs[i] = &job{env: e, conf: conf, act: conf.Actions[e.Dispatcher], body: b, session: mail.SessionID(rand.Uint64())}
	}
	for _, j := range oneCopy(jobs) {
		b.retain()
		s.begin(ctx, j, tasks)
	}
}

// storeCheck has the store asked whether it would take an envelope, by the worker
// that would deliver it. Only actions with verify-rcpt have their store asked:
// nobody makes us connect to what the configuration does not name.
func (s *state) storeCheck(ctx context.Context, r *ipc.Request, m *imsg.StoreCheck, tasks *sync.WaitGroup) {
	s.mu.Lock()
	conf, stopped := s.conf, s.stopped
	s.mu.Unlock()
	act := conf.Actions[m.Envelope.Dispatcher]
	answer := func(res *imsg.DeliverResult) {
		r.Reply(&imsg.StoreAnswer{Answered: res.Store, Status: res.Status}, nil)
	}
	if stopped || act == nil || act.Method != config.MethodLMTP || !act.VerifyRcpt || m.Envelope.Exec != "" {
		answer(tempfail("no store to ask"))
		return
	}
	s.begin(ctx, &job{env: &m.Envelope, conf: conf, act: act, answer: answer}, tasks)
}

// begin finds out what to do with an envelope, and who is to do it.
func (s *state) begin(ctx context.Context, j *job, tasks *sync.WaitGroup) {
	if j.act == nil || !j.act.IsLocal() {
		s.finished(j, tempfail("No such action: "+mail.Clean(j.env.Dispatcher, 64)))
		return
	}
	if res := j.plan(); res != nil {
		s.finished(j, res)
		return
	}
	s.withUser(ctx, j, tasks)
}

// identified goes on once the user is known.
func (s *state) identified(j *job) {
	j.as = j.user
	foreign := s.env.Unprivileged && int(j.user.UID) != s.uid
	switch {
	case j.user.UID == 0: // a system mailbox of root as well: nothing is delivered as root
		s.finished(j, permfail("MDA not allowed to deliver to: "+j.user.Name))
		return
	case foreign && j.run.Method == string(config.MethodLMTP), j.store() != "" && j.act.User == "":
		// A store needs no identity. By a socket of the system it can see one, so
		// there the user's is kept as long as we can have it.
		j.as = imsg.UserInfo{Name: ctl.DaemonUser, UID: uint32(s.uid), GID: uint32(os.Getgid()), Home: "/"}
	case foreign:
		s.finished(j, tempfail("not started by root: cannot deliver as "+j.user.Name))
		return
	}
	s.pool.submit(j)
}

// finished logs the end of a delivery and keeps it for queue, for each envelope
// that it was made for.
func (s *state) finished(j *job, r *imsg.DeliverResult) {
	if j.answer != nil {
		j.answer(r)
		return
	}
	j.body.release()
	for _, e := range append([]*mail.Envelope{j.env}, j.twins...) {
		s.lines.add(func(b *log.Batch) { s.log(b, j, e, r) })
		res := imsg.Result{ID: e.ID, Attempt: e.Retry, Status: r.Status, Loop: r.Loop}
		if !r.Status.OK() {
			res.Line = r.Line
		}
		s.results.Add(res)
	}
}

// hold gives the envelopes of a delivery back to queue until release.
func (s *state) hold(key uint64, j *job) {
	ids := []mail.EnvelopeID{j.env.ID}
	for _, e := range j.twins {
		ids = append(ids, e.ID)
	}
	j.body.release()
	s.results.Drop(ids)
	_ = s.peers.Queue.Send(&imsg.Hold{IDs: ids, Key: key}, nil) // a queue that is gone forgets its leases anyway
}

// release wants so many of them back; 0: all.
func (s *state) release(key uint64, count int) {
	_ = s.peers.Queue.Send(&imsg.Release{Key: key, Count: count}, nil) // a new queue holds nothing
}

func (s *state) log(b *log.Batch, j *job, e *mail.Envelope, r *imsg.DeliverResult) {
	result := "TempFail"
	switch {
	case r.Status.OK():
		result = "Ok"
	case r.Status.Permanent():
		result = "PermFail"
	}
	name := j.user.Name
	if name == "" {
		name = e.User
	}
	b.Event(j.session, "mda delivery", slog.String("evpid", e.ID.String()),
		log.Raw("from", "<"+e.Sender.String()+">"), log.Raw("to", "<"+e.Dest.String()+">"),
		log.Raw("rcpt", "<"+e.Rcpt.String()+">"), log.Raw("user", name),
		log.Raw("delay", durationText(s.env.Now().Sub(e.Created))), log.Raw("result", result), log.Raw("stat", r.Stat))
}

// durationText is a duration as the log prints it: 0s, 1m10s, 1d2h.
func durationText(d time.Duration) string {
	left := int64(max(d, 0) / time.Second)
	text := ""
	for _, u := range []struct {
		seconds int64
		name    string
	}{{86400, "d"}, {3600, "h"}, {60, "m"}, {1, "s"}} {
		if n := left / u.seconds; n > 0 {
			text += fmt.Sprint(n) + u.name
			left %= u.seconds
		}
	}
	if text == "" {
		return "0s"
	}
	return text
}

// Results of our own making.
func tempfail(text string) *imsg.DeliverResult { return failure(451, text, "Error ("+text+")") }

func permfail(text string) *imsg.DeliverResult { return failure(550, text, "Error ("+text+")") }

func failure(code int, text, stat string) *imsg.DeliverResult {
	enh := [3]uint8{uint8(code / 100), 3, 0}
	return &imsg.DeliverResult{Status: mail.Status{Code: code, Enh: enh, Text: text}, Line: text, Stat: stat}
}
