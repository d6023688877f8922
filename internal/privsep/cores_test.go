package privsep

import (
	"runtime"
	"testing"

	"smtpd/internal/imsg"
)

func TestUseCores(t *testing.T) {
	all := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(all)
	half := max(1, runtime.NumCPU()/2)
	for role, want := range map[imsg.Role]int{imsg.Scheduler: 1, imsg.Queue: half, imsg.SMTP: half,
		imsg.Lookup: all, imsg.Keys: all, imsg.MTA: all} {
		runtime.GOMAXPROCS(all)
		useCores(role)
		if got := runtime.GOMAXPROCS(0); got != want {
			t.Errorf("%s: got %d; want %d", role, got, want)
		}
	}
}
