package filter

import (
	"bufio"
	"context"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// sluggish is a program that takes a second to register and serves briefly.
type sluggish struct {
	far, near net.Conn
	over      chan struct{}
}

func (p *sluggish) Conn() net.Conn { return p.near }
func (p *sluggish) End()           { p.far.Close(); <-p.over }

func (p *sluggish) live() {
	defer close(p.over)
	defer p.far.Close()
	time.Sleep(time.Second)
	for in := bufio.NewScanner(p.far); in.Scan(); {
		if in.Text() == "config|ready" {
			_, _ = io.WriteString(p.far, "register|filter|smtp-in|mail-from\nregister|ready\n")
			time.Sleep(brief)
			return
		}
	}
}

const brief = firstPause * stableLife / 2

// A program that is slow to start has not served while it did: the pauses before
// it is started again grow as those of a quick one.
func TestSlowToStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		starts := make(chan time.Time, 100)
		sup := Supervise(Options{Name: "slow", Software: "x", SessionTimeout: time.Minute, In: true, Timeout: time.Minute, MaxLine: 1000, Now: time.Now},
			func(context.Context) (Process, error) {
				starts <- time.Now()
				p := &sluggish{over: make(chan struct{})}
				p.far, p.near = net.Pipe()
				go p.live()
				return p, nil
			}, func(string) {})
		defer sup.Close()
		last := <-starts
		for pause := firstPause; ; pause = min(2*pause, usualPause) {
			next := <-starts
			if got := next.Sub(last) - time.Second - brief; got != pause {
				t.Fatalf("a pause of %v; want %v", got, pause)
			}
			if last = next; pause == usualPause {
				return
			}
		}
	})
}
