package ipc

import (
	"context"
	"errors"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"smtpd/internal/imsg"
	"smtpd/internal/mail"
)

// In a bubble: a call that is slow by the bubble's clock, frames larger than the
// pipe, and an end that reads what the dead has said.
func TestMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := NewLink(imsg.Queue, imsg.SMTP), NewLink(imsg.SMTP, imsg.Queue)
		a.Serve(ignore, nil, nil)
		h, wait := Async(2, func(r *Request) {
			time.Sleep(time.Hour)
			r.Reply(&imsg.Injected{ID: mail.MessageID(len(r.Msg.(*imsg.Inject).Data))}, nil)
		})
		b.Serve(h, nil, nil)
		ConnectMemory(a, b)
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Hour)
		defer cancel()
		got, err := Ask[*imsg.Injected](ctx, a, &imsg.Inject{Data: make([]byte, imsg.MaxData)})
		if err != nil || got.ID != imsg.MaxData || time.Since(start) != time.Hour {
			t.Fatalf("got %+v, %v after %v", got, err, time.Since(start))
		}
		go func() { time.Sleep(time.Minute); b.Close() }()
		if _, err := Ask[*imsg.Injected](ctx, a, &imsg.Inject{}); !errors.Is(err, ErrGone) && !errors.Is(err, ErrDown) {
			t.Fatal(err)
		}
		wait()
		a.Close()
	})
}

func TestLastWords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := NewLink(imsg.Scheduler, imsg.Queue), NewLink(imsg.Queue, imsg.Scheduler)
		a.Serve(ignore, nil, nil)
		ConnectMemory(a, b)
		for range 100 {
			if err := a.Send(&imsg.Attempt{IDs: make([]mail.EnvelopeID, 100)}, nil); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait() // all is written
		a.Close()
		n := 0
		lost := make(chan struct{})
		b.Serve(func(*Request) { n++ }, nil, func(error) { close(lost) })
		<-lost
		if n != 100 {
			t.Fatalf("%d imsgs of the dead; want 100", n)
		}
		if err := (&memory{}).writeFile(nil, nil); err == nil {
			t.Fatal("a descriptor passed through memory")
		}
	})
}

// A writer waits while the pipe is full, and no longer than its end lives.
func TestMemoryIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipe()
		errs := make(chan error, 1)
		go func() { errs <- p.write(make([]byte, 3*pipeSize)) }()
		synctest.Wait()
		if len(p.buf) != pipeSize {
			t.Fatalf("%d octets in the pipe", len(p.buf))
		}
		for n := 0; n < 2*pipeSize; {
			k, err := p.read(make([]byte, pipeSize/3))
			if err != nil {
				t.Fatal(err)
			}
			n += k
		}
		synctest.Wait()
		p.end(true)
		if err := <-errs; err != nil && !errors.Is(err, os.ErrClosed) && err.Error() != "broken pipe" {
			t.Fatal(err)
		}
	})
}
