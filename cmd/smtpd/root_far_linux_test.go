package main

import (
	"fmt"
	"io"
	"net"
	"regexp"
	"sync"
	"testing"
	"time"

	gosmtp "github.com/emersion/go-smtp"
)

// far carries connections to a host that is a long way off: what goes in on one
// side comes out on the other after delay, in both directions, and a connection
// takes a round trip to be made.
type far struct {
	ln    net.Listener
	to    string
	delay time.Duration
	done  sync.WaitGroup

	mu    sync.Mutex
	conns int
}

func startFar(t *testing.T, addr, to string, delay time.Duration) *far {
	ln, err := net.Listen("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	f := &far{ln: ln, to: to, delay: delay}
	f.done.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			f.conns++
			f.mu.Unlock()
			f.done.Go(func() { f.carry(c) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		f.done.Wait()
	})
	return f
}

func (f *far) carry(near net.Conn) {
	defer near.Close()
	there, err := net.Dial("tcp4", f.to)
	if err != nil {
		return
	}
	defer there.Close()
	var both sync.WaitGroup
	both.Go(func() { f.delayed(there, near, 2*f.delay) }) // the greeting waits for SYN, SYN+ACK and ACK
	both.Go(func() { f.delayed(near, there, 2*f.delay) })
	both.Wait()
}

type parcel struct {
	data []byte
	due  time.Time
}

// delayed copies from one side to the other; the first octets take longer.
func (f *far) delayed(to, from net.Conn, first time.Duration) {
	way := make(chan parcel, 4096)
	var wg sync.WaitGroup
	wg.Go(func() {
		for p := range way {
			<-time.After(time.Until(p.due)) // this is the distance itself
			if _, err := to.Write(p.data); err != nil {
				break
			}
		}
		for range way { // the other side has gone
		}
		if c, ok := to.(*net.TCPConn); ok {
			_ = c.CloseWrite()
		}
	})
	extra := first - f.delay
	for {
		b := make([]byte, 64<<10)
		n, err := from.Read(b)
		if n > 0 {
			way <- parcel{b[:n], time.Now().Add(f.delay + extra)}
			extra = 0
		}
		if err != nil {
			break
		}
	}
	close(way)
	wg.Wait()
	_, _ = io.Copy(io.Discard, from)
}

// TestRootFar relays 1,000 mails to one host that is 100 ms away, and shows what
// pipelining and reuse allow on paper.
func TestRootFar(t *testing.T) {
	if !asRoot(t) {
		return
	}
	const (
		mails  = 1000
		oneWay = 50 * time.Millisecond // 100 ms there and back, as 100 ms between name spaces would be 200
	)
	dir := t.TempDir()
	s, err := startSink("127.0.0.1:2525", dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	f := startFar(t, "127.1.0.1:2525", s.addr, oneWay)
	d := startRoot(t, "listen on 127.0.0.1 port 25 hostname mx.test\nresolver 127.0.0.1:9\n"+
		"action out relay host \"smtp://127.1.0.1:2525\"\nmatch from any for any action out\n", "-P", "mta")
	var wg sync.WaitGroup
	for c := range 10 {
		wg.Go(func() {
			cl, err := gosmtp.Dial("127.0.0.1:25")
			if err != nil {
				t.Error(err)
				return
			}
			defer cl.Close()
			for n := range mails / 10 {
				to := fmt.Sprintf("u%d-%d@far.test", c, n)
				m := newLetter(to, 4096)
				if err := (&ledger{acked: map[string]string{}}).transaction(cl, m, to); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	begin := time.Now()
	smtpctl(t, d, "resume", "mta")
	if err := d.waitLog(regexp.MustCompile(`mta delivery .* result="Ok"`), mails); err != nil {
		t.Errorf("%v\n%s", err, tail([]byte(d.log()), 5))
	}
	took := time.Since(begin)
	trip := 2 * oneWay
	const conns = 20 // max-conn-per-route
	// A connection is made (1), greets (1, with the handshake's), EHLO (1). The
	// host takes CHUNKING: two mails are under way at a time, so each is half a
	// round trip. With DATA it would be a whole one.
	ready := 3 * trip // the first connection on a new route is alone until then
	perConn := mails / conns
	paper := ready + ready + time.Duration(perConn)*trip/2
	t.Logf("%d mails, %v there and back: %v; on paper %v = %v for the first connection to get ready, %v for %d more, "+
		"and %d mails on each at half a round trip a mail; %d connections were made",
		mails, trip, took.Round(time.Millisecond), paper, ready, ready, conns-1, perConn, f.conns)
	if took > 2*paper {
		t.Errorf("took %v, twice what is possible is %v", took, 2*paper)
	}
	if n := len(collect(t, dir)); n != mails {
		t.Errorf("%d of %d arrived", n, mails)
	}
}
