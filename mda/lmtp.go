package mda

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"smtpd/internal/mail"
)

const (
	mailLMTP = "mail.lmtp: "
	// lmtpPort is used when the destination names none. (24 is registered for
	// LMTP; the reference uses 25.)
	lmtpPort = "25"
	// maxStores bounds the idle connections kept. Ours: as many deliveries as mda
	// has made at a time, so that none of these closes what the next would need.
	maxStores = 32
	// storeIdle is how long a connection is kept for the next delivery. Ours:
	// well under what any store allows.
	storeIdle = 5 * time.Second
)

// lmtp hands the message to a store that speaks LMTP (RFC 2033).
func (d *Deliverer) lmtp(ctx context.Context, v *Delivery) error {
	dest, t, err := v.transaction()
	if err != nil {
		return err
	}
	if c := d.stores.take(dest); c != nil {
		err := c.deliver(ctx, t)
		if !errors.Is(err, errStale) {
			d.stores.put(dest, c, err)
			return lmtpFailure(err)
		}
		c.close()
	}
	c, err := d.dialLMTP(ctx, dest, v.Hello)
	if err != nil {
		return lmtpFailure(err)
	}
	err = c.deliver(ctx, t)
	d.stores.put(dest, c, err)
	return lmtpFailure(err)
}

// transaction is the dialogue for a delivery, and with whom.
func (v *Delivery) transaction() (dest string, t *transaction, err error) {
	if dest, err = v.expand(v.Path, usePath); err != nil {
		return "", nil, v.unexpanded("lmtp destination", err)
	}
	t = &transaction{sender: v.Sender.String(), rcpt: v.User, utf8: v.UTF8, size: v.Text.size(), v: v}
	if v.RcptTo {
		t.rcpt = v.Dest.String()
	}
	if !t.harmless() {
		return "", nil, &failure{perm: true, exit: exDataErr, quoted: true, text: mailLMTP + "the addresses cannot be sent"}
	}
	return dest, t, nil
}

// VerifyRcpt asks the store of an LMTP delivery whether it would take mail for
// the recipient, and hands nothing over. The Status is the store's answer to
// RCPT; an error means that there was none. It blocks until ctx ends at most.
func (d *Deliverer) VerifyRcpt(ctx context.Context, v *Delivery) (*mail.Status, error) {
	dest, t, err := v.transaction()
	if err != nil {
		return nil, err
	}
	if c := d.stores.take(dest); c != nil {
		st, err := d.verify(ctx, dest, c, t)
		if !errors.Is(err, errStale) {
			return st, err
		}
	}
	c, err := d.dialLMTP(ctx, dest, v.Hello)
	if err != nil {
		return nil, err
	}
	return d.verify(ctx, dest, c, t)
}

// verify asks on one connection and keeps it for the next question.
func (d *Deliverer) verify(ctx context.Context, dest string, c *lmtpConn, t *transaction) (*mail.Status, error) {
	st, err := c.ask(ctx, t)
	if r, ok := errors.AsType[*refusal](err); ok {
		if c.rcptRefused {
			d.stores.put(dest, c, c.reset(ctx))
			return &r.Status, nil
		}
		err = fmt.Errorf("LMTP server error: %s", r.Status.String()) // to MAIL: it says nothing of the recipient
	}
	if err != nil {
		c.close()
		return nil, err
	}
	d.stores.put(dest, c, c.reset(ctx))
	return st, nil
}

// lmtpFailure words what went wrong; a refusal is the store's own decision,
// whatever else happened may pass.
func lmtpFailure(err error) error {
	if err == nil {
		return nil
	}
	r, ok := errors.AsType[*refusal](err)
	if !ok {
		text := err.Error()
		if errors.Is(err, errStale) {
			text = "connection closed by the LMTP server"
		}
		return &failure{exit: exTempfail, quoted: true, text: mailLMTP + text}
	}
	f := &failure{exit: exUnavailable, perm: true, quoted: true, status: &r.Status,
		text: mailLMTP + "LMTP server error: " + r.Status.String()}
	if r.Status.Code/100 == 4 {
		f.exit, f.perm = exTempfail, false
	}
	return f
}

// dialLMTP connects to "/socket" or "host[:port]". A store that offers TLS and
// cannot begin it gets its mail without, as a host that mail is relayed to: who can
// break TLS could as well have taken the offer out.
func (d *Deliverer) dialLMTP(ctx context.Context, dest, name string) (*lmtpConn, error) {
	c, err := dialStore(ctx, dest, name, false)
	if _, ok := errors.AsType[*tlsFailure](err); ok && ctx.Err() == nil {
		d.o.Report(fmt.Sprintf("warn: mda: store %s: opportunistic TLS failed, downgrading to plain: %s", visible(dest, maxLine), visible(cause(err), maxLine)))
		c, err = dialStore(ctx, dest, name, true)
	}
	return c, err
}

func dialStore(ctx context.Context, dest, name string, plain bool) (*lmtpConn, error) {
	network, addr, host := "tcp", dest, ""
	if strings.HasPrefix(dest, "/") {
		network = "unix"
	} else {
		host = strings.Trim(dest, "[]")
		if h, _, err := net.SplitHostPort(dest); err == nil {
			host = h
		} else {
			addr = net.JoinHostPort(host, lmtpPort)
		}
	}
	var dialer net.Dialer
	nc, err := dialer.DialContext(ctx, network, addr)
	if err != nil {
		return nil, fmt.Errorf("connect: %s", cause(err))
	}
	c := newLMTPConn(nc, host, name)
	if err := c.open(ctx, plain); err != nil {
		nc.Close()
		return nil, err
	}
	return c, nil
}

// cause is the innermost reason of a network error, without addresses.
func cause(err error) string {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return sentence(err)
		}
		err = inner
	}
}

// stores are the idle connections by destination. The zero value is empty.
type stores struct {
	mu     sync.Mutex
	idle   map[string][]*lmtpConn
	n      int
	closed bool
}

func (s *stores) take(dest string) *lmtpConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.idle[dest]
	if len(list) == 0 {
		return nil
	}
	c := list[len(list)-1]
	s.idle[dest] = list[:len(list)-1]
	s.n--
	c.timer.Stop()
	return c
}

// put keeps a connection whose last delivery succeeded, for a while.
func (s *stores) put(dest string, c *lmtpConn, err error) {
	s.mu.Lock()
	keep := err == nil && !s.closed && s.n < maxStores
	if keep {
		if s.idle == nil {
			s.idle = map[string][]*lmtpConn{}
		}
		s.idle[dest] = append(s.idle[dest], c)
		s.n++
		c.timer = time.AfterFunc(storeIdle, func() { s.expire(dest, c) })
	}
	s.mu.Unlock()
	if !keep {
		c.quit()
	}
}

func (s *stores) expire(dest string, c *lmtpConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, other := range s.idle[dest] {
		if other == c {
			s.idle[dest] = append(s.idle[dest][:i], s.idle[dest][i+1:]...)
			if len(s.idle[dest]) == 0 {
				delete(s.idle, dest)
			}
			s.n--
			c.quit()
			return
		}
	}
}

func (s *stores) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, list := range s.idle {
		for _, c := range list {
			c.timer.Stop()
			c.quit()
		}
	}
	s.idle, s.n = nil, 0
}
