package parent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"sync"

	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/privsep"
	"smtpd/mda"
)

// spareWorkers is how many delivery workers there may be beyond what the
// configuration allows: those that are on their way out. mda keeps to its limit;
// this holds when mda is not itself.
const spareWorkers = 100

// mailSpool is the folder of the system mailboxes.
const mailSpool = "/var/mail"

// workers are the delivery processes. It is safe for concurrent use.
type workers struct {
	p       *parent
	mu      sync.Mutex
	running map[*exec.Cmd]struct{}
	max     int
	closed  bool
}

// allow sets how many there may be at a time.
func (w *workers) allow(max int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.max = max
}

func newWorkers(p *parent) *workers {
	return &workers{p: p, running: map[*exec.Cmd]struct{}{}}
}

// start brings up a worker as the user that mda names and hands mda the channel
// to it.
func (w *workers) start(r *ipc.Request, m *imsg.DeliverStart) {
	channel, err := w.spawn(m)
	if err != nil {
		r.Reply(&imsg.DeliverStarted{Error: err.Error()}, nil)
		return
	}
	r.Reply(&imsg.DeliverStarted{}, channel)
}

func (w *workers) spawn(m *imsg.DeliverStart) (*os.File, error) {
	o := &w.p.o
	if err := mayDeliver(o, m); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || len(w.running) >= w.max+spareWorkers {
		return nil, errors.New("too many delivery processes")
	}
	stderr, logged, err := w.p.childOutput(imsg.Deliver)
	if err != nil {
		return nil, err
	}
	defer stderr.close()
	b := privsep.Boot{Unprivileged: o.Unprivileged, Severity: w.p.asBoot(imsg.MDA).Severity, JSONLog: w.p.asBoot(imsg.MDA).JSONLog}
	as := &privsep.As{UID: m.UID, GID: m.GID, Dir: m.Home}
	if gid, ok := mda.SpoolGroup(mailSpool); m.Mbox && ok {
		as.Extra = []uint32{uint32(gid)} // may make mailboxes and dot-locks there
	}
	cmd, near, err := privsep.Spawn(imsg.Deliver, b, as, stderr.w)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || m.Home == "" {
		// The home is missing or closed to its own user: the delivery may not need it.
		as.Dir = "/"
		cmd, near, err = privsep.Spawn(imsg.Deliver, b, as, stderr.w)
	}
	if err != nil {
		return nil, err
	}
	stderr.pid.set(cmd.Process.Pid)
	w.running[cmd] = struct{}{}
	w.p.tasks.Go(func() {
		_ = cmd.Wait() // mda sees the end of the channel and judges by that
		<-logged
		w.mu.Lock()
		delete(w.running, cmd)
		w.mu.Unlock()
	})
	return near, nil
}

// mayDeliver refuses what mda may never ask for, whatever its reason.
func mayDeliver(o *Options, m *imsg.DeliverStart) error {
	switch {
	case m.UID == 0:
		return fmt.Errorf("delivery as root is refused")
	case o.Unprivileged && int(m.UID) != os.Getuid():
		return fmt.Errorf("running unprivileged: cannot deliver as %s", m.User)
	case !o.Unprivileged && (int(m.UID) == o.Daemon.UID || int(m.UID) == o.QueueUser.UID):
		if m.User != "" && int(m.UID) == o.Daemon.UID {
			return nil // commands of aliases run as the daemon's user
		}
		return fmt.Errorf("delivery as the queue's user is refused")
	}
	return nil
}

func (w *workers) killAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	for cmd := range w.running {
		_ = cmd.Process.Kill()
	}
}
