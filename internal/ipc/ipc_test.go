package ipc

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"smtpd/internal/imsg"
	"smtpd/internal/mail"
)

// bound ends every wait of these tests.
const bound = 20 * time.Second

// ends are the two ends of an edge, connected.
type ends struct{ a, b *Link }

func connect(t testing.TB, from, to imsg.Role) ends {
	t.Helper()
	e := ends{NewLink(from, to), NewLink(to, from)}
	if err := Connect(e.a, e.b); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.a.Close(); e.b.Close() })
	return e
}

func ignore(*Request) {}

// within runs f, which must end.
func within(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { f(); close(done) }()
	receive(t, what, done)
}

func receive[T any](t testing.TB, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(bound):
		buf := make([]byte, 1<<16)
		t.Fatalf("%s: nothing within %v\n%s", what, bound, buf[:runtime.Stack(buf, true)])
		panic("unreachable")
	}
}

// eventually waits until f holds, without a clock of its own but the bound.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(bound); !f(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, bound)
		}
	}
}

// openFiles counts the descriptors of this process; -1 where that is not known.
func openFiles() int {
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return -1
	}
	return len(d)
}

// noLeaks fails a test that leaves goroutines or descriptors behind.
func noLeaks(t *testing.T) {
	t.Helper()
	// The poller's own descriptors are opened with the first socket.
	if a, b, err := Socketpair(); err == nil {
		c, _ := Conn(a)
		b.Close()
		c.Close()
	}
	files, goroutines := openFiles(), runtime.NumGoroutine()
	t.Cleanup(func() {
		eventually(t, "goroutines end", func() bool { return runtime.NumGoroutine() <= goroutines })
		eventually(t, "descriptors are closed", func() bool { return openFiles() <= files })
	})
}

func TestCall(t *testing.T) {
	noLeaks(t)
	e := connect(t, imsg.SMTP, imsg.Keys)
	e.a.Serve(ignore, nil, nil)
	e.b.Serve(func(r *Request) {
		m := r.Msg.(*imsg.Sign)
		r.Reply(&imsg.Count{N: 1}, nil) // not the answer to this
		r.Reply(&imsg.Signature{Data: []byte(m.PKI)}, nil)
		r.Reply(&imsg.Signature{Data: []byte("second")}, nil)
	}, nil, nil)
	for _, name := range []string{"one", "two", strings.Repeat("x", imsg.MaxName)} {
		a, err := Ask[*imsg.Signature](t.Context(), e.a, &imsg.Sign{PKI: name})
		if err != nil || string(a.Data) != name {
			t.Fatalf("got %.20q, %v", a, err)
		}
	}
	if _, err := Ask[*imsg.Count](t.Context(), e.a, &imsg.Sign{}); !errors.Is(err, errReply) {
		t.Fatalf("an answer of the wrong type: %v", err)
	}
	if _, err := Ask[*imsg.Signature](t.Context(), e.a, &imsg.Sign{PKI: strings.Repeat("x", imsg.MaxName+1)}); !errors.Is(err, imsg.ErrShort) {
		t.Fatalf("a field over its bound: %v", err)
	}
	if len(e.a.slots) != 0 {
		t.Fatalf("%d slots taken", len(e.a.slots))
	}
}

