package runq

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"smtpd/internal/mail"
)

// model is the specification written down without regard to cost: every
// question is answered by looking at every envelope.
type model struct {
	policy  Policy
	paused  map[mail.Kind]bool
	envs    map[mail.EnvelopeID]*modelEnv
	warned  []string
	release map[uint64][]mail.EnvelopeID // held, in order
}

type modelEnv struct {
	Entry
	state   string // waiting, trying, held, parked, expiring, removing, gone
	next    time.Time
	expires time.Time
	lapses  int
	key     uint64
	sent    bool // expiring, removing: said so
	again   bool // removing: said again at next
	freed   bool // not held back
}

func (m *model) formula(e *modelEnv, base time.Duration, after time.Time) time.Time {
	step := time.Duration(e.Retry)
	for !e.Created.Add(base * step * step).After(after) {
		step++
	}
	return e.Created.Add(base * step * step)
}

func (m *model) base(e *modelEnv) time.Duration {
	if e.Kind == mail.KindMTA {
		return 400 * time.Second
	}
	return 10 * time.Second
}

func (m *model) add(now time.Time, e Entry) {
	old := m.envs[e.ID]
	n := &modelEnv{Entry: e, state: "waiting", expires: e.Created.Add(e.TTL)}
	switch {
	case old == nil:
		n.next = e.Created
		if e.Retry > 0 {
			n.next = m.formula(n, m.base(n), e.LastTry)
		}
		m.warn(n)
	case old.state == "removing":
		if old.sent {
			old.next = now.Add(time.Second << min(old.lapses, 8))
			old.lapses++
			old.again = true
		}
		return
	case old.state == "trying" && e.Retry > old.Retry:
		n.next = m.formula(n, m.base(n), now)
		n.DelayNotices = max(n.DelayNotices, old.DelayNotices)
		m.warn(n)
	case old.state == "trying" || old.state == "expiring" && old.sent:
		n.lapses = old.lapses + 1
		soon := now.Add(time.Second << min(old.lapses, 8))
		n.next = soon
		if e.Retry > 0 {
			if at := m.formula(n, m.base(n), e.LastTry); at.After(soon) {
				n.next = at
			}
		}
		n.DelayNotices = max(n.DelayNotices, old.DelayNotices)
		if old.state == "expiring" && n.expires.Before(soon) {
			n.expires = soon
		}
	default:
		return
	}
	if old != nil {
		n.Suspended = old.Suspended
		n.freed = old.freed && e.Retry == old.Retry
	}
	m.rest(now, n)
	m.envs[e.ID] = n
}

// rest has an envelope wait, for its time or for its release.
func (m *model) rest(now time.Time, e *modelEnv) {
	e.state = "waiting"
	held := e.Hold || e.Dispatcher == "b" && !windowOpen(now)
	if held && !e.freed && !e.Suspended && e.Kind != mail.KindBounce {
		e.state = "parked"
	}
}

// windowOpen is the policy of dispatcher b: of an hour it has the last quarter.
func windowOpen(now time.Time) bool { return now.Sub(epoch)%time.Hour >= 45*time.Minute }

func hold(d string, now time.Time) (bool, time.Time) {
	if d != "b" {
		return false, time.Time{}
	}
	hour := now.Add(-(now.Sub(epoch) % time.Hour))
	if windowOpen(now) {
		return false, hour.Add(time.Hour)
	}
	return true, hour.Add(45 * time.Minute)
}

func (m *model) warn(e *modelEnv) {
	if e.Retry == 0 || e.NoDelay || e.Kind == mail.KindBounce {
		return
	}
	for i, w := range m.policy.Warn {
		if i == int(e.DelayNotices) && !e.next.Before(e.Created.Add(w)) {
			e.DelayNotices++
			m.warned = append(m.warned, fmt.Sprintf("%v %v %d", e.ID, w, e.DelayNotices))
		}
	}
}

func (m *model) suspend(now time.Time, id mail.EnvelopeID, on bool) bool {
	e := m.envs[id]
	if e == nil || e.state == "removing" || e.Suspended == on {
		return false
	}
	e.Suspended = on
	if e.state == "held" || e.state == "expiring" && !e.sent || e.state == "parked" {
		m.unhold(e)
		e.state = "waiting"
	}
	if e.state == "waiting" {
		m.rest(now, e)
	}
	return true
}

