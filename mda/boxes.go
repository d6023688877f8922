package mda

import (
	"context"
	"sync"
	"time"
)

// A mailbox that mail pours into must not be locked all the time: those who read
// it come in only while it is free. Ours, from how they wait. popa3d, and Dovecot
// once it has its dot-lock, wait in the kernel, where who is there first after the
// holder wins: they need a moment now and then. Dovecot looks for the dot-lock each
// 100 ms or later, liblockfile and mail.local by the second, and mutt takes five
// looks, one second apart, before it gives up: of a turn and a pause together one
// second must be free in each four.
const (
	briefTurn, briefPause = 200 * time.Millisecond, 5 * time.Millisecond
	longTurn, longPause   = 2700 * time.Millisecond, 1050 * time.Millisecond
	// maxIdleBoxes bounds the mailboxes that are remembered while nobody uses them.
	maxIdleBoxes = 64
)

// boxes keeps the deliveries of this process to one mailbox apart, so that they
// need not poll each other's locks, and has them leave it to others for a while
// when they have followed each other for long. The zero value is ready.
type boxes struct {
	mu    sync.Mutex
	known map[string]*box
}

// box is the use of one mailbox.
type box struct {
	taken chan struct{} // closed when it is free again; nil: it is free
	freed time.Time
	// Deliveries have followed each other since then, without a pause of the kind.
	brief, long time.Time
}

// lock waits until no other delivery of this process uses path, and until others
// have had their turn.
func (b *boxes) lock(ctx context.Context, path string) error {
	for {
		b.mu.Lock()
		x := b.box(path)
		taken := x.taken
		if taken == nil {
			x.taken = make(chan struct{})
			wait := x.pause(time.Now())
			b.mu.Unlock()
			return b.rest(ctx, path, wait)
		}
		b.mu.Unlock()
		select {
		case <-taken:
		case <-ctx.Done():
			return errLocked
		}
	}
}

// rest leaves a mailbox alone that was locked in this process.
func (b *boxes) rest(ctx context.Context, path string, wait time.Duration) error {
	if wait <= 0 {
		return nil
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		b.mu.Lock()
		defer b.mu.Unlock()
		b.known[path].pause(time.Now())
		return nil
	case <-ctx.Done():
		b.unlock(path)
		return errLocked
	}
}

// box is what is known of path. The lock is held.
func (b *boxes) box(path string) *box {
	if x := b.known[path]; x != nil {
		return x
	}
	if b.known == nil {
		b.known = map[string]*box{}
	}
	for p, x := range b.known {
		if len(b.known) >= maxIdleBoxes && x.taken == nil && time.Since(x.freed) >= longPause {
			delete(b.known, p)
		}
	}
	x := &box{}
	b.known[path] = x
	return x
}

// pause is how long the mailbox has to stay free before it is locked.
func (x *box) pause(now time.Time) time.Duration {
	free := now.Sub(x.freed)
	if free >= briefPause {
		x.brief = now
	}
	if free >= longPause {
		x.long = now
	}
	switch {
	case now.Sub(x.long) >= longTurn:
		return longPause - free
	case now.Sub(x.brief) >= briefTurn:
		return briefPause - free
	}
	return 0
}

// shared is told that somebody else has just had the mailbox.
func (b *boxes) shared(path string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	x := b.known[path]
	x.brief = time.Now()
	x.long = x.brief
}

func (b *boxes) unlock(path string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	x := b.known[path]
	close(x.taken)
	x.taken, x.freed = nil, time.Now()
}
