package smtp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/log"
	"smtpd/internal/privsep"
	engine "smtpd/internal/smtp"
)

// listener is one listening socket.
type listener struct {
	addr netip.AddrPort
	ln   *net.TCPListener
	last *engine.Config // once it is none of the configuration any more
	gone chan struct{}  // closed with the socket
}

// A listener that is to go waits so long for one more of those who are in its
// backlog, and so long for all of them. Ours.
const (
	drainTime  = 20 * time.Millisecond
	drainLimit = 500 * time.Millisecond
)

// acceptPause is the rest after accept failed for want of descriptors or
// memory. Ours.
const acceptPause = 100 * time.Millisecond

// addSocket begins to accept on a socket, unless one for its address is served
// already: the parent sends all of them again at each reload.
func (s *server) addSocket(sock privsep.Socket) error {
	if sock.File == nil {
		return nil
	}
	defer sock.File.Close()
	addr, err := netip.ParseAddrPort(sock.Addr)
	if err != nil {
		return fmt.Errorf("smtp: listening socket: %w", err)
	}
	s.mu.Lock()
	known := s.listeners[addr] != nil
	s.mu.Unlock()
	if known {
		return nil
	}
	ln, err := net.FileListener(sock.File)
	if err != nil {
		return fmt.Errorf("smtp: listening socket %s: %w", addr, err)
	}
	tcp, ok := ln.(*net.TCPListener)
	if !ok {
		ln.Close()
		return fmt.Errorf("smtp: listening socket %s: not TCP", addr)
	}
	l := &listener{addr: addr, ln: tcp, gone: make(chan struct{})}
	s.mu.Lock()
	s.listeners[addr] = l
	s.mu.Unlock()
	s.wg.Go(func() { s.accept(l) })
	return nil
}

// pause is what the operator switches.
func (s *server) pause(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.paused = on
	s.wakeListeners()
	s.cond.Broadcast()
}

// wakeListeners makes accept loops look at the state again.
func (s *server) wakeListeners() {
	for _, l := range s.listeners {
		l.ln.SetDeadline(time.Unix(1, 0))
	}
}

// mayAccept waits until connections are wanted; it reports false once l is
// none of ours any more. Meanwhile clients wait in the backlog.
func (s *server) mayAccept(l *listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if s.stopping || s.listeners[l.addr] != l {
			return false
		}
		if !s.paused && !s.full && s.byAddr[l.addr] != nil {
			l.ln.SetDeadline(time.Time{})
			return true
		}
		s.cond.Wait()
	}
}

// drain lets a listener that is not wanted any more finish, with the lock held:
// whoever has come before it was gone is served as it would have been.
func (s *server) drain(l *listener, last *engine.Config) {
	if last == nil || s.stopping {
		l.ln.Close()
		return
	}
	l.last = last
	s.gens.enter(generationOf(last))
	l.ln.SetDeadline(time.Now().Add(drainTime))
}

// drained takes what still comes until nothing does, and closes l.
func (s *server) drained(l *listener) {
	defer close(l.gone)
	defer l.ln.Close()
	s.mu.Lock()
	last := l.last
	s.mu.Unlock()
	if last == nil {
		return
	}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.gens.drop(generationOf(last)) {
			s.tellLookup()
		}
	}()
	for end := time.Now().Add(drainLimit); time.Now().Before(end); {
		l.ln.SetDeadline(time.Now().Add(drainTime))
		conn, err := l.ln.AcceptTCP()
		if err != nil {
			return
		}
		s.admit(conn, l)
	}
}

// accept takes connections until the socket is closed.
func (s *server) accept(l *listener) {
	defer s.drained(l)
	for s.mayAccept(l) {
		conn, err := l.ln.AcceptTCP()
		var timeout net.Error
		switch {
		case err == nil:
			s.admit(conn, l)
		case errors.Is(err, net.ErrClosed):
			return
		case errors.As(err, &timeout) && timeout.Timeout():
		default:
			s.env.Log.Warn("warn: smtp: accept: " + err.Error())
			rest(s.ctx, acceptPause)
		}
	}
}

