package parent

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"

	"smtpd/internal/config"
	"smtpd/internal/imsg"
)

// sockets are the listening sockets. They stay open here while their users are
// replaced, so that clients wait in the backlog instead of being refused.
type sockets struct {
	path    string // of the control socket
	control *net.UnixListener
	smtp    map[netip.AddrPort]*net.TCPListener
}

// openSockets opens all of them, or none.
func openSockets(o Options) (*sockets, error) {
	s := &sockets{path: o.Socket, smtp: map[netip.AddrPort]*net.TCPListener{}}
	var err error
	if s.control, err = openControl(o); err != nil {
		return nil, err
	}
	if err := s.update(o.Config); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// openControl makes the control socket, in place of one that nobody listens
// on any more.
func openControl(o Options) (*net.UnixListener, error) {
	if conn, err := net.Dial("unix", o.Socket); err == nil {
		conn.Close()
		return nil, fmt.Errorf("control socket %s: another smtpd is listening already", o.Socket)
	}
	if st, err := os.Lstat(o.Socket); err == nil && st.Mode().Type() != fs.ModeSocket {
		return nil, fmt.Errorf("control socket %s: there is a file of that name that is no socket", o.Socket)
	}
	if err := os.Remove(o.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: o.Socket, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	mode := fs.FileMode(0o666) // anybody may submit mail; control checks who asks for more
	if o.Unprivileged {
		mode = 0o600
	}
	if err := os.Chmod(o.Socket, mode); err != nil {
		ln.Close()
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return ln, nil
}

// update opens what conf asks for and is not open, and closes what it no longer
// asks for. On an error nothing has changed.
func (s *sockets) update(conf *config.Config) error {
	var opened []netip.AddrPort
	wanted := map[netip.AddrPort]bool{}
	for _, l := range conf.Listeners {
		wanted[l.Addr] = true
		if s.smtp[l.Addr] != nil {
			continue
		}
		ln, err := listen(l.Addr)
		if err != nil {
			for _, a := range opened {
				s.smtp[a].Close()
				delete(s.smtp, a)
			}
			return fmt.Errorf("listen on %s: %w", l.Addr, cause(err))
		}
		s.smtp[l.Addr] = ln
		opened = append(opened, l.Addr)
	}
	for a, ln := range s.smtp {
		if !wanted[a] {
			ln.Close()
			delete(s.smtp, a)
		}
	}
	return nil
}

func listen(a netip.AddrPort) (*net.TCPListener, error) {
	network := "tcp4"
	if a.Addr().Is6() {
		network = "tcp6"
	}
	return net.ListenTCP(network, net.TCPAddrFromAddrPort(a))
}

// cause is the system's reason, without what net repeats of the address.
func cause(err error) error {
	if sys, ok := errors.AsType[*os.SyscallError](err); ok {
		return sys
	}
	return err
}

// send gives smtp, or control, copies of its sockets.
func (s *sockets) send(c *child) {
	switch c.role {
	case imsg.Control:
		if f, err := s.control.File(); err == nil {
			_ = c.link.Send(&imsg.ListenSocket{Last: true}, f)
		}
	case imsg.SMTP:
		left := len(s.smtp)
		if left == 0 {
			_ = c.link.Send(&imsg.ListenSocket{Last: true}, nil)
		}
		for a, ln := range s.smtp {
			left--
			if f, err := ln.File(); err == nil {
				_ = c.link.Send(&imsg.ListenSocket{Addr: a.String(), Last: left == 0}, f)
			}
		}
	}
}

func (s *sockets) close() {
	for _, ln := range s.smtp {
		ln.Close()
	}
	s.control.Close() // removes its file as well
}
