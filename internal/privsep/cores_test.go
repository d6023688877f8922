package privsep

import (
	"runtime"
	"testing"

	"smtpd/internal/imsg"
)

func TestCores(t *testing.T) {
	half := max(1, runtime.NumCPU()/2)
	for role, want := range map[imsg.Role]int{imsg.Scheduler: 1, imsg.Deliver: 1, imsg.Queue: half, imsg.SMTP: half,
		imsg.MDA: half, imsg.Parent: half, imsg.Lookup: 0, imsg.Keys: 0, imsg.MTA: 0} {
		if got := cores(role); got != want {
			t.Errorf("%s: got %d; want %d", role, got, want)
		}
	}
}
