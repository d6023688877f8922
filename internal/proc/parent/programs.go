package parent

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	osuser "os/user"
	"strconv"
	"sync"
	"syscall"

	"smtpd/internal/accounts"
	"smtpd/internal/config"
	"smtpd/internal/filter"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/table"
)

// programs are the filter programs that run as another user or elsewhere than
// in /; lookup starts the others by itself. It is safe for concurrent use.
type programs struct {
	p       *parent
	mu      sync.Mutex
	running map[programKey]*exec.Cmd
	closed  bool
}

// programKey names a program: sessions of an older configuration may need
// another than those of the present one.
type programKey struct {
	proc       string
	generation uint64
}

// start brings up the program of a processor; c is nil when there is none of
// that name.
func (g *programs) start(r *ipc.Request, c *config.Proc, generation uint64) {
	if c == nil {
		r.Reply(&imsg.FilterStarted{Error: "no such processor"}, nil)
		return
	}
	g.p.tasks.Go(func() {
		channel, err := g.spawn(c, programKey{c.Name, generation})
		if err != nil {
			r.Reply(&imsg.FilterStarted{Error: err.Error()}, nil)
			return
		}
		r.Reply(&imsg.FilterStarted{}, channel)
	})
}

func (g *programs) spawn(c *config.Proc, key programKey) (*os.File, error) {
	if g.p.o.Unprivileged {
		return nil, errors.New("running unprivileged: a filter cannot change identity")
	}
	cred, err := g.credential(c)
	if err != nil {
		return nil, err
	}
	near, far, err := ipc.Socketpair()
	if err != nil {
		return nil, err
	}
	defer far.Close()
	cmd := exec.Command("/bin/sh", "-c", "exec "+filter.Command(c.Chroot, c.Command, table.LibexecDirs()))
	cmd.Dir, cmd.Stdin, cmd.Stdout = "/", far, far
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: cred, Chroot: c.Chroot}
	says, err := cmd.StderrPipe()
	if err == nil {
		err = g.run(key, cmd)
	}
	if err != nil {
		near.Close()
		return nil, fmt.Errorf("start %s: %w", c.Name, err)
	}
	g.p.tasks.Go(func() {
		filter.Listen(says, func(text string) { g.p.log.Warn(c.Name + ": " + text) })
		g.mu.Lock()
		if g.running[key] == cmd {
			delete(g.running, key) // before its number can be another's
		}
		g.mu.Unlock()
		_ = cmd.Wait() // lookup sees the end of the channel and judges by that
	})
	return near, nil
}

// run starts cmd and ends what ran for the processor before.
func (g *programs) run(key programKey, cmd *exec.Cmd) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return errors.New("shutting down")
	}
	if old := g.running[key]; old != nil {
		_ = syscall.Kill(-old.Process.Pid, syscall.SIGKILL) // not waited for yet, so the number is its own
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	g.running[key] = cmd
	return nil
}

// credential is who the program runs as: the daemon's user unless the
// configuration says otherwise.
func (g *programs) credential(c *config.Proc) (*syscall.Credential, error) {
	uid, gid := uint32(g.p.o.Daemon.UID), uint32(g.p.o.Daemon.GID)
	if c.User != "" {
		u, err := accounts.Local(c.User)
		if err != nil {
			return nil, err
		}
		if !u.Found {
			return nil, fmt.Errorf("no user %s", c.User)
		}
		uid, gid = u.UID, u.GID
	}
	if c.Group != "" {
		group, err := osuser.LookupGroup(c.Group)
		if err != nil {
			return nil, fmt.Errorf("group: %w", err)
		}
		n, err := strconv.ParseUint(group.Gid, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("group %s: %w", c.Group, err)
		}
		gid = uint32(n)
	}
	return &syscall.Credential{Uid: uid, Gid: gid, Groups: []uint32{gid}}, nil
}

func (g *programs) killAll() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	for _, cmd := range g.running {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // not waited for yet, so the number is its own
	}
}
