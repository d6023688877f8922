package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"smtpd/internal/ctl"
)

// daemon is a made-up control process. answer gets the request and sends what
// comes before OK or Fail; its text is that of OK, a *ctl.Failure that of Fail.
type daemon struct {
	socket string

	mu    sync.Mutex
	asked []string // requests, words joined by spaces
}

type answer func(c *ctl.Conn, request []string) (string, error)

func startDaemon(t *testing.T, a answer) *daemon {
	t.Helper()
	d := &daemon{socket: filepath.Join(t.TempDir(), "sock")}
	ln, err := net.Listen("unix", d.socket)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			u, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { d.serve(ctl.NewServer(u.(*net.UnixConn)), a) })
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return d
}

func (d *daemon) serve(c *ctl.Conn, a answer) {
	defer c.Close()
	c.ReadTimeout = 10 * time.Second
	if _, err := c.Receive(); err != nil {
		return
	}
	err := errors.Join(c.Send(ctl.KindHello, ctl.Protocol), c.Flush())
	for err == nil {
		f, rerr := c.Receive()
		if rerr != nil {
			return
		}
		d.mu.Lock()
		d.asked = append(d.asked, strings.Join(f.Fields, " "))
		d.mu.Unlock()
		text, aerr := a(c, f.Fields)
		if fail, ok := errors.AsType[*ctl.Failure](aerr); ok {
			err = errors.Join(c.Send(ctl.KindFail, fail.Reason), c.Flush())
			continue
		}
		err = errors.Join(aerr, c.Send(ctl.KindOK, text), c.Flush())
	}
}

func (d *daemon) requests() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]string(nil), d.asked...)
}

func says(text string, err error) answer {
	return func(*ctl.Conn, []string) (string, error) { return text, err }
}

// rows answers with rows, fields parted by bars.
func rows(lines ...string) answer {
	return func(c *ctl.Conn, _ []string) (string, error) {
		for _, l := range lines {
			if err := c.Send(ctl.KindRow, strings.Split(l, "|")...); err != nil {
				return "", err
			}
		}
		return "", nil
	}
}

func data(parts ...string) answer {
	return func(c *ctl.Conn, _ []string) (string, error) {
		for _, p := range parts {
			if err := c.Send(ctl.KindData, p); err != nil {
				return "", err
			}
		}
		return "", nil
	}
}

// outcome is what a run printed and how it ended.
type outcome struct {
	out, err string
	status   int
}

// ordinary is a user without rights, in a program whose file gives none.
var ordinary = standing{1000, 1000, 1000, 1000}

// run runs the program under a name, against a socket of the caller's own; an
// empty one means that of the system, which is not there.
func run(t *testing.T, name, socket, stdin string, args ...string) outcome {
	t.Helper()
	return runWith(t, name, socket, stdin, nil, args...)
}

func runWith(t *testing.T, name, socket, stdin string, change func(*program), args ...string) outcome {
	t.Helper()
	var out, errs bytes.Buffer
	w := bufio.NewWriter(&out)
	p := &program{
		name: name, path: "/usr/sbin/" + name, stdin: strings.NewReader(stdin), stdout: w, stderr: &errs,
		now: func() time.Time { return time.Unix(1795217035, 0) }, who: ordinary,
		socket: filepath.Join(t.TempDir(), "none"), spool: t.TempDir(),
		getenv: func(name string) string {
			if name == ctl.SocketVar {
				return socket
			}
			return ""
		},
	}
	if change != nil {
		change(p)
	}
	status := p.run(context.Background(), args)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return outcome{out.String(), errs.String(), status}
}

func check(t *testing.T, got, want outcome) {
	t.Helper()
	if got != want {
		t.Errorf("got  status %d\nstdout %q\nstderr %q\nwant status %d\nstdout %q\nstderr %q",
			got.status, got.out, got.err, want.status, want.out, want.err)
	}
}
