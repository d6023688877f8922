package mta

import (
	"context"
	"sync"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/filter"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/mail"
	"smtpd/mta"
)

// Bounds of telling filter programs about connections. Ours.
const (
	// tellWait is how long a connection waits for lookup to know of it; longer
	// than lookup itself waits for programs that have just been started.
	tellWait = 12 * time.Second
	// tellDelay is how long events wait for others to travel with.
	tellDelay = 20 * time.Millisecond
	// maxTold is how many events wait.
	maxTold = 64
)

// told collects the events of one connection and sends them to lookup, which
// has the programs. The engine's goroutine and a timer use it.
type told struct {
	s  *state
	id mail.SessionID

	mu     sync.Mutex
	hears  filter.Set
	events []imsg.FilterEvent
	timer  *time.Timer
	closed bool
}

// tell is Options.Tell: it makes a connection known to the programs of its
// action's filters. Mail goes on without those that are not there.
func (s *state) tell(filters []string, id mail.SessionID) mta.Told {
	s.mu.Lock()
	conf := s.conf
	s.mu.Unlock()
	members := programs(conf, filters)
	if len(members) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), tellWait)
	defer cancel()
	a, err := ipc.Ask[*imsg.FilterOpened](ctx, s.peers.Lookup, &imsg.FilterOpen{Session: id, Filters: members})
	if err != nil || a.Failed {
		return nil
	}
	t := &told{s: s, id: id, hears: filter.Set(a.Events)}
	t.timer = time.AfterFunc(tellDelay, t.late) // stopped by Close
	return t
}

// programs are the filters of an action that are programs.
func programs(conf *config.Config, filters []string) []string {
	chain, err := filter.Compile(conf, filters)
	if err != nil || chain == nil {
		return nil
	}
	return chain.Members
}

// Tell implements mta.Told.
func (t *told) Tell(event string, fields ...string) {
	e, ok := filter.ParseEvent(event)
	if !ok || !t.hears.Has(uint8(e)) {
		return
	}
	tail := filter.Tail(fields...)
	if len(tail) > imsg.MaxText {
		tail = tail[:imsg.MaxText]
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.events) == 0 {
		t.timer.Reset(tellDelay)
	}
	t.events = append(t.events, imsg.FilterEvent{Event: uint8(e), Time: t.s.env.Now(), Tail: tail})
	if len(t.events) >= maxTold {
		t.send(false)
	}
}

func (t *told) late() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.events) > 0 && !t.closed {
		t.send(false)
	}
}

// send is called with mu held, so that events keep their order. Of a lookup
// that is gone nobody needs to hear.
func (t *told) send(last bool) {
	_ = t.s.peers.Lookup.Send(&imsg.FilterEvents{Session: t.id, Events: t.events, Close: last}, nil)
	t.events = nil
}

// Close implements mta.Told.
func (t *told) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.timer.Stop()
	t.closed = true
	t.send(true)
}
