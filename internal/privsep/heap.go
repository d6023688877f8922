package privsep

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// heapFloor is how large a heap grows before it is collected at all. Ours:
	// under load a process makes 100 MB of short-lived garbage in a second and
	// keeps two; Go's own floor of 4 MB has it collect 50 times in that second,
	// a tenth of all its time.
	heapFloor = 16 << 20
	// goFloor is what Go's floor is at 100 percent.
	goFloor = 4 << 20
	// goPercent is Go's own rule: collect when the heap has doubled.
	goPercent = 100
	// heapQuiet is how long nothing is collected before a heap counts as idle,
	// and heapSpare what makes it worth to give memory back then, in octets. Ours.
	heapQuiet = time.Second
	heapSpare = 4 << 20
)

// tuneHeap keeps the heap collected as Go does, but not below heapFloor, and
// gives the memory of a burst back once it is over: eight processes that each
// keep what they needed for a moment are more than the mail itself. Call it
// once.
func tuneHeap() {
	// What Go's rule counts as living: stacks and globals as well.
	t := &heapTuner{sample: []metrics.Sample{
		{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}, {Name: "/gc/scan/globals:bytes"}}}
	t.quiet = time.AfterFunc(heapQuiet, releaseHeap)
	t.set(0)
	t.arm()
}

// heapTuner looks at the heap after each collection: on the runtime's own
// goroutine, one call at a time.
type heapTuner struct {
	sample  []metrics.Sample
	percent int
	quiet   *time.Timer // runs after the last collection
}

// cycle is garbage whose end tells of a collection. It holds a pointer, so that
// it has a block of memory to itself.
type cycle struct{ t *heapTuner }

func (t *heapTuner) arm() {
	runtime.SetFinalizer(&cycle{t}, func(c *cycle) {
		metrics.Read(c.t.sample)
		var live uint64
		for _, v := range c.t.sample {
			if v.Value.Kind() == metrics.KindUint64 {
				live += v.Value.Uint64()
			}
		}
		c.t.set(live)
		c.t.quiet.Reset(heapQuiet)
		c.t.arm()
	})
}

// set makes the next collection come at heapFloor, or at twice what lives.
func (t *heapTuner) set(live uint64) {
	p := heapPercent(live)
	if d := p - t.percent; d*10 > -t.percent && d*10 < t.percent {
		return // setting it stops the process for a moment
	}
	t.percent = p
	debug.SetGCPercent(p)
}

// heapPercent is how much a heap may grow, of which so many octets live.
func heapPercent(live uint64) int {
	const most = heapFloor / goFloor * goPercent // which makes Go's floor ours
	if live >= heapFloor/2 {
		return goPercent
	}
	if live == 0 {
		return most
	}
	return int(min(most, (heapFloor-live)*goPercent/live))
}

// releaseHeap gives memory that is not used back to the system. That is a
// collection of its own, after which nothing is left to give.
func releaseHeap() {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/free:bytes"}}
	metrics.Read(s)
	live, held := s[0].Value.Uint64(), s[1].Value.Uint64()+s[2].Value.Uint64()
	if held > live+max(heapSpare, live/4) {
		debug.FreeOSMemory()
	}
}
