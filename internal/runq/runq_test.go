package runq

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	"smtpd/internal/mail"
)

var epoch = time.Unix(1_800_000_000, 0)

func at(d time.Duration) time.Time { return epoch.Add(d) }

const (
	day  = 24 * time.Hour
	four = 4 * day
)

func policy() Policy {
	return Policy{MaxInflight: 5000, MaxBatch: 256, MaxTurn: 10, MaxList: 1024}
}

func env(msg mail.MessageID, n uint32, k mail.Kind) Entry {
	return Entry{ID: msg.Envelope(n), Kind: k, Dispatcher: "d", Created: epoch, TTL: four}
}

// all is everything there is to do at a time.
func all(q *Queue, now time.Time) []Action {
	var got []Action
	for {
		a, ok := q.Next(now)
		if ok {
			got = append(got, a)
			continue
		}
		if w, ok := q.Wake(); !ok || w.After(now) {
			return got
		}
		if len(got) > 1_000_000 {
			panic("endless")
		}
	}
}

func show(as []Action) string {
	s := ""
	for _, a := range as {
		s += [...]string{"?", "attempt", "expire", "remove", "delay"}[a.Op]
		if a.Op == Delay {
			s += fmt.Sprintf("(%v,%d)", a.Interval, a.Number)
		}
		for _, id := range a.IDs {
			s += fmt.Sprintf(" %x.%d", uint32(id.Message()), uint32(id))
		}
		s += "; "
	}
	return s
}

func expect(t *testing.T, q *Queue, now time.Time, want string) {
	t.Helper()
	if got := show(all(q, now)); got != want {
		t.Fatalf("at %v: got %q; want %q", now.Sub(epoch), got, want)
	}
}

func TestNextTry(t *testing.T) {
	tests := map[string]struct {
		base  time.Duration
		retry uint16
		after time.Duration
		want  time.Duration
	}{
		"relay, first failure at once":  {baseRelay, 1, 2 * time.Second, 400 * time.Second},
		"relay, second":                 {baseRelay, 2, 401 * time.Second, 1600 * time.Second},
		"relay, third":                  {baseRelay, 3, 1601 * time.Second, 3600 * time.Second},
		"relay, fourth":                 {baseRelay, 4, 3601 * time.Second, 6400 * time.Second},
		"relay, late attempt is raised": {baseRelay, 1, 400 * time.Second, 1600 * time.Second},
		"relay, seen at age 36 s":       {baseRelay, 2, 36 * time.Second, 1600 * time.Second},
		"local":                         {baseLocal, 1, 0, 10 * time.Second},
		"local, second":                 {baseLocal, 2, 10 * time.Second, 40 * time.Second},
		"local, third":                  {baseLocal, 3, 40 * time.Second, 90 * time.Second},
		"local, fourth":                 {baseLocal, 4, 90 * time.Second, 160 * time.Second},
		"exactly now is not the future": {baseLocal, 2, 40 * time.Second, 90 * time.Second},
		"the clock went back":           {baseLocal, 2, -time.Hour, 40 * time.Second},
		"never tried":                   {baseLocal, 0, -1, 0},
		"overflow":                      {baseOverflow, 0, 2 * time.Second, 3 * time.Second},
	}
	for name, tt := range tests {
		got := time.Duration(nextTry(1e18, tt.base, tt.retry, 1e18+int64(tt.after)) - 1e18)
		if got != tt.want {
			t.Errorf("%s: got %v; want %v", name, got, tt.want)
		}
	}
}

// The closed form agrees with the sentence of the specification.
func TestNextTryAgreesWithLoop(t *testing.T) {
	for _, b := range []time.Duration{baseLocal, baseRelay, baseOverflow} {
		for retry := uint16(0); retry < 200; retry += 7 {
			for after := time.Duration(0); after < 30*day; after += after/3 + 977*time.Millisecond {
				step := int64(retry)
				for int64(b)*step*step <= int64(after) {
					step++
				}
				if got, want := nextTry(0, b, retry, int64(after)), int64(b)*step*step; got != want {
					t.Fatalf("base %v retry %d after %v: got %v; want %v", b, retry, after, got, want)
				}
			}
		}
	}
}

