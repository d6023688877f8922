// Package ipc moves imsgs between two processes: frames and descriptors over a
// stream socketpair, one-way or as calls with request ids. A Link is one edge of
// the process diagram; it outlives the process at the other end. Each attached
// channel owns two goroutines, a reader and a writer, which end with it. The
// package must never block a reader on a writer, allocate for a peer before a
// bound was checked, or move an imsg that imsg.May does not allow.
package ipc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"smtpd/internal/imsg"
)

// Bounds of one link.
const (
	// CallTimeout ends a call whose context has no deadline. Ours: longer than
	// any lookup takes that is not lost.
	CallTimeout = 60 * time.Second
	// maxCalls bounds the calls that wait for an answer, in each direction.
	// Callers wait for their turn; a peer that has more open breaks the protocol.
	maxCalls = 8192
	// maxBacklog is how many octets wait to be written before Send and Call
	// block. Replies never do: their number is bounded by maxCalls.
	maxBacklog = 4 << 20
)

// Errors that callers tell apart. All mean: not now.
var (
	ErrDown  = errors.New("ipc: the peer is not there")
	ErrGone  = errors.New("ipc: the peer went away before it answered")
	ErrLaw   = errors.New("ipc: this imsg may not be sent on this edge")
	errReply = errors.New("ipc: an answer of the wrong type")
)

// Handler receives what the peer sends unasked, in order, on the link's reading
// goroutine. It must not block; work that takes time goes to a goroutine that
// somebody owns, see Async. It owns r.File.
type Handler func(r *Request)

// Request is one imsg from the peer.
type Request struct {
	Msg  imsg.Msg
	File *os.File // the descriptor that came with it, or nil

	id uint32
	ch *channel
}

// Reply answers a call, from any goroutine; the file, if any, is closed once
// sent. The second answer to a request, and any answer to a one-way imsg, is
// dropped, as is one to a peer that has gone.
func (r *Request) Reply(m imsg.Msg, f *os.File) {
	if r.id == 0 || imsg.ReplyOf(r.Msg.Type()) != m.Type() || !r.ch.answered(r.id) {
		closeFile(f)
		return
	}
	if err := r.ch.post(context.Background(), m, flagReply, r.id, f); err != nil {
		closeFile(f)
		if errors.Is(err, errUnread) {
			r.ch.fail(&ProtocolError{err})
		}
	}
}

// Link is one edge. It is safe for concurrent use.
type Link struct {
	Self, Peer imsg.Role

	// Violation, when set before the first Attach, is told what the peer did
	// that it may not do.
	Violation func(error)

	mu       sync.Mutex
	up       chan struct{} // closed while a channel is attached and onAttach has run
	ch       *channel
	handler  Handler
	onAttach func()
	onLost   func(error)
	slots    chan struct{} // one for each call that may be open
}

// NewLink makes an edge with nothing attached. Calls on it wait.
func NewLink(self, peer imsg.Role) *Link {
	return &Link{Self: self, Peer: peer, up: make(chan struct{}), slots: make(chan struct{}, maxCalls)}
}

// Serve sets who receives what the peer sends. Nothing is read before; call it
// once. onAttach, which may be nil, runs each time a new peer is there, before
// anything from it is handled and before any Call to it, on a goroutine that
// must not be blocked for long; what it sends comes first. onLost, which may be nil, runs when the channel ends; its error wraps
// *ProtocolError when the peer broke the protocol.
func (l *Link) Serve(h Handler, onAttach func(), onLost func(error)) {
	l.mu.Lock()
	l.handler, l.onAttach, l.onLost = h, onAttach, onLost
	ch := l.ch
	l.mu.Unlock()
	if ch != nil {
		ch.start(h, onAttach)
	}
}

// ProtocolError is what a peer did that it may not do.
type ProtocolError struct{ Err error }

// Error describes the breach.
func (e *ProtocolError) Error() string { return "protocol violation: " + e.Err.Error() }

// Unwrap gives the cause.
func (e *ProtocolError) Unwrap() error { return e.Err }

// Attach gives the link its channel to a new peer, made ready by Conn or
// Inherited, and takes conn over. Calls
// open on an earlier channel fail with ErrGone.
func (l *Link) Attach(conn *os.File) { l.attach(newSocket(conn)) }

func (l *Link) attach(conn wire) {
	ch := newChannel(l, conn)
	l.mu.Lock()
	old := l.ch
	l.ch = ch
	l.reopen()
	h, onAttach := l.handler, l.onAttach
	l.mu.Unlock()
	if old != nil {
		old.fail(ErrGone)
	}
	if h != nil {
		ch.start(h, onAttach)
	}
}

// Close ends the channel, if there is one. The link can be attached again.
func (l *Link) Close() {
	l.mu.Lock()
	ch := l.ch
	l.mu.Unlock()
	if ch != nil {
		ch.fail(ErrGone)
	}
}

