package main

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	gosmtp "github.com/emersion/go-smtp"
	"golang.org/x/sys/unix"
)

// tunnel opens one end of a way between name spaces: what the kernel sends to
// this interface is read, and what is written arrives there. It is made in the
// name space of the calling thread.
func tunnel(name, local, peer string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	for _, args := range []string{"addr add " + local + " peer " + peer + " dev " + name,
		"link set " + name + " txqueuelen 10000 up"} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			f.Close()
			return nil, fmt.Errorf("ip %s: %w: %s", args, err, out)
		}
	}
	return f, nil
}

// elsewhere runs do in a network name space of its own, which lives as long as
// what do opens there.
func elsewhere(do func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = do()
		}
		done <- err
	}()
	return <-done
}

// packet is one on its way.
type packet struct {
	data []byte
	due  time.Time
}

// carry takes packets from one end of a way to the other, each of them delayed.
// It ends when the ends are closed.
func carry(to, from *os.File, delay time.Duration) {
	way := make(chan packet, 1<<14)
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
	})
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		if err != nil {
			break
		}
		way <- packet{append([]byte(nil), b[:n]...), time.Now().Add(delay)}
	}
	close(way)
	wg.Wait()
}

// TestRootFar relays 1,000 mails to a host in another network name space, each
// packet 100 ms under way, and shows what pipelining and reuse allow on paper. The
// packets are delayed by carry: not every kernel has netem.
func TestRootFar(t *testing.T) {
	if !asRoot(t) {
		return
	}
	const (
		mails  = 1000
		oneWay = 100 * time.Millisecond
	)
	near, err := tunnel("far0", "10.8.0.1", "10.8.0.2")
	if err != nil {
		t.Logf("no tunnel here: %v", err)
		return
	}
	var s *sink
	var there *os.File
	dir := t.TempDir()
	err = elsewhere(func() (err error) {
		if there, err = tunnel("far1", "10.8.0.2", "10.8.0.1"); err == nil {
			s, err = startSink("10.8.0.2:2525", dir)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var ways sync.WaitGroup
	ways.Go(func() { carry(there, near, oneWay) })
	ways.Go(func() { carry(near, there, oneWay) })
	defer func() {
		s.close()
		near.Close()
		there.Close()
		ways.Wait()
	}()
	d := startRoot(t, "listen on 127.0.0.1 port 25 hostname mx.test\nresolver 127.0.0.1:9\n"+
		"action out relay host \"smtp://10.8.0.2:2525\"\nmatch from any for any action out\n", "-P", "mta")
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
	// A connection is made (1), greets (1: the greeting waits for the ACK), EHLO (1).
	// The host takes CHUNKING: two mails are under way at a time, so each is half a
	// round trip. With DATA it would be a whole one.
	ready := 3 * trip // the first connection on a new route is alone until then
	perConn := mails / conns
	paper := ready + ready + time.Duration(perConn)*trip/2
	t.Logf("%d mails, %v there and back: %v; on paper %v = %v for the first connection to get ready, %v for %d more, "+
		"and %d mails on each at half a round trip a mail; %d connections were made",
		mails, trip, took.Round(time.Millisecond), paper, ready, ready, conns-1, perConn,
		strings.Count(d.log(), " mta connected"))
	if took > 2*paper {
		t.Errorf("took %v, twice what is possible is %v", took, 2*paper)
	}
	if n := len(collect(t, dir)); n != mails {
		t.Errorf("%d of %d arrived", n, mails)
	}
}
