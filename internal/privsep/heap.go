package privsep

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
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
)

// tuneHeap keeps the heap collected as Go does, but not below heapFloor. Call it
// once.
func tuneHeap() {
	// What Go's rule counts as living: stacks and globals as well.
	t := &heapTuner{sample: []metrics.Sample{
		{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}, {Name: "/gc/scan/globals:bytes"}}}
	t.set(0)
	t.arm()
}

// heapTuner looks at the heap after each collection: on the runtime's own
// goroutine, one call at a time.
type heapTuner struct {
	sample  []metrics.Sample
	percent int
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