func (m *model) unhold(e *modelEnv) {
	if e.state == "held" {
		l := m.release[e.key]
		i := slices.Index(l, e.ID)
		m.release[e.key] = slices.Delete(slices.Clone(l), i, i+1)
	}
}

func (m *model) schedule(now time.Time, id mail.EnvelopeID) bool {
	e := m.envs[id]
	if e == nil || e.Suspended || (e.state != "waiting" && e.state != "held" && e.state != "parked") {
		return false
	}
	m.unhold(e)
	e.state, e.freed = "waiting", true
	if e.next.After(now) {
		e.next = now
	}
	return true
}

func (m *model) remove(id mail.EnvelopeID) bool {
	e := m.envs[id]
	if e == nil || e.state == "removing" {
		return false
	}
	m.unhold(e)
	e.state, e.sent, e.again = "removing", false, false
	return true
}

func (m *model) hold(now time.Time, id mail.EnvelopeID, key uint64) bool {
	e := m.envs[id]
	if e == nil || e.state != "trying" {
		return false
	}
	e.state, e.next = "waiting", now.Add(time.Minute)
	if !e.Suspended {
		e.state, e.key = "held", key
		m.release[key] = append(m.release[key], id)
	}
	return true
}

func (m *model) letGo(now time.Time, key uint64, count int) {
	l := slices.Clone(m.release[key])
	if count == 0 || count > len(l) {
		count = len(l)
	}
	for _, id := range l[:count] {
		m.unhold(m.envs[id])
		m.envs[id].next = now
		m.rest(now, m.envs[id])
	}
}

func (m *model) gone(id mail.EnvelopeID) bool {
	e := m.envs[id]
	if e != nil {
		m.unhold(e)
	}
	delete(m.envs, id)
	return e != nil
}

// tick does what time does.
func (m *model) tick(now time.Time) {
	for _, e := range m.envs {
		if e.state == "removing" && e.again && !e.next.After(now) {
			e.sent, e.again = false, false
		}
		at := e.state == "waiting" || e.state == "held" || e.state == "parked"
		if at && !e.Suspended && !e.expires.After(now) {
			m.unhold(e)
			e.state, e.sent = "expiring", false
		} else if e.state == "held" && !e.next.After(now) {
			m.unhold(e)
			m.rest(now, e)
		} else if e.state == "parked" || e.state == "waiting" && !e.next.After(now) {
			m.rest(now, e)
		}
	}
}

func (m *model) due(e *modelEnv, now time.Time) bool {
	return e.state == "waiting" && !e.Suspended && !m.paused[e.Kind] && !e.next.After(now)
}

func (m *model) trying(k mail.Kind) int {
	n := 0
	for _, e := range m.envs {
		if e.state == "trying" && (k == 0 || e.Kind == k) {
			n++
		}
	}
	return n
}

// check takes an action of the engine and finds it right or wrong.
func (m *model) check(now time.Time, a Action) error {
	for i, id := range a.IDs {
		e := m.envs[id]
		switch {
		case e == nil:
			return fmt.Errorf("%v is not known", id)
		case a.Op == Attempt && !m.due(e, now):
			return fmt.Errorf("attempt at %v, which is %+v", id, *e)
		case a.Op == Attempt && (e.Kind != a.Kind || id.Message() != a.IDs[0].Message() ||
			e.Dispatcher != m.envs[a.IDs[0]].Dispatcher || i >= m.policy.MaxBatch):
			return fmt.Errorf("attempt mixes %v", a.IDs)
		case a.Op == Expire && (e.state != "expiring" || e.sent || i >= m.policy.MaxList),
			a.Op == Remove && (e.state != "removing" || e.sent || i >= m.policy.MaxList):
			return fmt.Errorf("op %d of %v, which is %+v", a.Op, id, *e)
		}
		switch a.Op {
		case Attempt:
			e.state = "trying"
		case Expire, Remove:
			e.sent = true
		}
	}
	if a.Op == Delay {
		s := fmt.Sprintf("%v %v %d", a.IDs[0], a.Interval, a.Number)
		if len(m.warned) == 0 || m.warned[0] != s {
			return fmt.Errorf("notice %s; want %v", s, m.warned)
		}
		m.warned = m.warned[1:]
	}
	if n := m.trying(0); n > m.policy.MaxInflight {
		return fmt.Errorf("%d in flight", n)
	}
	return nil
}