// rest lets time pass, until ctx ends.
func rest(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// admit gives a new connection a session, or says why not and closes it.
func (s *server) admit(conn *net.TCPConn, l *listener) {
	addr, local := addrPort(conn.RemoteAddr()), addrPort(conn.LocalAddr())
	s.mu.Lock()
	c := s.configAt(l, local)
	refusal, counted := "", addr.Addr()
	switch {
	case c == nil:
		refusal = "421 4.3.2 Service not available"
	case s.wanted > 0 && len(s.sessions) >= s.wanted:
		refusal = "421 4.3.2 Too many connections, try again later"
	case c.Listener.ProxyV2:
		counted = netip.Addr{} // the session counts who is behind the proxy
	default:
		refusal = s.places.enter(counted, &c.SMTP, s.env.Now())
	}
	if refusal == "" {
		s.gens.enter(generationOf(c))
	}
	s.mu.Unlock()
	if refusal != "" {
		s.turnAway(conn, addr, refusal)
		return
	}
	sess := engine.New(c, conn, addr, local)
	s.enter(sess, generationOf(c), addr.Addr())
	s.start(sess, counted)
}

// configAt is what a connection to local, by way of l, is served by, with the
// lock held; nil: nothing. A socket of the service manager for [::] may take IPv4
// as well.
func (s *server) configAt(l *listener, local netip.AddrPort) *engine.Config {
	if l.addr.Addr().IsUnspecified() {
		any := netip.IPv6Unspecified()
		if local.Addr().Is4() {
			any = netip.IPv4Unspecified()
		}
		if c := s.byAddr[netip.AddrPortFrom(any, l.addr.Port())]; c != nil {
			return c
		}
	}
	if c := s.byAddr[l.addr]; c != nil {
		return c
	}
	return l.last
}

// turnAway says one line to a client that gets no session. It must not wait:
// nobody else is accepted meanwhile.
func (s *server) turnAway(conn *net.TCPConn, addr netip.AddrPort, reply string) {
	s.env.Stat.Add("smtp.session.refused", 1)
	s.env.Log.Info("smtp refused", slog.String("address", addr.Addr().String()), log.Quoted("result", reply))
	if err := conn.SetWriteDeadline(time.Now().Add(acceptPause)); err == nil {
		_, _ = conn.Write([]byte(reply + "\r\n")) // it fits the socket's buffer, or nobody reads it
	}
	conn.Close()
}

// addrPort is the address of a TCP end, IPv4 as such.
func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	p := t.AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

// maxRates bounds the addresses whose new connections are counted. Ours: when
// more come in one minute, the count starts anew.
const maxRates = 1 << 16

// places counts connections by where they come from. Loopback is not bounded:
// whoever is on this host has other ways.
type places struct {
	byAddr map[netip.Addr]int
	byNet  map[netip.Prefix]int // IPv6 /64
	minute int64
	rate   map[netip.Addr]int // new connections in this minute
}

func (p *places) init() {
	p.byAddr, p.byNet, p.rate = map[netip.Addr]int{}, map[netip.Prefix]int{}, map[netip.Addr]int{}
}

// enter counts a connection in; a reply means that it was not.
func (p *places) enter(a netip.Addr, c *config.SMTP, now time.Time) (refusal string) {
	if a.IsLoopback() {
		return ""
	}
	if minute := now.Unix() / 60; minute != p.minute || len(p.rate) >= maxRates {
		p.minute = minute
		clear(p.rate)
	}
	p.rate[a]++
	net64, is6 := slash64(a)
	switch {
	case c.MaxConnRate > 0 && p.rate[a] > c.MaxConnRate:
		return "421 4.7.0 Too many new connections from your address"
	case c.MaxSessionsPerAddr > 0 && p.byAddr[a] >= c.MaxSessionsPerAddr:
		return "421 4.7.0 Too many connections from your address"
	case is6 && c.MaxSessionsPerNet > 0 && p.byNet[net64] >= c.MaxSessionsPerNet:
		return "421 4.7.0 Too many connections from your network"
	}
	p.byAddr[a]++
	if is6 {
		p.byNet[net64]++
	}
	return ""
}

// leave counts a connection out.
func (p *places) leave(a netip.Addr) {
	if !a.IsValid() || a.IsLoopback() {
		return
	}
	if p.byAddr[a]--; p.byAddr[a] <= 0 {
		delete(p.byAddr, a)
	}
	if net64, is6 := slash64(a); is6 {
		if p.byNet[net64]--; p.byNet[net64] <= 0 {
			delete(p.byNet, net64)
		}
	}
}

func slash64(a netip.Addr) (netip.Prefix, bool) {
	if !a.Is6() {
		return netip.Prefix{}, false
	}
	p, err := a.WithZone("").Prefix(64)
	return p, err == nil
}