func TestNextTryDoesNotOverflow(t *testing.T) {
	for _, retry := range []uint16{0, 1, 65535} {
		for _, created := range []int64{0, 1e18, 1 << 62} {
			for _, after := range []int64{-1 << 62, 0, 1e18, 1 << 62} {
				if got := nextTry(created, baseRelay, retry, after); got < created {
					t.Errorf("created %d retry %d after %d: got %d", created, retry, after, got)
				}
			}
		}
	}
}

func TestBackoff(t *testing.T) {
	tests := map[string]struct {
		b    Backoff
		want []time.Duration // of the tries that follow, each after a failure at once
	}{
		"by default":          {Backoff{}, []time.Duration{400 * time.Second, 1600 * time.Second, time.Hour}},
		"another base":        {Backoff{Base: time.Minute}, []time.Duration{time.Minute, 4 * time.Minute, 9 * time.Minute}},
		"delays":              {Backoff{Delays: []time.Duration{time.Minute, time.Hour}}, []time.Duration{time.Minute, time.Hour + time.Minute, 2*time.Hour + time.Minute}},
		"delays beat base":    {Backoff{Base: time.Hour, Delays: []time.Duration{time.Minute}}, []time.Duration{time.Minute, 2 * time.Minute}},
		"a base too small":    {Backoff{Base: 1}, []time.Duration{time.Second, 4 * time.Second}},
		"a delay of nothing":  {Backoff{Delays: []time.Duration{0}}, []time.Duration{time.Second, 2 * time.Second}},
		"a delay of ages":     {Backoff{Delays: []time.Duration{1<<63 - 1}}, []time.Duration{maxAge}},
		"a delay before zero": {Backoff{Delays: []time.Duration{-time.Hour}}, []time.Duration{time.Second}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p := policy()
			p.Backoff = func(k mail.Kind, d string) Backoff {
				if k != mail.KindMTA || d != "d" {
					t.Errorf("asked for %v %q", k, d)
				}
				return tt.b
			}
			q := New(p)
			e := env(1, 1, mail.KindMTA)
			e.TTL = 1 << 62
			now := at(0)
			q.Add(now, e)
			for i, want := range tt.want {
				expect(t, q, now, "attempt 1.1; ")
				e.Retry, e.LastTry = uint16(i+1), now
				q.Add(now, e)
				w, _ := q.Wake()
				if got := w.Sub(epoch); got != want {
					t.Fatalf("try %d: got %v; want %v", i+1, got, want)
				}
				q.Reset() // a restart changes nothing
				q.Add(now.Add(time.Millisecond), e)
				if w2, _ := q.Wake(); !w2.Equal(w) {
					t.Fatalf("after a restart: %v; want %v", w2.Sub(epoch), want)
				}
				now = w
			}
		})
	}
}

func TestLifeOfAnEnvelope(t *testing.T) {
	p := policy()
	p.Warn = []time.Duration{4 * time.Hour, 20 * time.Second}
	q := New(p)
	e := env(1, 1, mail.KindMTA)
	if got := q.Add(at(0), e); got != Added {
		t.Fatalf("Add: %v", got)
	}
	expect(t, q, at(0), "attempt 1.1; ")
	expect(t, q, at(time.Hour), "")
	e.Retry, e.LastTry = 1, at(2*time.Second)
	if got := q.Add(at(2*time.Second), e); got != Tempfail {
		t.Fatalf("Add: %v", got)
	}
	expect(t, q, at(2*time.Second), "delay(20s,1) 1.1; ")
	if w, ok := q.Wake(); !ok || !w.Equal(at(400*time.Second)) {
		t.Fatalf("Wake: %v %v", w, ok)
	}
	expect(t, q, at(399*time.Second), "")
	expect(t, q, at(400*time.Second), "attempt 1.1; ")
	e.Retry, e.DelayNotices = 2, 1
	q.Add(at(401*time.Second), e)
	expect(t, q, at(1600*time.Second), "attempt 1.1; ")
	e.Retry = 9
	q.Add(at(1601*time.Second), e) // next at 32400 s: after 4 h
	expect(t, q, at(1601*time.Second), "delay(4h0m0s,2) 1.1; ")
	if !q.Gone(e.ID) || q.Gone(e.ID) {
		t.Fatal("Gone")
	}
	expect(t, q, at(10*day), "")
	if c := q.Counts(); c != (Counts{}) {
		t.Fatalf("Counts: %+v", c)
	}
}