// idle finds out whether anything was left undone. q is asked which envelopes
// still stand in a lane behind others: what holds them back may be found later.
func (m *model) idle(now time.Time, q *Queue, wake time.Time, hasWake bool) error {
	reserve, total := m.policy.MaxInflight/10, m.trying(0)
	out := 0
	for _, e := range m.envs {
		if e.state == "expiring" && e.sent {
			out++
		}
	}
	var first time.Time
	for _, e := range m.envs {
		room := m.policy.MaxInflight - total
		for _, k := range order {
			if k != e.Kind {
				room -= max(reserve-m.trying(k), 0)
			}
		}
		if m.due(e, now) && room > 0 {
			return fmt.Errorf("%v is due and was left: %+v", e.ID, *e)
		}
		if !e.sent && (e.state == "removing" || e.state == "expiring" && out < m.policy.MaxInflight) {
			return fmt.Errorf("%v is %s and was left", e.ID, e.state)
		}
		if e.again && (first.IsZero() || e.next.Before(first)) {
			first = e.next
		}
		if e.Suspended || (e.state != "waiting" && e.state != "held" && e.state != "parked") {
			continue
		}
		at := e.expires
		if e.state != "parked" && e.next.Before(at) && e.next.After(now) {
			at = e.next
		}
		if _, opens := hold(e.Dispatcher, now); e.state == "parked" && !e.Hold && opens.Before(at) && !opens.IsZero() &&
			q.pool.at(q.byID[e.ID]).state == parked {
			at = opens
		}
		if first.IsZero() || at.Before(first) {
			first = at
		}
	}
	if len(m.warned) > 0 {
		return fmt.Errorf("notices left: %v", m.warned)
	}
	if hasWake != !first.IsZero() || (hasWake && !wake.Equal(first)) {
		return fmt.Errorf("wakes at %v; want %v", wake, first)
	}
	return nil
}

// driver does the same to the engine and to the model.
type driver struct {
	t   *testing.T
	rng *rand.Rand
	q   *Queue
	m   *model
	now time.Time
	ids []mail.EnvelopeID
}

func (d *driver) pick() mail.EnvelopeID {
	if len(d.ids) == 0 {
		return 1
	}
	return d.ids[d.rng.IntN(len(d.ids))]
}

func (d *driver) same(what string, got, want bool) {
	d.t.Helper()
	if got != want {
		d.t.Fatalf("%s: got %v; want %v", what, got, want)
	}
}

func (d *driver) fresh() {
	msg := mail.MessageID(1 + d.rng.IntN(1<<16))
	for n := range uint32(1 + d.rng.IntN(6)) {
		id := msg.Envelope(n + 1)
		if d.m.envs[id] != nil {
			return
		}
		e := Entry{ID: id, Kind: order[d.rng.IntN(3)], Dispatcher: "a", Created: d.now, TTL: four}
		if d.rng.IntN(3) == 0 {
			e.Dispatcher = "b"
		}
		if d.rng.IntN(4) == 0 {
			e.TTL = time.Duration(d.rng.IntN(1000)) * time.Second
		}
		if d.rng.IntN(5) == 0 {
			e.Created = d.now.Add(-time.Duration(d.rng.IntN(200000)) * time.Second)
			e.Retry = uint16(d.rng.IntN(5))
			e.LastTry = e.Created.Add(d.now.Sub(e.Created) / 2)
		}
		e.NoDelay, e.Hold, e.Suspended = d.rng.IntN(8) == 0, d.rng.IntN(10) == 0, d.rng.IntN(10) == 0
		d.ids = append(d.ids, id)
		d.q.Add(d.now, e)
		d.m.add(d.now, e)
	}
}

