package ctl

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// serve runs one connection of a made-up daemon.
func serve(t *testing.T, talk func(*Conn) error) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		u, err := ln.Accept()
		if err != nil {
			return // the test did not connect
		}
		c := NewServer(u.(*net.UnixConn))
		defer c.Close()
		c.ReadTimeout = 10 * time.Second
		if err := talk(c); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	return path
}

func greet(c *Conn) error {
	_, err := c.Receive()
	return errors.Join(err, c.Send(KindHello, Protocol), c.Flush())
}

func TestDialErrors(t *testing.T) {
	dead := filepath.Join(t.TempDir(), "dead")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
	tests := map[string]struct {
		socket string
		want   error
	}{
		"no file":      {filepath.Join(t.TempDir(), "none"), ErrNotRunning},
		"nobody there": {dead, ErrNotRunning},
		"other version": {serve(t, func(c *Conn) error {
			return errors.Join(c.Send(KindHello, "smtpd control 0"), c.Flush())
		}), ErrIncompatible},
		"other protocol": {serve(t, func(c *Conn) error {
			_, err := c.u.Write([]byte("\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
			return err
		}), ErrIncompatible},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := Dial(context.Background(), tt.socket); !errors.Is(err, tt.want) {
				t.Errorf("got %v; want %v", err, tt.want)
			}
		})
	}
}

func TestDo(t *testing.T) {
	tests := map[string]struct {
		talk   func(*Conn) error
		rows   int
		text   string
		reason string // of a Failure
	}{
		"ok": {func(c *Conn) error {
			err := greet(c)
			f, rerr := c.Receive()
			if f.Arg(0) != "x" || f.Arg(1) != "y" || f.Arg(2) != "" {
				t.Errorf("request %v", f)
			}
			return errors.Join(err, rerr, c.Send(KindRow, "1"), c.Send(KindData, "2"), c.Send(KindOK, "fine"), c.Flush())
		}, 2, "fine", ""},
		"refused": {func(c *Conn) error {
			return errors.Join(greet(c), c.Send(KindFail, "because"), c.Flush())
		}, 0, "", "because"},
		"no room": {func(c *Conn) error { // says so without listening
			return errors.Join(c.Send(KindHello, Protocol), c.Send(KindFail, ReasonBusy), c.Flush())
		}, 0, "", ReasonBusy},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c, err := Dial(context.Background(), serve(t, tt.talk))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			rows := 0
			text, err := c.Do(func(Frame) error { rows++; return nil }, "x", "y")
			f, _ := errors.AsType[*Failure](err)
			if tt.reason != "" && (f == nil || f.Reason != tt.reason) || tt.reason == "" && err != nil {
				t.Errorf("got error %v; want %q", err, tt.reason)
			}
			if rows != tt.rows || text != tt.text {
				t.Errorf("got %d rows, %q; want %d, %q", rows, text, tt.rows, tt.text)
			}
		})
	}
}

func TestDoCutOff(t *testing.T) {
	c, err := Dial(context.Background(), serve(t, greet))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Do(nil, "x"); err == nil {
		t.Error("no error although the daemon went away")
	}
}

// More clients than the backlog holds wait for their turn.
func TestDialFullBacklog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	fd, err := listenBacklog(path, 1)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "listener")
	ln, err := net.FileListener(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	const clients = 8
	errs := make(chan error, clients)
	for range clients {
		go func() {
			c, err := Dial(context.Background(), path)
			if err == nil {
				c.Close()
			}
			errs <- err
		}()
	}
	go func() {
		for {
			u, err := ln.Accept()
			if err != nil {
				return
			}
			c := NewServer(u.(*net.UnixConn))
			_ = greet(c) // the client may be gone
			c.Close()
		}
	}()
	for range clients {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	ln.Close()
}

func TestPeerUID(t *testing.T) {
	client, server := pair(t)
	for _, c := range []*Conn{client, server} {
		if uid, err := PeerUID(c.u); err != nil || uid != uint32(os.Getuid()) {
			t.Errorf("got %d, %v; want %d", uid, err, os.Getuid())
		}
	}
}