func TestNotices(t *testing.T) {
	tests := map[string]struct {
		warn   []time.Duration
		change func(*Entry)
		want   string
	}{
		"none configured":        {nil, func(e *Entry) {}, ""},
		"not reached":            {[]time.Duration{401 * time.Second}, func(e *Entry) {}, ""},
		"exactly reached":        {[]time.Duration{400 * time.Second}, func(e *Entry) {}, "delay(6m40s,1) 1.1; "},
		"two at once, in order":  {[]time.Duration{time.Minute, time.Second}, func(e *Entry) {}, "delay(1s,1) 1.1; delay(1m0s,2) 1.1; "},
		"one was sent":           {[]time.Duration{time.Second, time.Minute}, func(e *Entry) { e.DelayNotices = 1 }, "delay(1m0s,2) 1.1; "},
		"all were sent":          {[]time.Duration{time.Second}, func(e *Entry) { e.DelayNotices = 4 }, ""},
		"not wanted":             {[]time.Duration{time.Second}, func(e *Entry) { e.NoDelay = true }, ""},
		"a notice itself":        {[]time.Duration{time.Second}, func(e *Entry) { e.Kind = mail.KindBounce }, ""},
		"suspended in mean time": {[]time.Duration{time.Second}, func(e *Entry) { e.Suspended = true }, "delay(1s,1) 1.1; "},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p := policy()
			p.Warn = tt.warn
			q := New(p)
			e := env(1, 1, mail.KindMTA)
			tt.change(&e)
			e.Suspended = false
			q.Add(at(0), e)
			expect(t, q, at(0), "attempt 1.1; ")
			tt.change(&e)
			e.Retry = 1
			q.Add(at(time.Second), e)
			expect(t, q, at(time.Second), tt.want)
		})
	}
}

func TestExpiry(t *testing.T) {
	tests := map[string]struct {
		ttl   time.Duration
		retry uint16
		when  time.Duration
		want  string
	}{
		"before the next try":  {8 * time.Second, 1, 8 * time.Second, "expire 1.1; "},
		"not before its time":  {8 * time.Second, 1, 7 * time.Second, ""},
		"at the same time":     {400 * time.Second, 1, 400 * time.Second, "expire 1.1; "},
		"after the next try":   {401 * time.Second, 1, 400 * time.Second, "attempt 1.1; "},
		"expired while down":   {time.Hour, 3, 2 * time.Hour, "expire 1.1; "},
		"never tried, expired": {time.Hour, 0, 2 * time.Hour, "expire 1.1; "},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			q := New(policy())
			e := env(1, 1, mail.KindMTA)
			e.TTL, e.Retry, e.LastTry = tt.ttl, tt.retry, epoch
			now := at(time.Second)
			if tt.retry != 1 {
				now = at(tt.when)
			}
			q.Add(now, e)
			expect(t, q, at(tt.when), tt.want)
			expect(t, q, at(tt.when), "")
		})
	}
}

// An expiry that the queue could not carry out is asked for again.
func TestExpiryThatCameBack(t *testing.T) {
	q := New(policy())
	e := env(1, 1, mail.KindMDA)
	e.TTL, e.Retry = time.Second, 1
	q.Add(at(time.Minute), e)
	expect(t, q, at(time.Minute), "expire 1.1; ")
	q.Add(at(time.Minute), e)
	expect(t, q, at(time.Minute), "")
	expect(t, q, at(time.Minute+time.Second), "expire 1.1; ")
}

func TestExpiryIsPaced(t *testing.T) {
	p := policy()
	p.MaxInflight, p.MaxList = 6, 4
	q := New(p)
	for n := uint32(1); n <= 10; n++ {
		e := env(1, n, mail.KindMDA)
		e.TTL = time.Second
		q.Add(at(time.Minute), e)
	}
	expect(t, q, at(time.Minute), "expire 1.1 1.2 1.3 1.4; expire 1.5 1.6; ")
	for n := uint32(1); n <= 5; n++ {
		q.Gone(mail.MessageID(1).Envelope(n))
	}
	expect(t, q, at(time.Minute), "expire 1.7 1.8 1.9 1.10; ")
}