// result ends an attempt, or says something that is known already.
func (d *driver) result() {
	id := d.pick()
	e := d.m.envs[id]
	if e == nil {
		d.same("gone", d.q.Gone(id), false)
		return
	}
	if e.state == "trying" && d.rng.IntN(2) == 0 || e.sent && d.rng.IntN(2) == 0 {
		d.q.Gone(id)
		d.m.gone(id)
		return
	}
	entry := e.Entry
	entry.Suspended = d.rng.IntN(2) == 0 // the queue may not have heard of the last pause
	if e.state == "trying" && d.rng.IntN(3) > 0 {
		entry.Retry++
		entry.LastTry = d.now
	}
	d.q.Add(d.now, entry)
	d.m.add(d.now, entry)
}

func (d *driver) step() {
	id, on := d.pick(), d.rng.IntN(2) == 0
	switch d.rng.IntN(12) {
	case 0, 1, 2:
		d.fresh()
	case 3, 4, 5, 6:
		for range 10 {
			d.result()
		}
	case 7:
		d.same("suspend", d.q.Suspend(d.now, id, on), d.m.suspend(d.now, id, on))
	case 8:
		d.same("schedule", d.q.Schedule(d.now, id), d.m.schedule(d.now, id))
		if d.rng.IntN(3) == 0 {
			d.same("remove", d.q.Remove(id), d.m.remove(id))
		}
	case 9:
		key := uint64(d.rng.IntN(3))
		for range 4 {
			id = d.pick()
			ok, _ := d.q.Hold(d.now, id, key)
			d.same("hold", ok, d.m.hold(d.now, id, key))
		}
	case 10:
		key, n := uint64(d.rng.IntN(3)), d.rng.IntN(4)
		d.q.Release(d.now, key, n)
		d.m.letGo(d.now, key, n)
	case 11:
		k := order[d.rng.IntN(3)]
		on = d.rng.IntN(3) == 0
		d.q.Pause(k, on)
		d.m.paused[k] = on
	}
}

// settle has both do what is due.
func (d *driver) settle() {
	d.t.Helper()
	d.m.tick(d.now)
	for {
		a, ok := d.q.Next(d.now)
		if ok {
			if err := d.m.check(d.now, a); err != nil {
				d.t.Fatal(err)
			}
			continue
		}
		w, has := d.q.Wake()
		if has && !w.After(d.now) {
			continue
		}
		if err := d.m.idle(d.now, d.q, w, has); err != nil {
			d.t.Fatal(err)
		}
		return
	}
}

func TestAgainstModel(t *testing.T) {
	for seed := range uint64(16) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			p := Policy{MaxInflight: 1 + rng.IntN(60), MaxBatch: 1 + rng.IntN(5), MaxTurn: 1 + rng.IntN(3),
				MaxList: 1 + rng.IntN(4), Hold: hold, Warn: []time.Duration{20 * time.Second, time.Hour}}
			d := &driver{t: t, rng: rng, q: New(p), now: epoch, m: &model{policy: p,
				paused: map[mail.Kind]bool{}, envs: map[mail.EnvelopeID]*modelEnv{}, release: map[uint64][]mail.EnvelopeID{}}}
			for range 300 {
				d.step()
				if d.rng.IntN(3) > 0 {
					d.settle()
				}
				if d.rng.IntN(4) == 0 {
					d.settle()
					d.now = d.now.Add(time.Duration(d.rng.ExpFloat64() * float64(5*time.Minute)))
				}
			}
			d.drain()
		})
	}
}

// drain ends everything: nothing may stay behind, counters return to zero.
func (d *driver) drain() {
	d.t.Helper()
	for _, k := range order {
		d.q.Pause(k, false)
		d.m.paused[k] = false
	}
	for range 10000 {
		for _, id := range d.ids {
			if e := d.m.envs[id]; e != nil {
				d.same("resume", d.q.Suspend(d.now, id, false), d.m.suspend(d.now, id, false))
				if e.state == "trying" || e.sent {
					d.q.Gone(id)
					d.m.gone(id)
				}
			}
		}
		d.settle()
		if len(d.m.envs) == 0 {
			break
		}
		d.now = d.now.Add(time.Hour)
	}
	if c := d.q.Counts(); c != (Counts{}) || len(d.q.heap) != 0 || d.q.givenUp != 0 {
		d.t.Fatalf("left: %+v, %d timers, %d given up", c, len(d.q.heap), d.q.givenUp)
	}
}
