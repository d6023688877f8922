package parent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"sync"
	"time"

	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/privsep"
	"smtpd/mda"
)

// placeTime bounds the wait for a place. mda keeps to the limit by what it knows:
// a worker that it let go of may take a moment to end, one of an mda that died
// the time that commands have to tidy up.
const placeTime = 20 * time.Second

// mailSpool is the folder of the system mailboxes.
const mailSpool = "/var/mail"

// workers are the delivery processes. It is safe for concurrent use.
type workers struct {
	p       *parent
	mu      sync.Mutex
	running map[*exec.Cmd]struct{}
	ended   chan struct{} // closed when one has ended, and made anew
	waiting int           // starts that wait for that
	max     int
	closed  bool
}

// allow sets how many there may be at a time.
func (w *workers) allow(max int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.max = max
	w.wake()
}

// wake has those that wait look again. The lock is held.
func (w *workers) wake() {
	close(w.ended)
	w.ended = make(chan struct{})
}

func newWorkers(p *parent) *workers {
	return &workers{p: p, running: map[*exec.Cmd]struct{}{}, ended: make(chan struct{})}
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
	if err := w.place(); err != nil {
		return nil, err
	}
	stderr, logged, err := w.p.childOutput(imsg.Deliver)
	if err != nil {
		return nil, err
	}
	defer stderr.close()
	b := privsep.Boot{Unprivileged: o.Unprivileged, Store: m.Store, Severity: w.p.asBoot(imsg.MDA).Severity, JSONLog: w.p.asBoot(imsg.MDA).JSONLog}
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
		w.wake()
		w.mu.Unlock()
	})
	return near, nil
}

// place waits until there is a place for one more. The lock is held, but for the
// wait.
func (w *workers) place() error {
	ctx, cancel := context.WithTimeout(w.p.ctx, placeTime)
	defer cancel()
	for w.closed || len(w.running) >= w.max {
		if w.closed || w.waiting >= w.max || ctx.Err() != nil {
			return errors.New("too many delivery processes")
		}
		ended := w.ended
		w.waiting++
		w.mu.Unlock()
		select {
		case <-ended:
		case <-ctx.Done():
		}
		w.mu.Lock()
		w.waiting--
	}
	return nil
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
	w.wake()
	for cmd := range w.running {
		_ = cmd.Process.Kill()
	}
}
