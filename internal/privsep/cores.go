package privsep

import (
	"runtime"
	"sync"

	"smtpd/internal/imsg"
)

// cores is how many cores a process uses at a time; 0: all. Ours: mail goes from
// hand to hand between processes, each with little to do; on a machine with two
// cores a fifth of the time of accepting went into second threads that looked
// for work, and a delivery worker, of which there are many, spent more on them
// than on its mail. Processes that sign keep all cores; those that compute now
// and then have them meanwhile, see Cores. It is told before a process starts:
// to change it later costs more.
func cores(role imsg.Role) int {
	switch role {
	case imsg.Scheduler, imsg.Control, imsg.Deliver:
		return 1
	case imsg.Parent, imsg.Queue, imsg.SMTP, imsg.MDA, imsg.Lookup:
		return max(1, runtime.NumCPU()/2)
	}
	return 0
}

// UseCores is that for the parent, which nobody starts.
func UseCores() *Cores {
	runtime.GOMAXPROCS(cores(imsg.Parent))
	return newCores()
}

// Cores are the cores that this process uses at a time: few, or all while it
// computes. A nil one leaves them as they are.
type Cores struct {
	few int

	mu    sync.Mutex
	works int // that compute
}

// newCores takes what the process has now for few.
func newCores() *Cores { return &Cores{few: runtime.GOMAXPROCS(0)} }

// All does work that computes for a while, such as checking a password, with all
// cores: others would wait for it. To change their number stops the process for
// a moment.
func (c *Cores) All(work func()) {
	if c != nil && c.few < runtime.NumCPU() {
		c.count(1)
		defer c.count(-1)
	}
	work()
}

func (c *Cores) count(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.works
	c.works += n
	switch {
	case before == 0:
		runtime.SetDefaultGOMAXPROCS()
	case c.works == 0:
		runtime.GOMAXPROCS(c.few)
	}
}
