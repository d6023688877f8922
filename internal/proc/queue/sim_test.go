package queue

import (
	"context"
	"flag"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/mail"
)

var (
	simSeeds = flag.Int("sim.seeds", 0, "how many worlds TestSimulation makes; 0: simWorlds, or with -short a tenth of that")
	simFirst = flag.Uint64("sim.first", 0, "the first seed; 0: another each time")
)

// simWorlds is how many worlds each run of the tests makes, so that they add up:
// some 15 ms each.
const simWorlds = 2000

// TestSimulation lets worlds run, each from its seed, and holds what happened
// against what is promised: acknowledged mail is kept, has one end unless an
// agent died in its middle, expires when it should, is not tried before its
// time, and all is done once faults stop. Goroutines are not ordered by the
// seed, so that the same one may need several runs.
func TestSimulation(t *testing.T) {
	n, first := *simSeeds, *simFirst
	if n == 0 {
		if n = simWorlds; testing.Short() {
			n /= 10
		}
	}
	if first == 0 {
		first = uint64(time.Now().UnixNano()) % 1e12
	}
	t.Logf("%d worlds from seed %d", n, first)
	dir := t.TempDir()
	shards := uint64(runtime.GOMAXPROCS(0))
	for shard := range shards {
		t.Run(fmt.Sprint(shard), func(t *testing.T) {
			t.Parallel()
			tried := 0
			for seed := first + shard; seed < first+uint64(n) && !t.Failed(); seed += shards {
				synctest.Test(t, func(t *testing.T) { tried += simulate(t, seed, dir) })
			}
			t.Logf("%d attempts", tried)
		})
	}
}

// troubled is how long faults last in a world.
const troubled = 8 * time.Minute

func simulate(t *testing.T, seed uint64, dir string) int {
	w := newWorld(seed, dir)
	roles := []imsg.Role{imsg.Queue, imsg.Scheduler, imsg.MTA, imsg.MDA, imsg.SMTP, imsg.Control}
	for _, r := range roles {
		w.boot(r)
	}
	for time.Since(w.start) < troubled {
		time.Sleep(time.Duration(w.draw(int(40 * time.Second))))
		w.trouble()
	}
	w.mu.Lock()
	w.quiet, w.full, w.paused = true, false, imsg.Switches{}
	w.mu.Unlock()
	w.switches()
	w.resumeAll()
	time.Sleep(5 * time.Hour) // the longest ttl, and a retry after it, and its notice's
	w.verdict()
	for _, r := range roles {
		w.kill(r)
	}
	w.stopped.Wait()
	for _, e := range w.errs {
		t.Errorf("seed %d: %s", seed, e)
	}
	return w.tried
}

// trouble does one thing that may go wrong, or that an operator may do.
func (w *world) trouble() {
	mortal := []imsg.Role{imsg.Queue, imsg.Scheduler, imsg.MTA, imsg.MDA, imsg.SMTP}
	switch w.draw(9) {
	case 0, 1, 2:
		role := mortal[w.draw(len(mortal))]
		w.kill(role)
		time.Sleep(time.Duration(w.draw(int(5*time.Second))) + 1)
		w.boot(role)
	case 3:
		w.mu.Lock()
		w.full = !w.full
		w.mu.Unlock()
	case 4:
		w.mu.Lock()
		w.paused.PauseMTA, w.paused.PauseMDA = w.rng.IntN(3) == 0, w.rng.IntN(3) == 0
		w.mu.Unlock()
		w.switches()
	case 5:
		w.command(imsg.OpRemove, w.some())
	case 6:
		w.command(imsg.OpPause, w.some())
	case 7:
		w.command(imsg.OpResume, w.some())
	case 8:
		w.command(imsg.OpSchedule, w.some())
	}
}

// switches tells the scheduler what is paused.
func (w *world) switches() {
	w.mu.Lock()
	defer w.mu.Unlock()
	a := w.actors[imsg.Scheduler]
	sw := w.paused
	select {
	case <-a.pauses:
	default:
	}
	a.pauses <- &sw
}

// some is an envelope, one that is gone perhaps.
func (w *world) some() mail.EnvelopeID {
	w.mu.Lock()
	defer w.mu.Unlock()
	skip := w.rng.IntN(len(w.fates) + 1)
	for id := range w.fates {
		if skip--; skip <= 0 {
			return id
		}
	}
	return 1
}

// command is what an operator does to one envelope.
func (w *world) command(op imsg.SchedOp, id mail.EnvelopeID) {
	w.mu.Lock()
	link := w.actors[imsg.Control].links[imsg.Scheduler]
	if f := w.fates[id]; f != nil && op == imsg.OpSchedule {
		f.earliest = time.Time{} // from now on it may be tried at any time
	}
	w.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	n, err := ipc.Ask[*imsg.Count](ctx, link, &imsg.SchedCommand{Op: op, Envelope: id})
	if err != nil || n.N == 0 || op != imsg.OpRemove {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if f := w.fates[id]; f != nil {
		f.removed = true
	}
}

// resumeAll ends what operators have paused.
func (w *world) resumeAll() {
	for range 10 { // the queue may be just starting
		time.Sleep(10 * time.Second)
		w.mu.Lock()
		link := w.actors[imsg.Control].links[imsg.Scheduler]
		w.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		_, _ = ipc.Ask[*imsg.Count](ctx, link, &imsg.SchedCommand{Op: imsg.OpResume, All: true})
		cancel()
	}
}

// verdict looks at the end.
func (w *world) verdict() {
	left, _, err := w.disk.List(0, 100)
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range left {
		e := &left[i]
		w.broken("left: %v %v, created at %v, ttl %v, tried %d times, flags %b: %s",
			e.ID, e.Kind, e.Created.Sub(w.start), e.TTL, e.Retry, e.Flags, w.state(e.ID))
	}
	if err != nil {
		w.broken("List: %v", err)
	}
	for id, f := range w.fates {
		switch {
		case f.acked && !f.gone:
			if _, err := w.disk.Load(id); err != nil {
				w.broken("%v was acknowledged and is lost", id)
			}
		case f.ends > 1 && f.doubtful == 0:
			w.broken("%v had %d ends, and nobody died", id, f.ends)
		case f.ends > 1+f.doubtful:
			w.broken("%v had %d ends, %d of them doubtful", id, f.ends, f.doubtful)
		case f.removed && !f.gone:
			w.broken("%v was removed and is there", id)
		}
	}
}

// state is what the scheduler says of an envelope, for failures; the lock is
// held.
func (w *world) state(id mail.EnvelopeID) string {
	link := w.actors[imsg.Control].links[imsg.Scheduler]
	w.mu.Unlock()
	defer w.mu.Lock()
	a, err := ipc.Ask[*imsg.SchedStates](context.Background(), link, &imsg.SchedGet{IDs: []mail.EnvelopeID{id}})
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%+v", a.States[0])
}
