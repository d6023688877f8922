package privsep

import (
	"runtime"

	"smtpd/internal/imsg"
)

// useCores bounds how many cores a process uses at a time. Ours: mail goes from
// hand to hand between processes, each with little to do; on a machine with two
// cores a fifth of the time of accepting went into second threads that looked
// for work. Processes that compute, above all those that check passwords and
// sign, keep all cores.
func useCores(role imsg.Role) {
	switch role {
	case imsg.Scheduler, imsg.Control:
		runtime.GOMAXPROCS(1)
	case imsg.Queue, imsg.SMTP:
		runtime.GOMAXPROCS(max(1, runtime.NumCPU()/2))
	}
}