func TestReload(t *testing.T) {
	tests := map[string]struct {
		change func(*Entry)
		now    time.Duration
		due    time.Duration
	}{
		"new":                          {func(e *Entry) {}, time.Minute, time.Minute},
		"keeps the time that was set":  {func(e *Entry) { e.Retry, e.LastTry = 1, at(3*time.Second) }, time.Minute, 400 * time.Second},
		"keeps a raised time":          {func(e *Entry) { e.Retry, e.LastTry = 1, at(500*time.Second) }, 550 * time.Second, 1600 * time.Second},
		"the time has passed":          {func(e *Entry) { e.Retry, e.LastTry = 1, at(3*time.Second) }, time.Hour, time.Hour},
		"last try is not known":        {func(e *Entry) { e.Retry = 2 }, time.Minute, 1600 * time.Second},
		"last try not known, passed":   {func(e *Entry) { e.Retry = 2 }, time.Hour, time.Hour},
		"created in the future":        {func(e *Entry) { e.Created = at(time.Hour) }, 0, time.Hour},
		"without a creation time":      {func(e *Entry) { e.Created = time.Time{} }, time.Minute, time.Minute},
		"retries counted by the queue": {func(e *Entry) { e.Retry, e.LastTry = 3, at(1601*time.Second) }, 1700 * time.Second, time.Hour},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			q := New(policy())
			e := env(1, 1, mail.KindMTA)
			tt.change(&e)
			q.Add(at(tt.now), e)
			if tt.due > tt.now {
				expect(t, q, at(tt.due-1), "")
			}
			expect(t, q, at(tt.due), "attempt 1.1; ")
		})
	}
}

func TestInflightOfTheQueue(t *testing.T) {
	q := New(policy())
	e := env(1, 1, mail.KindMTA)
	e.Inflight = true
	q.Add(at(0), e)
	expect(t, q, at(time.Hour), "")
	if s, ok := q.State(e.ID); !ok || !s.Inflight || !s.Since.Equal(at(0)) {
		t.Fatalf("State: %+v", s)
	}
	q.Add(at(time.Minute), e) // said twice
	if s, _ := q.State(e.ID); !s.Since.Equal(at(0)) {
		t.Fatalf("Since: %+v", s)
	}
	if c := q.Counts(); c.Inflight != 1 {
		t.Fatalf("Counts: %+v", c)
	}
	e.Inflight, e.Retry = false, 1
	if got := q.Add(at(2*time.Hour), e); got != Tempfail {
		t.Fatalf("Add: %v", got)
	}
}

// An attempt that did not count is repeated after 1, 2, 4 ... s.
func TestLapse(t *testing.T) {
	q := New(policy())
	e := env(1, 1, mail.KindMTA)
	e.TTL = 365 * day
	now := at(0)
	q.Add(now, e)
	for _, wait := range []int{1, 2, 4, 8, 16, 32, 64, 128, 256, 256} {
		expect(t, q, now, "attempt 1.1; ")
		if got := q.Add(now, e); got != Updated {
			t.Fatalf("Add: %v", got)
		}
		d := time.Duration(wait) * time.Second
		expect(t, q, now.Add(d-1), "")
		now = now.Add(d)
	}
	expect(t, q, now, "attempt 1.1; ")
	e.Retry = 1
	q.Add(now, e)
	expect(t, q, at(1600*time.Second), "attempt 1.1; ")
	q.Add(now, e)
	expect(t, q, now.Add(time.Second), "attempt 1.1; ")
}

