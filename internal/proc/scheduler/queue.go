package scheduler

import (
	"time"

	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/mail"
	"smtpd/internal/runq"
)

// attached greets a new queue: what was known of its predecessor's envelopes
// counts no more.
func (s *state) attached() {
	s.mu.Lock()
	s.abandonDiscoveries()
	s.abandonRemovals()
	s.abandonReleases()
	s.runq.Reset()
	s.out = []imsg.Msg{&imsg.LoadAll{}}
	s.loads = 1
	s.mu.Unlock()
	s.notify()
}

// lost ends what only the queue could answer. What is known stays to be shown.
// Word of a loss may come after its successor was attached.
func (s *state) lost(error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.queue.Up() {
		s.abandonDiscoveries()
		s.abandonRemovals()
		s.abandonReleases()
	}
}

// fromQueue takes what the queue says.
func (s *state) fromQueue(r *ipc.Request) { s.hear(r.Msg) }

func (s *state) hear(m imsg.Msg) {
	s.mu.Lock()
	switch m := m.(type) {
	case *imsg.Scheduled:
		s.scheduled(m)
	case *imsg.Gone:
		s.gone(m)
	case *imsg.Held:
		s.held(m)
	case *imsg.Released:
		s.released(m)
	case *imsg.Retry:
		s.retry(m)
	case *imsg.Releases:
		s.releasesKept(m)
	}
	s.mu.Unlock()
	s.notify()
}

func (s *state) scheduled(m *imsg.Scheduled) {
	now := s.now()
	s.toldReleases = s.toldReleases || m.Loaded // mail that is new may come before that
	for i := range m.Envelopes {
		e := &m.Envelopes[i]
		for _, d := range s.discovers {
			d.found(e.ID)
		}
		switch s.runq.Add(now, s.entry(now, e)) {
		case runq.Refused:
			s.log.Warn("warn: scheduler: envelope " + e.ID.String() + " is of no kind to be scheduled")
		case runq.Added:
			s.seen = true
		case runq.Tempfail:
			s.stat.Add("scheduler.delivery.tempfail", 1)
			s.stat.Add("scheduler.envelope.updated", 1)
		case runq.Updated:
		}
	}
	if m.Loaded && s.loads > 0 {
		if s.loads--; s.loads == 0 {
			s.runq.Loaded()
			s.finishDiscoveries()
		}
	}
}

// entry is what counts of an envelope here.
func (s *state) entry(now time.Time, e *imsg.Sched) runq.Entry {
	ttl := e.TTL
	if ttl <= 0 {
		ttl = s.ttl
	}
	return runq.Entry{
		ID: e.ID, Kind: e.Kind, Dispatcher: e.Dispatcher,
		Created: e.Created, TTL: ttl, LastTry: e.LastTry, Retry: e.Retry,
		DelayNotices: e.DelayNotices,
		// RFC 3461 section 4.1: NOTIFY without DELAY asks for no delay notices. And
		// never a notice about a notice.
		NoDelay:   e.Flags&mail.FlagBounce != 0 || (e.Notify != 0 && e.Notify&mail.NotifyDelay == 0),
		Suspended: e.Flags&mail.FlagSuspended != 0,
		Hold:      e.Flags&mail.FlagHold != 0,
		Released:  s.isReleased(now, e.Domain),
		Inflight:  e.Inflight,
	}
}

// ends names the counter of each end.
var ends = map[mail.GoneReason]string{
	mail.GoneDelivered: "scheduler.delivery.ok",
	mail.GoneFailed:    "scheduler.delivery.permfail",
	mail.GoneLoop:      "scheduler.delivery.loop",
	mail.GoneExpired:   "scheduler.envelope.expired",
	mail.GoneRemoved:   "scheduler.envelope.removed",
}

func (s *state) gone(m *imsg.Gone) {
	n := int64(0)
	tracing := s.log.Tracing("scheduler")
	for _, id := range m.IDs {
		if tracing {
			s.log.Trace("scheduler", "gone "+id.String())
		}
		if s.runq.Gone(id) {
			n++
		}
	}
	if name := ends[m.Why]; name != "" && n > 0 {
		s.stat.Add(name, n)
	}
	s.removed(m.IDs)
}

func (s *state) held(m *imsg.Held) {
	now := s.now()
	for _, id := range m.IDs {
		if _, overflow := s.runq.Hold(now, id, m.Key); overflow {
			s.stat.Add("scheduler.ramqueue.hold-overflow", 1)
		}
	}
}

func (s *state) released(m *imsg.Released) {
	if m.Key == 0 && m.Count == 0 {
		s.runq.ReleaseAll(s.now())
		return
	}
	s.runq.Release(s.now(), m.Key, m.Count)
}

// retry hurries envelopes that only wait for their next attempt.
func (s *state) retry(m *imsg.Retry) {
	now := s.now()
	for _, id := range m.IDs {
		if st, ok := s.runq.State(id); ok && !st.Held() && !st.Suspended {
			s.runq.Schedule(now, id)
		}
	}
}

// gauges brings the gauges up to date, for who asks. A scheduler that never had
// an envelope has none.
func (s *state) gauges() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.seen {
		return
	}
	c := s.runq.Counts()
	for name, n := range map[string]int{
		"scheduler.envelope":          c.Envelopes,
		"scheduler.envelope.incoming": 0, // one is known here once it is committed
		"scheduler.envelope.inflight": c.Inflight,
		"scheduler.ramqueue.envelope": c.Envelopes,
		"scheduler.ramqueue.message":  c.Messages,
		"scheduler.ramqueue.hold":     c.Held,
		"scheduler.ramqueue.holdq":    c.Holds,
		"scheduler.ramqueue.update":   0, // changes take effect at once
	} {
		s.stat.Set(name, int64(n))
		s.stat.Show(name) // a queue that was emptied says so
	}
}
