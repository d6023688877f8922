package lease

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"

	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/mail"
)

// TestResultsGather: the first result is told at once, those that come within
// gatherTime in one call.
func TestResultsGather(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := ipc.NewLink(imsg.MDA, imsg.Queue), ipc.NewLink(imsg.Queue, imsg.MDA)
		var mu sync.Mutex
		var calls []int
		far.Serve(func(r *ipc.Request) {
			mu.Lock()
			calls = append(calls, len(r.Msg.(*imsg.Results).Results))
			mu.Unlock()
			r.Reply(&imsg.Done{OK: true}, nil)
		}, nil, nil)
		near.Serve(func(*ipc.Request) {}, nil, nil)
		ipc.ConnectMemory(near, far)
		r := New(near)
		before := 0
		r.Before = func() { before++ }
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { r.Run(ctx) })
		add := func(id mail.EnvelopeID) { r.Add(imsg.Result{ID: id, Status: mail.Status{Code: 250}}) }
		add(1)
		synctest.Wait()
		for id := range mail.EnvelopeID(10) {
			add(2 + id)
			synctest.Wait()
		}
		pause(ctx, 2*gatherTime)
		synctest.Wait()
		mu.Lock()
		if len(calls) != 2 || calls[0] != 1 || calls[1] != 10 {
			t.Errorf("got calls with %v results; want 1 and 10", calls)
		}
		if before != len(calls) {
			t.Errorf("Before was called %d times for %d calls", before, len(calls))
		}
		mu.Unlock()
		cancel()
		wg.Wait()
		near.Close()
	})
}