func TestSuspend(t *testing.T) {
	q := New(policy())
	a, b := env(1, 1, mail.KindMDA), env(1, 2, mail.KindMDA)
	q.Add(at(0), a)
	b.Suspended = true
	q.Add(at(0), b)
	if !q.Suspend(at(0), a.ID, true) || q.Suspend(at(0), a.ID, true) || q.Suspend(at(0), b.ID, true) || q.Suspend(at(0), 99, true) {
		t.Fatal("Suspend: wrong answers")
	}
	expect(t, q, at(10*day), "") // not even expiry
	if q.Schedule(at(0), a.ID) {
		t.Fatal("a suspended envelope was scheduled")
	}
	if !q.Suspend(at(time.Hour), a.ID, false) || !q.Suspend(at(time.Hour), b.ID, false) || q.Suspend(at(0), b.ID, false) {
		t.Fatal("resume: wrong answers")
	}
	expect(t, q, at(time.Hour), "attempt 1.1 1.2; ")
	if !q.Suspend(at(time.Hour), a.ID, true) {
		t.Fatal("in flight: not suspended")
	}
	a.Retry, a.Suspended = 1, true
	q.Add(at(time.Hour), a)
	expect(t, q, at(time.Hour+10*time.Minute), "")
	if s, _ := q.State(a.ID); !s.Suspended || s.Inflight {
		t.Fatalf("State: %+v", s)
	}
	q.Suspend(at(6*day), a.ID, false)
	expect(t, q, at(6*day), "expire 1.1; ")
}

func TestScheduleNow(t *testing.T) {
	q := New(policy())
	e := env(1, 1, mail.KindMTA)
	q.Add(at(0), e)
	expect(t, q, at(0), "attempt 1.1; ")
	if q.Schedule(at(0), e.ID) || q.Schedule(at(0), 7) {
		t.Fatal("scheduled what is in flight or unknown")
	}
	e.Retry = 1
	q.Add(at(1), e)
	for range 2 {
		if !q.Schedule(at(2), e.ID) {
			t.Fatal("not scheduled")
		}
	}
	expect(t, q, at(2), "attempt 1.1; ")
	e.Retry = 2
	q.Add(at(3), e)
	if w, _ := q.Wake(); !w.Equal(at(1600 * time.Second)) {
		t.Fatalf("Wake: %v", w.Sub(epoch))
	}
}

func TestRemove(t *testing.T) {
	p := policy()
	p.MaxList = 2
	q := New(p)
	for n := uint32(1); n <= 4; n++ {
		q.Add(at(0), env(1, n, mail.KindMDA))
	}
	expect(t, q, at(0), "attempt 1.1 1.2 1.3 1.4; ")
	for n := uint32(1); n <= 3; n++ {
		if id := mail.MessageID(1).Envelope(n); !q.Remove(id) || q.Remove(id) {
			t.Fatal("Remove")
		}
	}
	if c := q.Counts(); c.Inflight != 1 {
		t.Fatalf("Counts: %+v", c)
	}
	expect(t, q, at(0), "remove 1.1 1.2; remove 1.3; ")
	e := env(1, 1, mail.KindMDA)
	e.Retry = 1
	q.Add(at(0), e) // the result crossed with the removal
	if q.Suspend(at(0), e.ID, true) || q.Schedule(at(0), e.ID) || q.Remove(99) {
		t.Fatal("a removed envelope was touched")
	}
	expect(t, q, at(time.Second-1), "")
	expect(t, q, at(time.Second), "remove 1.1; ") // or it could not be removed
	expect(t, q, at(10*day), "")
	q.Gone(e.ID)

	// The queue was replaced before it said Gone of number 2 and 3.
	q.Reset()
	for n := uint32(1); n <= 4; n++ {
		q.Add(at(0), env(1, n, mail.KindMDA))
	}
	q.Loaded()
	expect(t, q, at(0), "remove 1.2 1.3; attempt 1.1 1.4; ")
	q.Gone(mail.MessageID(1).Envelope(2))
	q.Reset()
	q.Loaded()
	q.Add(at(0), env(1, 3, mail.KindMDA))
	expect(t, q, at(0), "attempt 1.3; ")
}

