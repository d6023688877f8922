package parent

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"smtpd/internal/config"
)

// GivenSocket is a listening socket that the service manager has opened, with
// the name that its unit gives it (sd_listen_fds(3)).
type GivenSocket struct {
	Name string
	File *os.File
}

// inherited are the listening sockets that came with the start. They stay open
// here to the end, whatever the configuration wants: there is no getting them a
// second time. The zero value has none.
type inherited struct {
	tcp  []givenTCP
	unix *os.File // the control socket; nil: none
	odd  []error  // what could not be used
}

type givenTCP struct {
	name string
	addr netip.AddrPort
	file *os.File
	used bool
	by   netip.AddrPort // the listener that it serves, or served
}

// inherit takes the sockets over.
func inherit(given []GivenSocket) *inherited {
	in := &inherited{}
	for _, g := range given {
		ln, err := net.FileListener(g.File)
		if err != nil {
			in.odd = append(in.odd, fmt.Errorf("socket %s of the service manager: %w", g.Name, err))
			g.File.Close()
			continue
		}
		switch l := ln.(type) {
		case *net.TCPListener:
			a := l.Addr().(*net.TCPAddr).AddrPort()
			in.tcp = append(in.tcp, givenTCP{name: g.Name, file: g.File,
				addr: netip.AddrPortFrom(a.Addr().Unmap(), a.Port())})
		case *net.UnixListener:
			l.SetUnlinkOnClose(false)
			in.unix = g.File
		default:
			in.odd = append(in.odd, fmt.Errorf("socket %s of the service manager: neither TCP nor a control socket", g.Name))
			g.File.Close()
		}
		ln.Close() // a copy
	}
	return in
}

// control is the control socket, or nil.
func (in *inherited) control() *net.UnixListener {
	if in.unix == nil {
		return nil
	}
	ln, err := net.FileListener(in.unix)
	if err != nil {
		return nil
	}
	u, ok := ln.(*net.UnixListener)
	if !ok {
		ln.Close()
		return nil
	}
	u.SetUnlinkOnClose(false)
	return u
}

// take is the socket for a listener, nil when there is none: the one with its
// address and port, else the one whose name is its tag, wherever that listens.
func (in *inherited) take(l *config.Listener) (*net.TCPListener, error) {
	g := in.find(l)
	if g == nil {
		return nil, nil
	}
	ln, err := net.FileListener(g.file)
	if err != nil {
		return nil, err
	}
	g.used, g.by = true, l.Addr
	return ln.(*net.TCPListener), nil // it was one when it came
}

func (in *inherited) find(l *config.Listener) *givenTCP {
	for i := range in.tcp {
		if in.tcp[i].addr == l.Addr {
			return &in.tcp[i]
		}
	}
	for i := range in.tcp { // [::]:25 usually takes IPv4 as well
		g := &in.tcp[i]
		if g.addr.Addr().IsUnspecified() && l.Addr.Addr().IsUnspecified() && g.addr.Port() == l.Addr.Port() {
			return g
		}
	}
	for i := range in.tcp {
		if g := &in.tcp[i]; l.Tag != "" && g.name == l.Tag && (!g.used || g.by == l.Addr) {
			return g
		}
	}
	return nil
}

// unused says what nobody listens on.
func (in *inherited) unused() (lines []string) {
	for _, err := range in.odd {
		lines = append(lines, err.Error())
	}
	for i := range in.tcp {
		if g := &in.tcp[i]; !g.used {
			lines = append(lines, fmt.Sprintf("socket %s of the service manager, %s: no listener of the configuration has this address, or this name as its tag",
				g.name, g.addr))
		}
	}
	return lines
}

func (in *inherited) close() {
	for _, g := range in.tcp {
		g.file.Close()
	}
	if in.unix != nil {
		in.unix.Close()
	}
}
