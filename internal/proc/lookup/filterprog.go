package lookup

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/filter"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/mail"
	"smtpd/internal/privsep"
	"smtpd/table"
)

// filterGrace is how long a filter program has from the end of its input to the
// signal. Ours.
const filterGrace = 2 * time.Second

// program is a running filter program: one socket is its input and output, its
// error output goes to the log line by line.
type program struct {
	conn net.Conn
	cmd  *exec.Cmd
	said sync.WaitGroup // its error output has been read
	over chan struct{}  // closed once it has been
}

// distant is a filter program that the parent started for us.
type distant struct{ conn net.Conn }

// Conn implements filter.Process.
func (d distant) Conn() net.Conn { return d.conn }

// End implements filter.Process: the parent sees to the rest.
func (d distant) End() { d.conn.Close() }

// startFilter starts the program of a processor: by way of the parent when it
// is to run as somebody else.
func (s *server) startFilter(ctx context.Context, p *config.Proc, generation uint64) (filter.Process, error) {
	if !s.env.Unprivileged && (p.User != "" || p.Group != "" || p.Chroot != "") {
		return s.startDistant(ctx, p, generation)
	}
	return s.startNear(p)
}

func (s *server) startDistant(ctx context.Context, p *config.Proc, generation uint64) (filter.Process, error) {
	a, f, err := ipc.AskFile[*imsg.FilterStarted](ctx, s.env.Parent, &imsg.FilterStart{Proc: p.Name, Generation: generation})
	switch {
	case err != nil:
		return nil, fmt.Errorf("start: %w", err)
	case a.Error != "" || f == nil:
		if f != nil {
			f.Close()
		}
		return nil, errors.New(mail.Clean(a.Error, 256))
	}
	conn, err := filter.Socket(f)
	if err != nil {
		return nil, err
	}
	return distant{conn}, nil
}

func (s *server) startNear(p *config.Proc) (filter.Process, error) {
	far, near, err := ipc.Socketpair()
	if err != nil {
		return nil, err
	}
	defer far.Close()
	conn, err := filter.Socket(near)
	if err != nil {
		return nil, err
	}
	g := &program{conn: conn, over: make(chan struct{})}
	g.cmd = exec.Command("/bin/sh", "-c", "exec "+filter.Command("", p.Command, table.LibexecDirs()))
	g.cmd.Dir, g.cmd.Stdin, g.cmd.Stdout = "/", far, far
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stderr, err := g.cmd.StderrPipe()
	if err == nil {
		err = privsep.ExactTime(g.cmd.Start)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("start: %w", err)
	}
	g.said.Go(func() {
		filter.Listen(stderr, func(text string) { s.env.Log.Warn(p.Name + ": " + text) })
		close(g.over)
	})
	return g, nil
}

// Conn implements filter.Process.
func (g *program) Conn() net.Conn { return g.conn }

// End implements filter.Process: first its input ends, then all that it started
// gets a signal.
func (g *program) End() {
	g.conn.Close()
	t := time.NewTimer(filterGrace)
	defer t.Stop()
	select {
	case <-g.over:
	case <-t.C:
	}
	_ = syscall.Kill(-g.cmd.Process.Pid, syscall.SIGKILL) // there may be nobody left
	g.said.Wait()
	_ = g.cmd.Wait() // how it ended says nothing that the log has not
}
