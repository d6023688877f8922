// Package mta is the process that relays: it takes leased envelopes from queue,
// has the engine of the same name carry them out, and brings the results back.
// It owns the connections to other hosts and the results that queue has not
// taken yet. It holds no file and no key, and asks lookup for every name.
package mta

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"sync"

	"smtpd/internal/config"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/lease"
	"smtpd/internal/log"
	"smtpd/internal/mail"
	"smtpd/internal/privsep"
	"smtpd/mta"
)

// Peers are the channels this process is given.
type Peers struct{ Queue, Lookup, Keys, Control *ipc.Link }

// maxSubmits is how many messages may wait for a table at a time. Ours.
const maxSubmits = 64

// Preload reads what cannot be read once the process is confined: the
// certificates of the system, which crypto/x509 keeps. Call it before Confine.
func Preload() error {
	if _, err := x509.SystemCertPool(); err != nil {
		return fmt.Errorf("certificates of the system: %w", err)
	}
	return nil
}

// state is the process.
type state struct {
	env     *privsep.Env
	peers   Peers
	engine  *mta.Engine
	tables  *tables
	trust   *trust
	results *lease.Results

	mu   sync.Mutex
	conf *config.Config
}

// Run relays until ctx ends. Then no more is taken, transactions under way are
// finished as far as a few seconds allow, and their results brought to queue.
func Run(ctx context.Context, env *privsep.Env, p Peers) error {
	var conf *config.Config
	select {
	case conf = <-env.Config:
	case <-ctx.Done():
		return nil
	}
	s := newState(env, p, conf)
	submit, submitted := ipc.Async(maxSubmits, s.submit)
	show, shown := ipc.Async(1, s.show)
	transfer := func(r *ipc.Request) {
		if t, ok := r.Msg.(*imsg.Transfer); ok && s.results.Take(t) {
			submit(r)
		}
	}
	s.results.Again = func(t *imsg.Transfer) { transfer(&ipc.Request{Msg: t}) }
	p.Queue.Serve(transfer, s.results.Attached, nil)
	p.Lookup.Serve(func(*ipc.Request) {}, nil, nil)
	p.Keys.Serve(func(*ipc.Request) {}, nil, nil)
	p.Control.Serve(func(r *ipc.Request) {
		switch m := r.Msg.(type) {
		case *imsg.StatsGet:
			env.AnswerStats(r)
		case *imsg.Show:
			show(r)
		case *imsg.RouteCommand:
			s.routeCommand(r, m)
		}
	}, nil, nil)

	flush, stopResults := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { s.results.Run(flush) })
	wg.Go(func() { s.follow(ctx) })
	env.Ready()
	s.engine.Run(ctx) // returns when the last session has ended
	stopResults()
	wg.Wait()
	submitted()
	shown()
	return nil
}

func newState(env *privsep.Env, p Peers, conf *config.Config) *state {
	s := &state{env: env, peers: p, conf: conf,
		tables: &tables{link: p.Lookup, next: map[string]int{}},
		trust:  &trust{keys: p.Keys}}
	s.tables.set(conf)
	s.trust.set(conf)
	s.results = lease.New(p.Queue)
	for _, name := range []string{"mta.connector", "mta.domain", "mta.envelope", "mta.host", "mta.relay",
		"mta.route", "mta.session", "mta.source", "mta.task", "mta.task.running"} {
		env.Stat.Set(name, 0)
	}
	s.engine = mta.New(conf, mta.Options{DNS: &dns{p.Lookup}, Tables: s.tables, Dialer: dialer{},
		Trust: s.trust, Observer: s, Tell: s.tell})
	return s
}

// follow takes over each new configuration.
func (s *state) follow(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case conf := <-s.env.Config:
			s.mu.Lock()
			s.conf = conf
			s.mu.Unlock()
			s.tables.set(conf)
			s.trust.set(conf)
			s.engine.SetConfig(conf)
			s.env.Works(conf)
		case <-s.env.Switches: // queue stops leasing while mta is paused
		}
	}
}