// Up reports whether a peer is attached.
func (l *Link) Up() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ch != nil
}

// reopen makes those who call from now on wait, with the lock held.
func (l *Link) reopen() {
	select {
	case <-l.up:
		l.up = make(chan struct{})
	default:
	}
}

// greeted lets calls through to a channel whose onAttach has run.
func (l *Link) greeted(ch *channel) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ch == ch {
		close(l.up)
	}
}

// lost is told by a channel that it has ended.
func (l *Link) lost(ch *channel, err error) {
	l.mu.Lock()
	current := l.ch == ch
	if current {
		l.ch = nil
		l.reopen()
	}
	onLost := l.onLost
	l.mu.Unlock()
	if pe, ok := errors.AsType[*ProtocolError](err); ok && l.Violation != nil {
		l.Violation(pe)
	}
	if onLost != nil {
		onLost(err)
	}
}

// channel is the present one; with wait, once it has been greeted.
func (l *Link) channel(ctx context.Context, wait bool) (*channel, error) {
	for {
		l.mu.Lock()
		ch, up, ready := l.ch, l.up, false
		select {
		case <-up:
			ready = true
		default:
		}
		l.mu.Unlock()
		if ch != nil && (ready || !wait) {
			return ch, nil
		}
		if !wait {
			return nil, ErrDown
		}
		select {
		case <-up:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w (%s)", ErrDown, l.Peer)
		}
	}
}

// Send sends m one way. It fails at once with ErrDown when there is no peer; a
// nil error does not mean that the peer got it. It blocks only while more than
// maxBacklog octets wait to be written. f, if any, is closed.
func (l *Link) Send(m imsg.Msg, f *os.File) error {
	if !imsg.May(l.Self, l.Peer, m.Type()) || imsg.ReplyOf(m.Type()) != 0 || (f != nil && !imsg.MayCarry(m.Type())) {
		closeFile(f)
		return ErrLaw
	}
	ch, err := l.channel(context.Background(), false)
	if err == nil {
		err = ch.post(context.Background(), m, 0, 0, f)
	}
	if err != nil {
		closeFile(f)
	}
	return err
}

// Call sends m and waits for its answer, until ctx ends or CallTimeout. While
// there is no peer it waits for one. The caller owns the file that it gets; f,
// if any, is closed.
func (l *Link) Call(ctx context.Context, m imsg.Msg, f *os.File) (imsg.Msg, *os.File, error) {
	if !imsg.May(l.Self, l.Peer, m.Type()) || imsg.ReplyOf(m.Type()) == 0 || (f != nil && !imsg.MayCarry(m.Type())) {
		closeFile(f)
		return nil, nil, ErrLaw
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, CallTimeout)
		defer cancel()
	}
	select {
	case l.slots <- struct{}{}:
	case <-ctx.Done():
		closeFile(f)
		return nil, nil, ctx.Err()
	}
	ch, err := l.channel(ctx, true)
	if err != nil {
		<-l.slots
		closeFile(f)
		return nil, nil, err
	}
	return ch.call(ctx, m, f)
}

// Ask is Call for an answer of type A without a descriptor.
func Ask[A imsg.Msg](ctx context.Context, l *Link, m imsg.Msg) (A, error) {
	a, f, err := l.Call(ctx, m, nil)
	closeFile(f)
	return as[A](a, err)
}

// AskFile is Call for an answer of type A that may come with a descriptor.
func AskFile[A imsg.Msg](ctx context.Context, l *Link, m imsg.Msg) (A, *os.File, error) {
	r, f, err := l.Call(ctx, m, nil)
	a, err := as[A](r, err)
	if err != nil {
		closeFile(f)
		return a, nil, err
	}
	return a, f, nil
}

func as[A imsg.Msg](m imsg.Msg, err error) (A, error) {
	var none A
	if err != nil {
		return none, err
	}
	a, ok := m.(A)
	if !ok {
		return none, errReply
	}
	return a, nil
}

func closeFile(f *os.File) {
	if f != nil {
		f.Close()
	}
}

// Async is a Handler that runs h on at most n goroutines at a time and makes
// the peer's further requests wait in memory, at most maxCalls of them. Several
// links may share it. wait ends it, for a process that is about to end: it
// blocks until the running ones have ended, and what comes later is dropped.
func Async(n int, h Handler) (handler Handler, wait func()) {
	var mu sync.Mutex // orders the Go of wg before its Wait
	var wg sync.WaitGroup
	ended := false
	sem := make(chan struct{}, n)
	handler = func(r *Request) {
		mu.Lock()
		defer mu.Unlock()
		if ended {
			closeFile(r.File)
			return
		}
		wg.Go(func() {
			sem <- struct{}{}
			defer func() { <-sem }()
			h(r)
		})
	}
	return handler, func() {
		mu.Lock()
		ended = true
		mu.Unlock()
		wg.Wait()
	}
}