func TestHold(t *testing.T) {
	q := New(policy())
	for n := uint32(1); n <= 5; n++ {
		q.Add(at(0), env(1, n, mail.KindMTA))
	}
	id := mail.MessageID(1).Envelope
	if ok, _ := q.Hold(at(0), id(1), 7); ok {
		t.Fatal("held what is not in flight")
	}
	expect(t, q, at(0), "attempt 1.1 1.2 1.3 1.4 1.5; ")
	for n := uint32(2); n <= 5; n++ {
		if ok, over := q.Hold(at(0), id(n), 7); !ok || over {
			t.Fatal("not held")
		}
	}
	if c := q.Counts(); c.Held != 4 || c.Holds != 1 || c.Inflight != 1 {
		t.Fatalf("Counts: %+v", c)
	}
	q.Release(at(1), 8, 0)
	expect(t, q, at(1), "")
	q.Release(at(1), 7, 2)
	expect(t, q, at(1), "attempt 1.2 1.3; ")
	q.Schedule(at(2), id(5))
	expect(t, q, at(2), "attempt 1.5; ")
	expect(t, q, at(maxHold-1), "")
	expect(t, q, at(maxHold), "attempt 1.4; ")
	q.Hold(at(maxHold), id(4), 7)
	q.Gone(id(4))
	q.Hold(at(maxHold), id(5), 7)
	q.Suspend(at(maxHold), id(5), true)
	q.Release(at(maxHold), 7, 0)
	if c := q.Counts(); c.Held != 0 || c.Holds != 0 {
		t.Fatalf("Counts: %+v", c)
	}
	expect(t, q, at(maxHold), "")
	q.Suspend(at(maxHold), id(5), false)
	expect(t, q, at(2*maxHold), "attempt 1.5; ")
}

func TestReleaseAll(t *testing.T) {
	q := New(policy())
	for n := uint32(1); n <= 4; n++ {
		q.Add(at(0), env(1, n, mail.KindMTA))
	}
	expect(t, q, at(0), "attempt 1.1 1.2 1.3 1.4; ")
	for n := uint32(1); n <= 3; n++ {
		q.Hold(at(0), mail.MessageID(1).Envelope(n), uint64(n%2))
	}
	q.ReleaseAll(at(1))
	got := all(q, at(1))
	n := 0
	for _, a := range got {
		n += len(a.IDs)
	}
	if c := q.Counts(); n != 3 || c.Held != 0 || c.Holds != 0 {
		t.Fatalf("%s, %+v", show(got), c)
	}
}

// An outage makes many notices due at once; they go out at a bearable rate.
func TestNoticesArePaced(t *testing.T) {
	p := policy()
	p.Warn = []time.Duration{time.Second}
	q := New(p)
	for n := uint32(1); n <= 2*maxNotices+1; n++ {
		e := env(1, n, mail.KindMTA)
		e.Retry, e.LastTry = 1, epoch
		q.Add(at(0), e)
	}
	for i, want := range []int{maxNotices, maxNotices, 1} {
		now := at(time.Duration(i) * time.Second)
		if got := len(all(q, now)); got != want {
			t.Fatalf("second %d: %d notices; want %d", i, got, want)
		}
		if w, _ := q.Wake(); i < 2 && !w.Equal(now.Add(time.Second)) {
			t.Fatalf("Wake: %v", w.Sub(epoch))
		}
	}
	if w, _ := q.Wake(); !w.Equal(at(400 * time.Second)) {
		t.Fatalf("Wake: %v", w.Sub(epoch))
	}
}

func TestHoldOverflow(t *testing.T) {
	q := New(policy())
	for n := uint32(1); n <= maxHeld+1; n++ {
		q.Add(at(0), env(1, n, mail.KindMTA))
	}
	all(q, at(0))
	for n := uint32(1); n <= maxHeld+1; n++ {
		ok, over := q.Hold(at(time.Second), mail.MessageID(1).Envelope(n), 7)
		if !ok || over != (n > maxHeld) {
			t.Fatalf("envelope %d: %v %v", n, ok, over)
		}
	}
	expect(t, q, at(3*time.Second), fmt.Sprintf("attempt 1.%d; ", maxHeld+1))
}

func TestOperatorsHold(t *testing.T) {
	q := New(policy())
	e := env(1, 1, mail.KindMTA)
	e.Hold = true
	q.Add(at(0), e)
	expect(t, q, at(day), "")
	if s, _ := q.State(e.ID); !s.Held() {
		t.Fatalf("State: %+v", s)
	}
	q.Suspend(at(day), e.ID, true)
	q.Suspend(at(day), e.ID, false)
	expect(t, q, at(day), "")
	if !q.Schedule(at(day), e.ID) {
		t.Fatal("not scheduled")
	}
	q.Add(at(day), e) // said again by the queue
	expect(t, q, at(day), "attempt 1.1; ")
	q.Add(at(day), e) // lapsed: still wanted
	expect(t, q, at(day+time.Second), "attempt 1.1; ")
	e.Retry = 1
	q.Add(at(day+time.Minute), e) // tried: held again
	expect(t, q, at(2*day), "")
	expect(t, q, at(4*day), "expire 1.1; ")
}

