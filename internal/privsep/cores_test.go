package privsep

import (
	"runtime"
	"testing"

	"smtpd/internal/imsg"
)

func TestCores(t *testing.T) {
	half := max(1, runtime.NumCPU()/2)
	for role, want := range map[imsg.Role]int{imsg.Scheduler: 1, imsg.Deliver: 1, imsg.Queue: half, imsg.SMTP: half,
		imsg.MDA: half, imsg.Parent: half, imsg.Lookup: half, imsg.Keys: 0, imsg.MTA: 0} {
		if got := cores(role); got != want {
			t.Errorf("%s: got %d; want %d", role, got, want)
		}
	}
}

func TestAllCores(t *testing.T) {
	all := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(all)
	if all < 2 {
		t.Skip("one core")
	}
	expect := func(when string, want int) {
		t.Helper()
		if got := runtime.GOMAXPROCS(0); got != want {
			t.Errorf("%s: got %d; want %d", when, got, want)
		}
	}
	c := UseCores()
	few := cores(imsg.Parent)
	expect("at first", few)
	c.All(func() {
		expect("at work", all)
		c.All(func() { expect("at more", all) })
		expect("at work still", all)
	})
	expect("afterwards", few)
	var none *Cores
	done := false
	if none.All(func() { done = true }); !done {
		t.Error("nil does nothing")
	}
}
