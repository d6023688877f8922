package privsep

import (
	"runtime"

	"smtpd/internal/imsg"
)

// cores is how many cores a process uses at a time; 0: all. Ours: mail goes from
// hand to hand between processes, each with little to do; on a machine with two
// cores a fifth of the time of accepting went into second threads that looked
// for work, and a delivery worker, of which there are many, spent more on them
// than on its mail. Processes that compute, above all those that check passwords
// and sign, keep all cores. It is told before a process starts: to change it
// later costs more.
func cores(role imsg.Role) int {
	switch role {
	case imsg.Scheduler, imsg.Control, imsg.Deliver:
		return 1
	case imsg.Parent, imsg.Queue, imsg.SMTP, imsg.MDA:
		return max(1, runtime.NumCPU()/2)
	}
	return 0
}

// UseCores is that for the parent, which nobody starts.
func UseCores() { runtime.GOMAXPROCS(cores(imsg.Parent)) }