func TestUnknownDispatcher(t *testing.T) {
	p := policy()
	p.Known = func(d string) bool { return d != "lost" }
	q := New(p)
	e, b := env(1, 1, mail.KindMDA), env(1, 2, mail.KindBounce)
	e.Dispatcher, b.Dispatcher = "lost", "lost"
	q.Add(at(0), e)
	q.Add(at(0), b)
	expect(t, q, at(0), "attempt 1.2; ")
	if s, _ := q.State(e.ID); !s.Held() || q.Schedule(at(0), e.ID) {
		t.Fatalf("State: %+v", s)
	}
	q.SetPolicy(at(time.Minute), policy())
	expect(t, q, at(time.Minute), "attempt 1.1; ")
	e.Retry = 1
	q.Add(at(time.Minute), e)
	q.SetPolicy(at(time.Minute), p)
	expect(t, q, at(time.Hour), "")
	expect(t, q, at(five()), "expire 1.1; ")
}

func five() time.Duration { return 5 * day }

func TestPause(t *testing.T) {
	q := New(policy())
	q.Pause(mail.KindMTA, true)
	q.Pause(0, true)
	q.Pause(77, true)
	q.Add(at(0), env(1, 1, mail.KindMTA))
	q.Add(at(0), env(1, 2, mail.KindMDA))
	expect(t, q, at(0), "attempt 1.2; ")
	if w, ok := q.Wake(); !ok || !w.Equal(at(four)) {
		t.Fatalf("Wake: %v %v: a paused kind keeps us awake", w, ok)
	}
	q.Reset()
	q.Add(at(0), env(1, 1, mail.KindMTA))
	expect(t, q, at(0), "")
	q.Pause(mail.KindMTA, false)
	expect(t, q, at(0), "attempt 1.1; ")
	q.Reset()
	q.Pause(mail.KindMTA, true)
	q.Add(at(0), env(1, 1, mail.KindMTA))
	expect(t, q, at(four), "expire 1.1; ")
}

func TestBatches(t *testing.T) {
	p := policy()
	p.MaxBatch = 3
	q := New(p)
	for n := uint32(1); n <= 4; n++ {
		q.Add(at(0), env(1, n, mail.KindMDA))
	}
	e := env(1, 5, mail.KindMDA)
	e.Dispatcher = "other"
	q.Add(at(0), e)
	e = env(2, 1, mail.KindMDA)
	e.Dispatcher = "other"
	q.Add(at(0), e)
	expect(t, q, at(0), "attempt 1.1 1.2 1.3; attempt 1.4; attempt 1.5; attempt 2.1; ")
}

// Envelopes of a message that failed at different times are together again
// when their common time comes.
func TestRetriesAreBatched(t *testing.T) {
	q := New(policy())
	for m := mail.MessageID(1); m <= 2; m++ {
		for n := uint32(1); n <= 3; n++ {
			q.Add(at(0), env(m, n, mail.KindMTA))
		}
	}
	all(q, at(0))
	for _, n := range []uint32{3, 1, 2} {
		for m := mail.MessageID(1); m <= 2; m++ {
			e := env(m, n, mail.KindMTA)
			e.Retry = 1
			q.Add(at(time.Duration(n)*time.Second), e)
		}
	}
	expect(t, q, at(400*time.Second), "attempt 1.1 1.2 1.3; attempt 2.1 2.2 2.3; ")
}

func TestKindsTakeTurns(t *testing.T) {
	p := policy()
	p.MaxTurn = 2
	q := New(p)
	for m := mail.MessageID(1); m <= 4; m++ {
		q.Add(at(0), env(m, 1, mail.KindMTA))
		q.Add(at(0), env(m, 2, mail.KindMDA))
	}
	q.Add(at(0), env(9, 3, mail.KindBounce))
	expect(t, q, at(0), "attempt 9.3; attempt 1.2; attempt 2.2; attempt 1.1; attempt 2.1; "+
		"attempt 3.2; attempt 4.2; attempt 3.1; attempt 4.1; ")
}

