package smtp

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"smtpd/internal/imsg"
	"smtpd/internal/mail"
)

// Bounds of message ids kept here. Ours.
const (
	idBlock = 256  // taken from queue at once
	maxFree = 1024 // given back and kept; more are forgotten, which does no harm
)

// ids hands out message ids that queue has reserved for us. The ids of a queue
// that was replaced stay good: its counter is on disk.
type ids struct {
	queue      asker
	generation atomic.Uint64 // counts the queues we had
	asking     chan struct{} // of one place: one asks, the others wait for it

	mu    sync.Mutex
	next  mail.MessageID
	left  int
	given []mail.MessageID // back, unused
}

func newIDs(queue asker) *ids {
	return &ids{queue: queue, asking: make(chan struct{}, 1)}
}

func (i *ids) attached() { i.generation.Add(1) }

// take gives an id, asking queue when there is none left. It waits for the
// others that ask, but no longer than it would wait for queue.
func (i *ids) take(ctx context.Context) (mail.MessageID, error) {
	if id, ok := i.pop(); ok {
		return id, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*i.queue.down)
	defer cancel()
	for {
		if id, ok := i.pop(); ok {
			return id, nil
		}
		select {
		case i.asking <- struct{}{}:
		case <-ctx.Done():
			return 0, fmt.Errorf("message id: %w", ctx.Err())
		}
		if id, ok := i.pop(); ok { // whoever asked before brought some
			<-i.asking
			return id, nil
		}
		err := i.refill(ctx)
		<-i.asking
		if err != nil {
			return 0, err
		}
	}
}

func (i *ids) pop() (mail.MessageID, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if n := len(i.given); n > 0 {
		id := i.given[n-1]
		i.given = i.given[:n-1]
		return id, true
	}
	if i.left == 0 {
		return 0, false
	}
	id := i.next
	i.next++
	i.left--
	return id, true
}

func (i *ids) refill(ctx context.Context) error {
	r, err := ask[*imsg.ReservedIDs](ctx, i.queue, &imsg.ReserveIDs{Count: idBlock})
	if err != nil {
		return fmt.Errorf("message id: %w", err)
	}
	if r.Count < 1 || r.Count > idBlock || r.First == 0 {
		return mail.NewStatus(451, [3]uint8{4, 3, 1}, "Temporary failure")
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.next, i.left = r.First, r.Count
	return nil
}

// give takes an unused id back.
func (i *ids) give(id mail.MessageID) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.given) < maxFree {
		i.given = append(i.given, id)
	}
}
