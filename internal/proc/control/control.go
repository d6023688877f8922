// Package control is the process that answers smtpctl: it takes the control
// socket, knows who asks, and turns each request into imsgs to the processes
// that can answer. It owns the connections on that socket, one goroutine each,
// and no other state. It must never touch the spool, and never let a user do
// more than open a session with the local listener, unless he is root or, where
// the daemon runs unprivileged, the one who started it.
package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/ctl"
	"smtpd/internal/ipc"
	"smtpd/internal/privsep"
)

// Peers are the processes that control asks.
type Peers struct{ Keys, Lookup, SMTP, Queue, Scheduler, MTA, MDA *ipc.Link }

func (p *Peers) all() []*ipc.Link {
	return []*ipc.Link{p.Keys, p.Lookup, p.SMTP, p.Queue, p.Scheduler, p.MTA, p.MDA}
}

// Bounds. Ours.
const (
	// maxUserConns bounds the connections of all ordinary users together;
	// administrators have their own places, so nobody can lock them out.
	maxUserConns = 1024
	// idleTimeout ends a connection on which nothing is asked.
	idleTimeout = time.Minute
	// writeTimeout is for a reader that stalls: a listing in a pager. Only an
	// administrator can make control wait so long, and it costs one goroutine.
	writeTimeout = time.Hour
	// acceptPause is the rest after accept failed for want of descriptors.
	acceptPause = 100 * time.Millisecond
)

// server is the state of the process.
type server struct {
	env     *privsep.Env
	peers   Peers
	started atomic.Pointer[time.Time] // of the daemon
	self    uint32                    // our user
	conf    atomic.Pointer[config.Config]
	wg      sync.WaitGroup // accept loops and connections

	mu    sync.Mutex
	users int            // connections of ordinary users
	conns map[uint32]int // connections by user
}

// Run serves the control socket until ctx ends, then waits for the connections
// that are open, which are closed.
func Run(ctx context.Context, env *privsep.Env, p Peers) error {
	s := &server{env: env, peers: p, self: uint32(os.Getuid()), conns: map[uint32]int{}}
	now := env.Now()
	s.started.Store(&now)
	env.Stat.Set("control.session", 0)
	for _, l := range p.all() {
		l.Serve(func(r *ipc.Request) { closeFile(r.File) }, nil, nil) // nobody may ask control
	}
	var ln *net.UnixListener
	defer func() {
		if ln != nil {
			ln.Close()
		}
		s.wg.Wait()
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case conf := <-env.Config:
			s.conf.Store(conf)
			env.Works(conf)
		case sw := <-env.Switches: // Log follows them by itself
			if !sw.Started.IsZero() {
				s.started.Store(&sw.Started)
			}
		case sock := <-env.Sockets:
			next, err := listener(sock)
			if err != nil {
				return err
			}
			if next == nil {
				continue
			}
			if ln != nil {
				ln.Close()
			}
			ln = next
			s.wg.Go(func() { s.accept(ctx, next) })
		}
		if ln != nil && s.conf.Load() != nil {
			env.Ready()
		}
	}
}

// listener makes the control socket ready; nil: it is some other socket.
func listener(sock privsep.Socket) (*net.UnixListener, error) {
	defer closeFile(sock.File)
	if sock.Addr != "" || sock.File == nil {
		return nil, nil
	}
	l, err := net.FileListener(sock.File)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		l.Close()
		return nil, errors.New("control socket: not a unix socket")
	}
	u.SetUnlinkOnClose(false) // the name belongs to the parent
	return u, nil
}

func (s *server) accept(ctx context.Context, ln *net.UnixListener) {
	for {
		u, err := ln.AcceptUnix()
		switch {
		case err == nil:
			s.wg.Go(func() { s.connection(ctx, u) })
		case errors.Is(err, net.ErrClosed):
			return
		default:
			s.env.Log.Warn(fmt.Sprintf("warn: control: accept: %v", err))
			select {
			case <-ctx.Done():
				return
			case <-time.After(acceptPause):
			}
		}
	}
}

// connection serves one client to its end.
func (s *server) connection(ctx context.Context, u *net.UnixConn) {
	stop := context.AfterFunc(ctx, func() { u.Close() })
	defer stop()
	c := ctl.NewServer(u)
	defer c.Close()
	c.ReadTimeout, c.WriteTimeout = idleTimeout, idleTimeout
	uid, err := ctl.PeerUID(u)
	if err != nil {
		s.env.Log.Warn(fmt.Sprintf("warn: control: %v", err))
		return
	}
	if !s.enter(uid) {
		s.env.Log.Warn(fmt.Sprintf("warn: too many connections to control socket from user with uid %d", uid))
		_ = errors.Join(c.Send(ctl.KindHello, ctl.Protocol), c.Send(ctl.KindFail, ctl.ReasonBusy), c.Flush())
		return
	}
	defer s.leave(uid)
	if err := s.converse(ctx, c, uid); err != nil && !errors.Is(err, io.EOF) {
		s.env.Log.Debug(fmt.Sprintf("debug: control: uid %d: %v", uid, err))
	}
}

// enter counts a connection, unless the user has too many already.
func (s *server) enter(uid uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	ordinary := !s.trusted(uid)
	if s.conns[uid] >= ctl.MaxConnPerUID || ordinary && s.users >= maxUserConns {
		return false
	}
	s.conns[uid]++
	if ordinary {
		s.users++
	}
	s.env.Stat.Add("control.session", 1)
	return true
}

func (s *server) leave(uid uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns[uid]--; s.conns[uid] == 0 {
		delete(s.conns, uid)
	}
	if !s.trusted(uid) {
		s.users--
	}
	s.env.Stat.Add("control.session", -1)
}

// trusted reports whether the user may ask for everything.
func (s *server) trusted(uid uint32) bool {
	return uid == 0 || s.env.Unprivileged && uid == s.self
}

// converse is Hello, then requests until the client leaves.
func (s *server) converse(ctx context.Context, c *ctl.Conn, uid uint32) error {
	f, err := c.Receive()
	if errors.Is(err, ctl.ErrFrame) {
		// Another protocol: the answer lets a client of ours tell what is wrong.
		return errors.Join(err, c.Send(ctl.KindHello, ctl.Protocol), c.Flush())
	}
	if err != nil {
		return err
	}
	if err := errors.Join(c.Send(ctl.KindHello, ctl.Protocol), c.Flush()); err != nil {
		return err
	}
	if f.Kind != ctl.KindHello || f.Arg(0) != ctl.Protocol {
		return ctl.ErrIncompatible
	}
	if s.trusted(uid) {
		c.WriteTimeout = writeTimeout
	}
	for {
		f, err := c.Receive()
		if err != nil {
			return err
		}
		if f.Kind != ctl.KindRequest {
			return ctl.ErrFrame
		}
		if err := s.request(ctx, c, uid, f.Fields); err != nil {
			return err
		}
	}
}

func closeFile(f *os.File) {
	if f != nil {
		f.Close()
	}
}
