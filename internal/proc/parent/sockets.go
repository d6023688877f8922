package parent

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"syscall"

	"smtpd/internal/config"
	"smtpd/internal/imsg"
)

// sockets are the listening sockets. They stay open here while their users are
// replaced, so that clients wait in the backlog instead of being refused.
type sockets struct {
	path    string // of the control socket
	control *net.UnixListener
	smtp    map[netip.AddrPort]*net.TCPListener
	missing map[netip.AddrPort]bool // wanted, but no interface has the address yet
	fresh   []netip.AddrPort        // of these, the last to come
	given   *inherited
}

// staging are the sockets of a configuration that is on its way: those that are
// not open yet, and those that cannot be as long as no interface has their
// address.
type staging struct {
	opened  map[netip.AddrPort]*net.TCPListener
	missing map[netip.AddrPort]bool
}

// close gives them up.
func (st *staging) close() {
	for _, ln := range st.opened {
		ln.Close()
	}
}

// openSockets opens all of them, or none.
func openSockets(o Options) (*sockets, error) {
	s := &sockets{path: o.Socket, smtp: map[netip.AddrPort]*net.TCPListener{}, given: inherit(o.Sockets)}
	var err error
	if s.control = s.given.control(); s.control == nil {
		if s.control, err = openControl(o); err != nil {
			return nil, err
		}
	}
	st, err := s.stage(o.Config)
	if err != nil {
		s.close()
		return nil, err
	}
	s.adopt(st)
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

// stage opens what conf asks for and is not open. On an error nothing is left
// open. An address that no interface has is waited for: networks come up when
// they like.
func (s *sockets) stage(conf *config.Config) (*staging, error) {
	st := &staging{opened: map[netip.AddrPort]*net.TCPListener{}, missing: map[netip.AddrPort]bool{}}
	for _, l := range conf.Listeners {
		if s.smtp[l.Addr] != nil || st.opened[l.Addr] != nil {
			continue
		}
		ln, err := s.open(l)
		switch {
		case errors.Is(err, syscall.EADDRNOTAVAIL):
			st.missing[l.Addr] = true
		case err != nil:
			st.close()
			return nil, fmt.Errorf("listen on %s: %w", l.Addr, cause(err))
		default:
			st.opened[l.Addr] = ln
		}
	}
	return st, nil
}

// open opens the socket of a listener, or takes the one that the service
// manager has opened for it.
func (s *sockets) open(l *config.Listener) (*net.TCPListener, error) {
	if ln, err := s.given.take(l); ln != nil || err != nil {
		return ln, err
	}
	return listen(l.Addr)
}

// adopt takes what was staged over. What is no longer wanted stays until retire.
func (s *sockets) adopt(st *staging) {
	maps.Copy(s.smtp, st.opened)
	s.fresh = nil
	for a := range st.missing {
		if !s.missing[a] {
			s.fresh = append(s.fresh, a)
		}
	}
	s.missing = st.missing
}

// retire closes what conf no longer asks for.
func (s *sockets) retire(conf *config.Config) {
	wanted := map[netip.AddrPort]bool{}
	for _, l := range conf.Listeners {
		wanted[l.Addr] = true
	}
	for a, ln := range s.smtp {
		if !wanted[a] {
			ln.Close()
			delete(s.smtp, a)
		}
	}
}

// retry opens what waits for its address and can be had now. Another error than
// that nobody has the address is told once, by taking it off the list.
func (s *sockets) retry(conf *config.Config) (opened []netip.AddrPort, errs []error) {
	for _, l := range conf.Listeners {
		if !s.missing[l.Addr] {
			continue
		}
		ln, err := s.open(l)
		if errors.Is(err, syscall.EADDRNOTAVAIL) {
			continue
		}
		delete(s.missing, l.Addr)
		if err != nil {
			errs = append(errs, fmt.Errorf("listen on %s: %w", l.Addr, cause(err)))
			continue
		}
		s.smtp[l.Addr] = ln
		opened = append(opened, l.Addr)
	}
	return opened, errs
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

// send gives smtp, or control, copies of the sockets that conf asks for.
func (s *sockets) send(c *child, conf *config.Config) {
	switch c.role {
	case imsg.Control:
		if f, err := s.control.File(); err == nil {
			_ = c.link.Send(&imsg.ListenSocket{Last: true}, f)
		}
	case imsg.SMTP:
		for _, l := range conf.Listeners {
			ln := s.smtp[l.Addr]
			if ln == nil {
				continue
			}
			if f, err := ln.File(); err == nil {
				_ = c.link.Send(&imsg.ListenSocket{Addr: l.Addr.String()}, f)
			}
		}
		_ = c.link.Send(&imsg.ListenSocket{Last: true}, nil)
	}
}

func (s *sockets) close() {
	for _, ln := range s.smtp {
		ln.Close()
	}
	s.control.Close() // removes its file as well, unless it was given to us
	s.given.close()
}
