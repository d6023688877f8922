// Package privsep starts, names and confines the processes. It owns the way in
// which one binary becomes many: spawning with a role, dropping identity,
// changing the root folder, system call filters, and the channel to the parent.
// It must never be reached by an octet from outside.
package privsep

import (
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
	// reload. A process works by the last; what is under way ends by the one it
	// began with.
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

	// Unprivileged is set when the daemon was started by an ordinary user:
	// nothing runs as anyone else.
	Unprivileged bool
}

// AnswerStats answers control's question for the counters of this process.
func (e *Env) AnswerStats(r *ipc.Request) {
	var s imsg.Stats
	for name, v := range e.Stat.All() {
		s.Values = append(s.Values, imsg.Stat{Name: name, Value: v})
	}
	r.Reply(&s, nil)
}
