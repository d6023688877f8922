package ctl

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Time limits of a client. Ours.
const (
	// answerTimeout is the silence after which the daemon is given up. Longer
	// than any call within the daemon takes.
	answerTimeout = 2 * time.Minute
	// dialPatience is how long a full backlog is waited for: many programs
	// submit at the same moment when cron strikes.
	dialPatience = 30 * time.Second
	dialPause    = 20 * time.Millisecond
)

// Client is smtpctl's connection to the daemon. It is not safe for concurrent
// use; the caller closes it.
type Client struct{ c *Conn }

// Dial connects to the control socket and agrees on the version. The errors
// told apart are ErrNotRunning and ErrIncompatible. It waits for a daemon that
// is busy, until ctx ends or its patience does.
func Dial(ctx context.Context, socket string) (*Client, error) {
	ctx, cancel := context.WithTimeout(ctx, dialPatience)
	defer cancel()
	u, err := dial(ctx, socket)
	if err != nil {
		return nil, err
	}
	c := newClient(u)
	c.ReadTimeout, c.WriteTimeout = answerTimeout, answerTimeout
	if err := hello(c); err != nil {
		c.Close()
		return nil, err
	}
	return &Client{c}, nil
}

func dial(ctx context.Context, socket string) (*net.UnixConn, error) {
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
		switch {
		case err == nil:
			return conn.(*net.UnixConn), nil // "unix" gives nothing else
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED):
			return nil, ErrNotRunning
		case !errors.Is(err, unix.EAGAIN):
			return nil, fmt.Errorf("connect: %w", err)
		}
		select { // the backlog is full
		case <-time.After(dialPause):
		case <-ctx.Done():
			return nil, fmt.Errorf("connect: %w", err)
		}
	}
}

func hello(c *Conn) error {
	// A daemon that has no room says so and closes at once, maybe before it
	// reads: what it said counts, not the failed write. See also Do.
	werr := errors.Join(c.Send(KindHello, Protocol), c.Flush())
	f, err := c.Receive()
	if errors.Is(err, ErrFrame) || err == nil && (f.Kind != KindHello || f.Arg(0) != Protocol) {
		return ErrIncompatible
	}
	if err != nil {
		return fmt.Errorf("control: %w", errors.Join(werr, err))
	}
	return nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.c.Close() }

// Do sends a request and gives each Row and Data that comes back to each, which
// may be nil. The result is the text of OK; a refusal is a *Failure. An error
// from each ends the conversation.
func (c *Client) Do(each func(Frame) error, request ...string) (string, error) {
	werr := errors.Join(c.c.Send(KindRequest, request...), c.c.Flush())
	for {
		f, err := c.c.Receive()
		if err != nil {
			return "", fmt.Errorf("control: %w", errors.Join(werr, err))
		}
		switch f.Kind {
		case KindOK:
			return f.Arg(0), nil
		case KindFail:
			return "", &Failure{f.Arg(0)}
		case KindRow, KindData:
			if each == nil {
				return "", ErrFrame
			}
			if err := each(f); err != nil {
				return "", err
			}
		case KindFile: // taken by Submit
		default:
			return "", ErrFrame
		}
	}
}

// Submit asks for a session with the local listener. The caller closes conn.
// server is the name that unqualified addresses get. A refusal is a *Failure
// with ReasonBusy or ReasonRefused.
func (c *Client) Submit() (conn net.Conn, server string, err error) {
	server, err = c.Do(nil, ReqSubmit)
	if err != nil {
		return nil, "", err
	}
	f := c.c.File()
	if f == nil {
		return nil, "", fmt.Errorf("control: %w: no descriptor", ErrFrame)
	}
	defer f.Close()
	conn, err = fileConn(f)
	return conn, server, err
}

func fileConn(f *os.File) (net.Conn, error) {
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("control: session: %w", err)
	}
	return conn, nil
}
