// Package privsep starts, names and confines the processes. It owns the way in
// which one binary becomes many: spawning with a role, dropping identity,
// changing the root folder, system call filters, and the channel to the parent.
// It must never be reached by an octet from outside.
package privsep

import (
	"sync/atomic"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/log"
	"smtpd/internal/stat"
)

// Env is what every process is given besides its peers: the same for all, and
// all that there is. A process's Run takes it, its Peers and a context that
// ends when the process shall finish.
type Env struct {
	Role imsg.Role
	Log  *log.Logger
	Stat *stat.Set
	Now  func() time.Time

	// Config delivers the configuration: the first at once, another after each
	// reload that every process has said it can work by. A process works by the
	// last, and says so with Works; what is under way ends by the one it began with.
	Config <-chan *config.Config

	// Switches delivers what the operator switches, the first at once. Verbose
	// and Trace have been applied to Log already.
	Switches <-chan *imsg.Switches

	// Sockets delivers listening sockets: to smtp, and to control. Each belongs
	// to the receiver.
	Sockets <-chan Socket

	// Parent is the channel to the parent, for calls only; what the parent says
	// comes through the fields above.
	Parent *ipc.Link

	// Ready tells the parent that the process works now. Call it once.
	Ready func()

	// Applied is how Works tells the parent; it may be nil.
	Applied func(*config.Config)

	// Unprivileged is set when the daemon was started by an ordinary user:
	// nothing runs as anyone else.
	Unprivileged bool

	// Cores is for work that computes for a while; nil works.
	Cores *Cores

	prepare atomic.Pointer[Prepare]
}

// Prepare is asked, at a reload and before anybody uses the new configuration,
// whether the process can work by it; what it makes ready for that, abort takes
// back. It runs on a goroutine of its own, one at a time.
type Prepare func(*config.Config) (abort func(), err error)

// OnPrepare sets what is asked before a reload. Call it before Ready; without it
// every configuration will do.
func (e *Env) OnPrepare(f Prepare) { e.prepare.Store(&f) }

// Works tells the parent that the process works by conf now.
func (e *Env) Works(conf *config.Config) {
	if e.Applied != nil {
		e.Applied(conf)
	}
}

// AnswerStats answers control's question for the counters of this process.
func (e *Env) AnswerStats(r *ipc.Request) {
	var s imsg.Stats
	for name, v := range e.Stat.All() {
		s.Values = append(s.Values, imsg.Stat{Name: name, Value: v})
	}
	r.Reply(&s, nil)
}
