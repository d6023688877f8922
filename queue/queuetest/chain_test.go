package queuetest

import (
	"errors"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"

	"smtpd/internal/mail"
	"smtpd/queue"
)

// chainsVar says how many chains there shall be.
const chainsVar = "QUEUE_TEST_CHAINS"

// TestChains has spools live many lives, one after the other: each is what the
// power cut left of the one before, with faults of the disk, readers, logs of any
// size, compaction and verification.
func TestChains(t *testing.T) {
	chains := 8
	if n, err := strconv.Atoi(os.Getenv(chainsVar)); err == nil {
		chains = n
	}
	for n := range chains {
		c := newChain(t, uint64(n))
		for gen := 0; gen < 8; gen++ {
			if c.generation(t); t.Failed() {
				t.Fatalf("chain %d, generation %d", n, gen)
			}
		}
		os.RemoveAll(c.l.disk.root)
	}
}

// chain is a spool from one power cut to the next.
type chain struct {
	l *ledger
	o queue.Options
	r *rand.Rand
}

func newChain(t *testing.T, seed uint64) *chain {
	c := &chain{r: rand.New(rand.NewPCG(seed, 1))}
	if c.r.IntN(3) == 0 {
		c.o.Key, c.o.Compress = []byte("0123456789abcdef0123456789abcdef"), c.r.IntN(2) == 0
	}
	c.o.Moved = func(m queue.Moved) { t.Errorf("moved %s: %s", m.Name, m.Reason) }
	c.l = &ledger{disk: NewDisk(fastDir(t)), bodies: map[mail.MessageID]string{}}
	return c
}

func fastDir(t *testing.T) string {
	dir, err := os.MkdirTemp(fast(t), "chain")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// generation opens the spool, judges it, works with it, and ends it: by Close, by
// a cut at the end, or by one anywhere before.
func (c *chain) generation(t *testing.T) {
	d := c.l.disk
	c.o.FS, c.o.LogSize = d, []int{8 << 10, 16 << 10, 32 << 10, 32 << 10, 64 << 10, 256 << 10}[c.r.IntN(6)]
	first := d.Len()
	s, err := queue.Open(d.root, c.o)
	if err != nil {
		t.Fatal(err)
	}
	c.tidy(t, s)
	if !c.l.judge(t, s, d.Len()) {
		return
	}
	c.tidy(t, s)
	c.work(t, s)
	at := d.Len()
	switch c.r.IntN(4) {
	case 0:
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		at = d.Len()
	case 1:
		at -= c.r.IntN(at - first + 1)
	}
	next := fastDir(t)
	if err := d.Crash(at, c.r, next); err != nil {
		t.Fatal(err)
	}
	s.Close()
	os.RemoveAll(d.root)
	if c.l.disk, err = adopt(next); err != nil {
		t.Fatal(err)
	}
	for _, m := range d.Marks(at) {
		c.l.disk.Mark(m)
	}
}

// tidy removes what judge puts there.
func (c *chain) tidy(t *testing.T, s queue.Store) {
	all, err := All(s, 100)
	if err != nil {
		t.Error(err)
	}
	for _, e := range all {
		if c.l.bodies[e.ID.Message()] == "" {
			if _, err := s.Apply(t.Context(), []queue.Change{{ID: e.ID, Attempt: queue.AnyAttempt, Edit: remove}}); err != nil {
				t.Error(err)
			}
		}
	}
}

// work has writers and readers at a spool, and either a disk that fails now and
// then or something that takes the spool for itself.
func (c *chain) work(t *testing.T, s *queue.Bolt) {
	var writers, readers sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		page := []int{1, 3, 7, 100}[c.r.IntN(4)]
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					c.l.look(t, s, page)
				}
			}
		})
	}
	faults := c.r.IntN(2) == 0
	if faults {
		c.l.disk.SetFail(faulty(rand.New(rand.NewPCG(c.r.Uint64(), 3))))
	}
	for w := range 1 + c.r.IntN(4) {
		lives, base := 1+c.r.IntN(8), c.r.IntN(100)
		writers.Go(func() {
			for i := range lives {
				err := c.l.life(t.Context(), s, w+i+base)
				if _, ok := errors.AsType[*mail.Status](err); err != nil && !(ok && faults) {
					t.Errorf("life: %v", err)
				}
			}
		})
	}
	switch what := c.r.IntN(3); {
	case faults:
	case what == 0:
		if _, _, err := s.Compact(t.Context()); err != nil {
			t.Error(err)
		}
	case what == 1:
		if v, err := s.Verify(t.Context(), func(line string) { t.Log(line) }); err != nil || v.Bad > 0 {
			t.Error(v, err)
		}
	}
	writers.Wait()
	c.l.disk.SetFail(nil)
	close(stop)
	readers.Wait()
}

// faulty fails in some of the writes and syncs, and mostly in the next ones too.
func faulty(r *rand.Rand) func(step, name string) error {
	var mu sync.Mutex
	errno, left := []error{syscall.EIO, syscall.ENOSPC}[r.IntN(2)], 0
	return func(step, _ string) error {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case step != "write" && step != "sync":
			return nil
		case left > 0:
			left--
		case r.IntN(25) == 0:
			left = r.IntN(5)
		default:
			return nil
		}
		return errno
	}
}

// look reads everything once while others write: what nobody changes meanwhile
// is as it was acknowledged.
func (l *ledger) look(t *testing.T, s queue.Store, page int) {
	before := l.disk.Marks(l.disk.Len())
	all, err := All(s, page)
	if err != nil {
		t.Errorf("reading: %v", err)
		return
	}
	sure, open := settled(before)
	changed := map[mail.EnvelopeID]bool{}
	for b := range open {
		for id := range b.fates {
			changed[id] = true
		}
	}
	for _, m := range l.disk.Marks(l.disk.Len())[len(before):] {
		if b, ok := m.(*begun); ok { // what ended meanwhile was open before
			for id := range b.fates {
				changed[id] = true
			}
		}
	}
	there, last := map[mail.EnvelopeID]fate{}, mail.EnvelopeID(0)
	for _, e := range all {
		if e.ID <= last {
			t.Errorf("%s after %s", e.ID, last)
		}
		last = e.ID
		there[e.ID] = fate{true, e.Retry}
	}
	for id, f := range sure {
		if !changed[id] && there[id] != f {
			t.Errorf("a reader sees envelope %s: %+v, acknowledged %+v", id, there[id], f)
		}
	}
}
