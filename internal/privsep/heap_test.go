package privsep

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"
)

func TestHeapPercent(t *testing.T) {
	tests := map[string]struct {
		live uint64
		want int
	}{
		"nothing yet":     {0, 400},
		"little":          {1 << 20, 400},
		"some":            {4 << 20, 300},
		"half the floor":  {8 << 20, 100},
		"a large heap":    {1 << 30, 100},
		"below the floor": {6 << 20, 166},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if got := heapPercent(tc.live); got != tc.want {
				t.Errorf("got %d; want %d", got, tc.want)
			}
			if grown := tc.live + tc.live*uint64(heapPercent(tc.live))/100; grown > max(heapFloor, 2*tc.live) {
				t.Errorf("grows to %d", grown)
			}
		})
	}
}

// A heap that grows is collected by Go's own rule again, and one that shrinks
// by ours.
func TestTuneHeap(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(goPercent))
	tuneHeap()
	percent := func() uint64 {
		s := []metrics.Sample{{Name: "/gc/gogc:percent"}}
		metrics.Read(s)
		return s[0].Value.Uint64()
	}
	wait := func(want uint64) {
		t.Helper()
		for limit := time.Now().Add(20 * time.Second); percent() != want; runtime.GC() {
			if time.Now().After(limit) {
				t.Fatalf("got %d; want %d", percent(), want)
			}
		}
	}
	keep := make([]byte, 2*heapFloor)
	wait(goPercent)
	runtime.KeepAlive(keep)
	keep = nil
	for limit := time.Now().Add(20 * time.Second); percent() == goPercent; runtime.GC() {
		if time.Now().After(limit) {
			t.Fatal("a small heap is still collected as a large one")
		}
	}
}

// What a burst took is given back.
func TestReleaseHeap(t *testing.T) {
	held := func() uint64 {
		s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/free:bytes"}}
		metrics.Read(s)
		return s[0].Value.Uint64() + s[1].Value.Uint64()
	}
	keep := make([][]byte, 64)
	for i := range keep {
		keep[i] = make([]byte, 1<<20)
	}
	before := held()
	runtime.KeepAlive(keep)
	runtime.GC() // the last one may have seen all of it alive
	releaseHeap()
	if after := held(); after+48<<20 > before {
		t.Errorf("%d octets before, %d after", before, after)
	}
}