func TestLaw(t *testing.T) {
	e := connect(t, imsg.Scheduler, imsg.Queue)
	e.a.Serve(ignore, nil, nil)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	tests := map[string]error{
		"another's imsg":         e.a.Send(&imsg.Gone{}, nil),
		"an answer":              e.a.Send(&imsg.Count{}, nil),
		"a call sent one way":    e.b.Send(&imsg.Sign{}, nil),
		"a file with no carrier": e.a.Send(&imsg.Attempt{}, w),
	}
	_, _, tests["one way called"] = e.a.Call(t.Context(), &imsg.Attempt{}, nil)
	_, _, tests["another's call"] = e.a.Call(t.Context(), &imsg.Sign{}, nil)
	for name, err := range tests {
		if !errors.Is(err, ErrLaw) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := w.Write(nil); !errors.Is(err, os.ErrClosed) {
		t.Error("the file that was refused is open")
	}
	if err := e.a.Send(&imsg.Attempt{}, nil); err != nil {
		t.Errorf("a lawful imsg: %v", err)
	}
}

// One-way imsgs arrive in their order, whatever their size and number.
func TestOrder(t *testing.T) {
	noLeaks(t)
	e := connect(t, imsg.Scheduler, imsg.Queue)
	e.a.Serve(ignore, nil, nil)
	got := make(chan imsg.Msg, 100)
	e.b.Serve(func(r *Request) { got <- r.Msg }, nil, nil)
	const n = 3000
	go func() {
		for i := range n {
			m := &imsg.Attempt{IDs: make([]mail.EnvelopeID, i%imsg.MaxItems)}
			m.IDs = append(m.IDs, mail.EnvelopeID(i))
			if err := e.a.Send(m, nil); err != nil {
				t.Error(err)
			}
		}
	}()
	for i := range n {
		m := receive(t, "imsg", got).(*imsg.Attempt)
		if len(m.IDs) != i%imsg.MaxItems+1 || m.IDs[len(m.IDs)-1] != mail.EnvelopeID(i) {
			t.Fatalf("number %d: %d ids", i, len(m.IDs))
		}
	}
}

func TestLargestFrame(t *testing.T) {
	e := connect(t, imsg.SMTP, imsg.Queue)
	e.a.Serve(ignore, nil, nil)
	e.b.Serve(func(r *Request) {
		r.Reply(&imsg.Committed{Status: mail.Status{Code: 250, Text: strconv.Itoa(len(r.Msg.(*imsg.Commit).Envelopes))}}, nil)
	}, nil, nil)
	m := &imsg.Commit{ID: 1, Inline: make([]byte, imsg.MaxInline)}
	add := func(n int) { // each unlike the one before: what is alike goes once
		for range n {
			c := string(rune('a' + len(m.Envelopes)%2))
			m.Envelopes = append(m.Envelopes,
				mail.Envelope{LastError: strings.Repeat(c, imsg.MaxText), Helo: strings.Repeat(c, imsg.MaxName)})
		}
	}
	add(180)
	a, err := Ask[*imsg.Committed](t.Context(), e.a, m)
	if err != nil || a.Status.Text != "180" {
		t.Fatalf("got %+v, %v", a, err)
	}
	add(100)
	if _, err := Ask[*imsg.Committed](t.Context(), e.a, m); !errors.Is(err, errTooLarge) {
		t.Fatalf("a frame over the bound: %v", err)
	}
	if _, err := Ask[*imsg.Committed](t.Context(), e.a, &imsg.Commit{}); err != nil {
		t.Fatalf("after it: %v", err)
	}
}

// A descriptor goes there and one comes back; nobody keeps a copy.
func TestDescriptors(t *testing.T) {
	noLeaks(t)
	e := connect(t, imsg.MDA, imsg.Deliver)
	e.a.Serve(ignore, nil, nil)
	e.b.Serve(func(r *Request) {
		b, err := io.ReadAll(r.File)
		if err = errors.Join(err, r.File.Close()); err != nil {
			t.Error(err)
		}
		r.Reply(&imsg.DeliverResult{Line: string(b)}, nil)
	}, nil, nil)
	q := connect(t, imsg.SMTP, imsg.Queue)
	q.a.Serve(ignore, nil, nil)
	q.b.Serve(func(r *Request) {
		f, w, err := os.Pipe()
		if err != nil {
			t.Error(err)
		}
		r.Reply(&imsg.BodyCreated{Status: mail.Status{Code: 250}}, w)
		go func() { // the writer's end comes first, then what it wrote
			b, _ := io.ReadAll(f)
			f.Close()
			if string(b) != "body" {
				t.Errorf("read %q", b)
			}
		}()
	}, nil, nil)
	for i := range 200 {
		want := strconv.Itoa(i)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.WriteString(want)
		if err = errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
		m, f, err := e.a.Call(t.Context(), &imsg.DeliverRun{}, r)
		if err != nil || f != nil || m.(*imsg.DeliverResult).Line != want {
			t.Fatalf("got %+v, %v", m, err)
		}
		c, f, err := AskFile[*imsg.BodyCreated](t.Context(), q.a, &imsg.BodyCreate{ID: 1})
		if err != nil || c.Status.Code != 250 || f == nil {
			t.Fatalf("got %+v, %v, %v", c, f, err)
		}
		_, err = f.WriteString("body")
		if err = errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// Ask has no use for a descriptor and leaves none open.
func TestUnwantedDescriptor(t *testing.T) {
	noLeaks(t)
	e := connect(t, imsg.SMTP, imsg.Queue)
	e.a.Serve(ignore, nil, nil)
	e.b.Serve(func(r *Request) {
		f, w, _ := os.Pipe()
		f.Close()
		r.Reply(&imsg.BodyCreated{}, w)
	}, nil, nil)
	if _, err := Ask[*imsg.BodyCreated](t.Context(), e.a, &imsg.BodyCreate{}); err != nil {
		t.Fatal(err)
	}
	if _, f, err := AskFile[*imsg.Committed](t.Context(), e.a, &imsg.BodyCreate{}); err == nil || f != nil {
		t.Fatalf("%v, %v", f, err)
	}
}

func TestPeerIsReplaced(t *testing.T) {
	noLeaks(t)
	a := NewLink(imsg.SMTP, imsg.Keys)
	attached, lost := make(chan int, 10), make(chan error, 10)
	n := 0
	a.Serve(ignore, func() { n++; attached <- n }, func(err error) { lost <- err })
	if a.Up() || !errors.Is(NewLink(imsg.Scheduler, imsg.Queue).Send(&imsg.LoadAll{}, nil), ErrDown) {
		t.Fatal("there is a peer before there is one")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := a.Call(ctx, &imsg.Sign{}, nil); err == nil {
		t.Fatal("an answer from nobody")
	}
	waiting := make(chan error, 1)
	go func() {
		_, err := Ask[*imsg.Signature](t.Context(), a, &imsg.Sign{PKI: "early"})
		waiting <- err
	}()

	held := make(chan *Request, 10)
	b1 := NewLink(imsg.Keys, imsg.SMTP)
	b1.Serve(func(r *Request) {
		if r.Msg.(*imsg.Sign).PKI == "early" {
			r.Reply(&imsg.Signature{}, nil)
			return
		}
		held <- r
	}, nil, nil)
	if err := Connect(a, b1); err != nil {
		t.Fatal(err)
	}
	receive(t, "attached", attached)
	if err := receive(t, "the call that waited", waiting); err != nil {
		t.Fatal(err)
	}

	// A second peer takes the place of the first in the middle of a call.
	go func() {
		_, err := Ask[*imsg.Signature](t.Context(), a, &imsg.Sign{PKI: "late"})
		waiting <- err
	}()
	r := receive(t, "request", held)
	b2 := NewLink(imsg.Keys, imsg.SMTP)
	b2.Serve(func(r *Request) { r.Reply(&imsg.Signature{}, nil) }, nil, nil)
	if err := Connect(a, b2); err != nil {
		t.Fatal(err)
	}
	if err := receive(t, "the call in the middle", waiting); !errors.Is(err, ErrGone) {
		t.Fatalf("got %v; want %v", err, ErrGone)
	}
	if err := receive(t, "lost", lost); errors.Is(err, ErrLaw) {
		t.Fatal(err)
	}
	r.Reply(&imsg.Signature{}, nil) // to somebody who has gone
	if got := receive(t, "attached", attached); got != 2 || !a.Up() {
		t.Fatalf("attached %d times, up %v", got, a.Up())
	}
	if _, err := Ask[*imsg.Signature](t.Context(), a, &imsg.Sign{}); err != nil {
		t.Fatalf("with the new peer: %v", err)
	}
	b1.Close()
	b2.Close()
	receive(t, "lost", lost)
	eventually(t, "down", func() bool { return !a.Up() })
	a.Close()
}

// What onAttach sends is the first that a new peer hears, whoever waits to call.
func TestGreetingComesFirst(t *testing.T) {
	noLeaks(t)
	a := NewLink(imsg.MTA, imsg.Queue)
	a.Serve(ignore, func() {
		for range 3 {
			if err := a.Send(&imsg.Inflight{}, nil); err != nil {
				t.Error(err)
			}
			runtime.Gosched()
		}
	}, nil)
	for range 200 {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if _, err := Ask[*imsg.Done](ctx, a, &imsg.Results{}); err != nil {
					t.Error(err)
				}
			})
		}
		heard := make(chan imsg.Type, 6)
		b := NewLink(imsg.Queue, imsg.MTA)
		b.Serve(func(r *Request) {
			heard <- r.Msg.Type()
			r.Reply(&imsg.Done{}, nil)
		}, nil, nil)
		if err := Connect(a, b); err != nil {
			t.Fatal(err)
		}
		within(t, "calls", wg.Wait)
		for range 3 {
			if n := receive(t, "imsg", heard); n != imsg.TypeInflight {
				t.Fatalf("type %d came before the greeting was over", n)
			}
		}
		b.Close()
		eventually(t, "down", func() bool { return !a.Up() })
		cancel()
	}
}

// What one has given up may be answered late, with a descriptor even.
func TestAbandonedCalls(t *testing.T) {
	noLeaks(t)
	e := connect(t, imsg.SMTP, imsg.Queue)
	e.a.Serve(ignore, nil, nil)
	held := make(chan *Request, 100)
	e.b.Serve(func(r *Request) {
		if r.Msg.Type() == imsg.TypeBodyCreate {
			held <- r
			return
		}
		r.Reply(&imsg.ReservedIDs{}, nil)
	}, nil, nil)
	for range 50 {
		ctx, cancel := context.WithCancel(t.Context())
		errs := make(chan error, 1)
		go func() { _, _, err := e.a.Call(ctx, &imsg.BodyCreate{}, nil); errs <- err }()
		r := receive(t, "request", held)
		cancel()
		if err := receive(t, "end of the call", errs); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if len(e.a.slots) != 1 {
			t.Fatalf("%d slots taken: an abandoned call is open with the peer", len(e.a.slots))
		}
		f, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		r.Reply(&imsg.BodyCreated{}, w)
		within(t, "the late file is closed", func() { _, _ = io.ReadAll(f) })
		f.Close()
		if _, err := Ask[*imsg.ReservedIDs](t.Context(), e.a, &imsg.ReserveIDs{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "slots", func() bool { return len(e.a.slots) == 0 })
	}
	// And one that is never answered ends with the channel.
	ctx, cancel := context.WithCancel(t.Context())
	go func() { receive(t, "request", held); cancel() }()
	if _, _, err := e.a.Call(ctx, &imsg.BodyCreate{}, nil); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	e.b.Close()
	eventually(t, "slots", func() bool { return len(e.a.slots) == 0 })
}

// Callers that lose patience with a peer that is slow never have more open
// than it bears: that would be our breach.
func TestImpatientCallers(t *testing.T) {
	e := connect(t, imsg.SMTP, imsg.Keys)
	e.a.Serve(ignore, nil, nil)
	lost := make(chan error, 1)
	e.b.Serve(ignore, nil, func(err error) { lost <- err }) // never answers
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range maxCalls {
		ch, err := e.a.channel(t.Context(), true)
		if err != nil {
			t.Fatal(err)
		}
		e.a.slots <- struct{}{}
		if _, _, err := ch.abandoned(ctx); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	if _, _, err := e.a.Call(ctx, &imsg.Sign{}, nil); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	e.a.Close()
	if pe, ok := errors.AsType[*ProtocolError](receive(t, "lost", lost)); ok {
		t.Fatalf("we broke the protocol: %v", pe)
	}
	if len(e.a.slots) != 0 {
		t.Fatalf("%d slots taken", len(e.a.slots))
	}
}

// abandoned is a call that is sent and given up at once.
func (ch *channel) abandoned(ctx context.Context) (imsg.Msg, *os.File, error) {
	c := &call{want: imsg.TypeSignature, done: make(chan answer, 1)}
	ch.mu.Lock()
	ch.nextID++
	id := ch.nextID
	ch.calls[id] = c
	ch.mu.Unlock()
	if err := ch.post(context.Background(), &imsg.Sign{}, 0, id, nil); err != nil {
		return nil, nil, err
	}
	return ch.abandon(id, c, ctx.Err())
}

func TestManyCalls(t *testing.T) {
	noLeaks(t)
	e := connect(t, imsg.Queue, imsg.SMTP)
	both := func(r *Request) {
		switch m := r.Msg.(type) {
		case *imsg.Inject:
			r.Reply(&imsg.Injected{ID: mail.MessageID(len(m.Data))}, nil)
		case *imsg.ReserveIDs:
			r.Reply(&imsg.ReservedIDs{Count: m.Count}, nil)
		}
	}
	h1, wait1 := Async(4, both)
	h2, wait2 := Async(4, both)
	e.a.Serve(h1, nil, nil)
	e.b.Serve(h2, nil, nil)
	var wg sync.WaitGroup
	for i := range 2000 {
		wg.Go(func() {
			a, err := Ask[*imsg.Injected](t.Context(), e.a, &imsg.Inject{Data: make([]byte, i)})
			if err != nil || int(a.ID) != i {
				t.Errorf("call %d: %+v, %v", i, a, err)
			}
		})
		wg.Go(func() {
			a, err := Ask[*imsg.ReservedIDs](t.Context(), e.b, &imsg.ReserveIDs{Count: i})
			if err != nil || a.Count != i {
				t.Errorf("call %d: %+v, %v", i, a, err)
			}
		})
	}
	within(t, "calls", wg.Wait)
	within(t, "handlers", func() { wait1(); wait2() })
}

// fillUp sends m until no more is taken, because the peer does not read. What the
// writer takes afterwards makes room again.
func fillUp(t *testing.T, l *Link, m imsg.Msg) {
	t.Helper()
	ch, err := l.channel(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	for {
		ch.wmu.Lock()
		full := len(ch.out) > maxBacklog
		ch.wmu.Unlock()
		if full {
			return
		}
		if err := l.Send(m, nil); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBackPressure(t *testing.T) {
	noLeaks(t)
	for _, end := range []string{"the peer reads", "the link is closed"} {
		t.Run(end, func(t *testing.T) {
			e := connect(t, imsg.Scheduler, imsg.Queue)
			e.a.Serve(ignore, nil, nil)
			m := &imsg.Attempt{IDs: make([]mail.EnvelopeID, imsg.MaxItems)}
			for i := range m.IDs {
				m.IDs[i] = 1 << 60
			}
			fillUp(t, e.a, m)
			sent := make(chan error, 1)
			go func() { sent <- e.a.Send(&imsg.LoadAll{}, nil) }()
			if end == "the peer reads" {
				e.b.Serve(ignore, nil, nil)
				if err := receive(t, "Send", sent); err != nil {
					t.Fatal(err)
				}
				return
			}
			e.a.Close()
			if err := receive(t, "Send", sent); !errors.Is(err, ErrGone) && !errors.Is(err, ErrDown) {
				t.Fatal(err)
			}
		})
	}
}

// A call keeps to its deadline even when it cannot be sent.
func TestDeadlineBehindBacklog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := ends{NewLink(imsg.SMTP, imsg.Queue), NewLink(imsg.Queue, imsg.SMTP)}
		ConnectMemory(e.a, e.b)
		defer e.b.Close()
		defer e.a.Close()
		e.a.Serve(ignore, nil, nil)
		part := &imsg.CommitPart{Envelopes: []mail.Envelope{{LastError: strings.Repeat("x", imsg.MaxText)}}}
		fillUp(t, e.a, part)
		synctest.Wait() // the writer holds more than the peer takes, and takes no more itself
		fillUp(t, e.a, part)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begin := time.Now()
		if _, _, err := e.a.Call(ctx, &imsg.ReserveIDs{}, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		if took := time.Since(begin); took != time.Minute {
			t.Errorf("took %v", took)
		}
		if len(e.a.slots) != 0 {
			t.Errorf("%d slots taken", len(e.a.slots))
		}
	})
}

// A peer that asks and asks and reads no answer is not fed for ever.
func TestAnswersThatNobodyReads(t *testing.T) {
	noLeaks(t)
	conn, _, lost := raw(t, imsg.Queue, imsg.SMTP, func(r *Request) {
		r.Reply(&imsg.Injected{Status: mail.Status{Text: strings.Repeat("x", imsg.MaxText)}}, nil)
	})
	conn.SetWriteDeadline(time.Now().Add(bound))
	go func() {
		for id := uint32(1); ; id++ {
			if _, err := conn.Write(frame(t, &imsg.Inject{}, 0, id)); err != nil {
				return
			}
		}
	}()
	if _, ok := errors.AsType[*ProtocolError](receive(t, "lost", lost)); !ok {
		t.Fatal("not a violation")
	}
}

func TestCloseInTheMiddle(t *testing.T) {
	noLeaks(t)
	for range 50 {
		e := connect(t, imsg.SMTP, imsg.Queue)
		e.a.Serve(ignore, nil, nil)
		h, wait := Async(3, func(r *Request) { r.Reply(&imsg.ReservedIDs{}, nil) })
		e.b.Serve(h, nil, nil)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		answered := make(chan struct{}, 1)
		for range 20 {
			wg.Go(func() {
				for {
					_, err := Ask[*imsg.ReservedIDs](ctx, e.a, &imsg.ReserveIDs{})
					switch {
					case err == nil:
						select {
						case answered <- struct{}{}:
						default:
						}
					case errors.Is(err, ErrGone), errors.Is(err, ErrDown), errors.Is(err, context.Canceled):
						return
					default:
						t.Error(err)
						return
					}
				}
			})
		}
		for range 5 {
			receive(t, "answers", answered)
		}
		e.b.Close()
		eventually(t, "down", func() bool { return !e.a.Up() })
		cancel() // for those who wait for another peer
		within(t, "callers", wg.Wait)
		within(t, "handlers", wait)
		e.a.Close()
		if len(e.a.slots) != 0 {
			t.Fatalf("%d slots taken", len(e.a.slots))
		}
	}
}

func TestConnRefuses(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Conn(f); err == nil {
		t.Error("a file that is no socket was taken")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f, err = c.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Conn(f); err == nil {
		t.Error("a TCP connection was taken")
	}
}

func BenchmarkCall(b *testing.B) {
	e := connect(b, imsg.SMTP, imsg.Keys)
	e.a.Serve(ignore, nil, nil)
	e.b.Serve(func(r *Request) { r.Reply(&imsg.Signature{Data: r.Msg.(*imsg.Sign).Digest}, nil) }, nil, nil)
	m := &imsg.Sign{PKI: "mx", Digest: make([]byte, 32)}
	one := func() {
		if _, err := Ask[*imsg.Signature](context.Background(), e.a, m); err != nil {
			b.Error(err)
		}
	}
	b.Run("one", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			one()
		}
	})
	b.Run("fifty", func(b *testing.B) {
		b.ReportAllocs()
		b.SetParallelism(25)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				one()
			}
		})
	})
}

func BenchmarkSend(b *testing.B) {
	e := connect(b, imsg.Scheduler, imsg.Queue)
	e.a.Serve(ignore, nil, nil)
	e.b.Serve(ignore, nil, nil)
	m := &imsg.Attempt{IDs: []mail.EnvelopeID{1 << 40}}
	b.ReportAllocs()
	for b.Loop() {
		if err := e.a.Send(m, nil); err != nil {
			b.Fatal(err)
		}
	}
}