// submit hands a Transfer to the engine, each action's envelopes for
// themselves.
func (s *state) submit(r *ipc.Request) {
	t := r.Msg.(*imsg.Transfer)
	s.mu.Lock()
	actions := s.conf.Actions
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), ipc.CallTimeout)
	defer cancel()
	for rest := t.Envelopes; len(rest) > 0; {
		n := 1
		for n < len(rest) && rest[n].Dispatcher == rest[0].Dispatcher {
			n++
		}
		m := &mta.Message{ID: t.Message, Envelopes: rest[:n:n], Action: actions[rest[0].Dispatcher],
			Size: t.Size, Open: s.opener(t)}
		rest = rest[n:]
		if m.Action == nil || m.Action.Relay == nil {
			s.unknownAction(m)
			continue
		}
		s.engine.Submit(ctx, m)
	}
}

// unknownAction is for envelopes whose action a reload took away.
func (s *state) unknownAction(m *mta.Message) {
	for i := range m.Envelopes {
		e := &m.Envelopes[i]
		st := mail.Status{Code: 451, Enh: [3]uint8{4, 3, 5}, Text: "No such action: " + mail.Clean(e.Dispatcher, 64)}
		s.Done(&mta.Report{Envelope: e, Sender: e.Sender, Source: "-", Relay: e.Dest.Domain, Status: st,
			Stat: st.Text, Line: st.Text})
	}
}

// Done implements mta.Observer: it logs and keeps the result.
func (s *state) Done(r *mta.Report) {
	e := r.Envelope
	result := "TempFail"
	switch {
	case r.Status.OK():
		result = "Ok"
	case r.Status.Permanent():
		result = "PermFail"
	}
	// The delivery line has what log parsers know; what led to it has its own.
	if r.Line != r.Stat && !r.Status.OK() {
		s.env.Log.Event(r.Session, "mta cause", slog.String("evpid", e.ID.String()),
			log.Raw("reason", mail.Clean(r.Line, maxLine)))
	}
	rcpt := "<->"
	if e.Rcpt != e.Dest {
		rcpt = "<" + e.Rcpt.String() + ">"
	}
	s.env.Log.Event(r.Session, "mta delivery", slog.String("evpid", e.ID.String()),
		slog.String("from", "<"+r.Sender.String()+">"), slog.String("to", "<"+e.Dest.String()+">"),
		slog.String("rcpt", rcpt), log.Quoted("source", r.Source), log.Quoted("relay", r.Relay),
		slog.String("delay", mta.DurationText(s.env.Now().Sub(e.Created))), log.Quoted("result", result),
		log.Quoted("stat", r.Stat))
	s.results.Add(imsg.Result{ID: e.ID, Attempt: e.Retry, Status: r.Status, Line: mail.Clean(r.Line, maxLine),
		Remote: r.Remote, Loop: r.Loop, Relayed: r.Relayed, NoTry: r.NoTry})
}

// maxLine bounds the line that queue keeps of a failure, in octets. Ours.
const maxLine = 1000

// Event implements mta.Observer.
func (s *state) Event(id mail.SessionID, what string, attrs ...slog.Attr) {
	s.env.Log.Event(id, what, attrs...)
}

// Note implements mta.Observer.
func (s *state) Note(text string) { s.env.Log.Info(text) }

// Trace implements mta.Observer.
func (s *state) Trace(id mail.SessionID, line string) {
	s.env.Log.Trace("mta", id.String()+" "+line)
}

// Tracing implements mta.Observer.
func (s *state) Tracing() bool { return s.env.Log.Tracing("mta") }

// Gauge implements mta.Observer.
func (s *state) Gauge(name string, v int64) { s.env.Stat.Set(name, v) }

// Hold implements mta.Observer.
func (s *state) Hold(key uint64, ids []mail.EnvelopeID) {
	s.results.Drop(ids)
	for len(ids) > 0 {
		n := min(len(ids), imsg.MaxItems)
		// A queue that is gone forgets its leases anyway.
		_ = s.peers.Queue.Send(&imsg.Hold{IDs: ids[:n], Key: key}, nil)
		ids = ids[n:]
	}
}

// Release implements mta.Observer.
func (s *state) Release(key uint64, count int) {
	_ = s.peers.Queue.Send(&imsg.Release{Key: key, Count: count}, nil) // a new queue holds nothing
}

// Retry implements mta.Observer.
func (s *state) Retry(ids []mail.EnvelopeID) { s.results.Retry(ids) }