func TestFirstAndLaterAttemptsTakeTurns(t *testing.T) {
	q := New(policy())
	for m := mail.MessageID(1); m <= 3; m++ {
		e := env(m, 1, mail.KindMDA)
		e.Retry = 1
		q.Add(at(time.Hour), e)
	}
	for m := mail.MessageID(4); m <= 6; m++ {
		q.Add(at(time.Hour), env(m, 1, mail.KindMDA))
	}
	expect(t, q, at(time.Hour), "attempt 4.1; attempt 1.1; attempt 5.1; attempt 2.1; attempt 6.1; attempt 3.1; ")
}

// A kind whose attempts never end leaves room for the others.
func TestRoomForEachKind(t *testing.T) {
	p := policy()
	p.MaxInflight = 100
	q := New(p)
	for m := mail.MessageID(1); m <= 200; m++ {
		q.Add(at(0), env(m, 1, mail.KindMTA))
	}
	if got := len(all(q, at(0))); got != 80 {
		t.Fatalf("mta: %d attempts; want 80", got)
	}
	for m := mail.MessageID(1); m <= 200; m++ {
		q.Add(at(0), env(m, 2, mail.KindMDA))
	}
	if got := len(all(q, at(0))); got != 10 {
		t.Fatalf("mda: %d attempts; want 10", got)
	}
	for m := mail.MessageID(1); m <= 200; m++ {
		q.Add(at(0), env(m, 3, mail.KindBounce))
	}
	if got := len(all(q, at(0))); got != 10 {
		t.Fatalf("bounce: %d attempts; want 10", got)
	}
	if w, ok := q.Wake(); !ok || !w.After(at(0)) {
		t.Fatalf("Wake: %v: a full house keeps us awake", w)
	}
}

func TestListings(t *testing.T) {
	q := New(policy())
	want := map[mail.EnvelopeID]bool{}
	for m := mail.MessageID(1); m <= 20; m++ {
		for n := uint32(1); n <= 5; n++ {
			q.Add(at(0), env(m, n, mail.KindMDA))
			want[m.Envelope(n)] = true
		}
	}
	for _, id := range []mail.EnvelopeID{mail.MessageID(3).Envelope(1), mail.MessageID(3).Envelope(5), mail.MessageID(3).Envelope(3)} {
		q.Gone(id)
		delete(want, id)
	}
	got := map[mail.EnvelopeID]bool{}
	q.All(func(id mail.EnvelopeID) { got[id] = true })
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("All: %d of %d", len(got), len(want))
	}
	var two []uint32
	q.Of(2, func(id mail.EnvelopeID) { two = append(two, uint32(id)) })
	if !reflect.DeepEqual(two, []uint32{1, 2, 3, 4, 5}) {
		t.Fatalf("Of: %v", two)
	}
	n := 0
	q.Of(3, func(id mail.EnvelopeID) {
		if id.Message() != 3 || !want[id] {
			t.Errorf("Of: %v", id)
		}
		n++
	})
	if n != 2 {
		t.Fatalf("Of: %d; want 2", n)
	}
	q.Of(99, func(mail.EnvelopeID) { t.Fatal("Of an unknown message") })
	if c := q.Counts(); c.Envelopes != 97 || c.Messages != 20 {
		t.Fatalf("Counts: %+v", c)
	}
}

func TestRefused(t *testing.T) {
	q := New(policy())
	for _, e := range []Entry{{ID: 0, Kind: mail.KindMDA}, {ID: 1, Kind: 0}, {ID: 1, Kind: 4}, {ID: 1, Kind: 200}} {
		if got := q.Add(at(0), e); got != Refused {
			t.Errorf("%+v: %v", e, got)
		}
	}
}

func TestShrink(t *testing.T) {
	q := New(policy())
	fill := func() {
		for m := mail.MessageID(1); m <= 40*slabSize; m++ {
			q.Add(at(0), env(m, 1, mail.KindMDA))
		}
	}
	fill()
	for m := mail.MessageID(1); m <= 40*slabSize; m++ {
		q.Gone(m.Envelope(1))
	}
	if len(q.pool.slabs) != 0 {
		t.Fatalf("%d slabs kept", len(q.pool.slabs))
	}
	fill()
	if got := len(all(q, at(0))); got != 4000 {
		t.Fatalf("%d attempts after the refill; want 4000", got)
	}
}
