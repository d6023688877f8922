package ipc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"smtpd/internal/imsg"
	"smtpd/internal/mail"
)

// raw is a link whose peer is the test, octet by octet. The link is self's.
func raw(t testing.TB, peer, self imsg.Role, h Handler) (*net.UnixConn, *Link, <-chan error) {
	t.Helper()
	fa, fb, err := Socketpair()
	if err != nil {
		t.Fatal(err)
	}
	defer fa.Close()
	c, err1 := net.FileConn(fa)
	theirs, err2 := Conn(fb)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	ours := c.(*net.UnixConn)
	l := NewLink(self, peer)
	lost := make(chan error, 1)
	var told error // must be the same
	l.Violation = func(err error) { told = err }
	l.Serve(h, nil, func(err error) {
		if pe, _ := errors.AsType[*ProtocolError](err); (pe != nil || told != nil) && !errors.Is(told, err) {
			t.Errorf("Violation was told of %v; onLost of %v", told, err)
		}
		lost <- err
	})
	l.Attach(theirs)
	t.Cleanup(func() { ours.Close(); l.Close() })
	return ours, l, lost
}

// frame is m on the wire.
func frame(t testing.TB, m imsg.Msg, flags uint16, id uint32) []byte {
	t.Helper()
	b, err := imsg.Append(make([]byte, headerLen), m)
	if err != nil {
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint32(b, uint32(len(b)))
	binary.LittleEndian.PutUint16(b[4:], uint16(m.Type()))
	binary.LittleEndian.PutUint16(b[6:], flags)
	binary.LittleEndian.PutUint32(b[8:], id)
	return b
}

// with is b with some of its octets replaced.
func with(b []byte, at int, octets ...byte) []byte {
	c := bytes.Clone(b)
	copy(c[at:], octets)
	return c
}

func TestViolations(t *testing.T) {
	noLeaks(t)
	sign := &imsg.Sign{PKI: "mx", Digest: []byte("d")}
	good := frame(t, sign, 0, 7)
	tests := map[string]struct {
		b    []byte
		want error
	}{
		"length below the header":  {with(good, 0, headerLen-1, 0, 0, 0), errLength},
		"length of zero":           {with(good, 0, 0, 0, 0, 0), errLength},
		"length over the bound":    {with(good, 0, 1, 0, 16, 0), errLength},
		"the largest length":       {with(good, 0, 255, 255, 255, 255), errLength},
		"unknown flags":            {with(good, 6, 4), errFlags},
		"flags in the high octet":  {with(good, 6, 0, 128), errFlags},
		"unknown type":             {with(good, 4, 255, 255), ErrLaw},
		"type zero":                {with(good, 4, 0, 0), ErrLaw},
		"type of another edge":     {frame(t, &imsg.Inject{}, 0, 7), ErrLaw},
		"an answer as a request":   {frame(t, &imsg.Signature{}, 0, 7), ErrLaw},
		"a call without an id":     {frame(t, sign, 0, 0), ErrLaw},
		"cut fields":               {with(good[:len(good)-1], 0, byte(len(good)-1)), imsg.ErrShort},
		"leftover octets":          {with(append(bytes.Clone(good), 0), 0, byte(len(good)+1)), imsg.ErrLeftover},
		"an answer to nothing":     {frame(t, &imsg.Signature{}, flagReply, 7), errUnasked},
		"an answer to id zero":     {frame(t, &imsg.Signature{}, flagReply, 0), errUnasked},
		"the same id twice":        {append(bytes.Clone(good), good...), errTooMany},
		"a descriptor is missing":  {with(good, 6, flagFile), errNoFile},
		"a bad frame after a good": {append(frame(t, sign, 0, 8), with(good, 6, 8)...), errFlags},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			conn, _, lost := raw(t, imsg.SMTP, imsg.Keys, ignore)
			if _, err := conn.Write(tt.b); err != nil {
				t.Fatal(err)
			}
			err := receive(t, "lost", lost)
			if _, ok := errors.AsType[*ProtocolError](err); !ok || !errors.Is(err, tt.want) {
				t.Fatalf("got %v; want %v", err, tt.want)
			}
			conn.SetReadDeadline(time.Now().Add(bound))
			if n, err := conn.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("the channel is open: %d, %v", n, err)
			}
		})
	}
}

func TestOneWayWithAnId(t *testing.T) {
	conn, _, lost := raw(t, imsg.Scheduler, imsg.Queue, ignore)
	if _, err := conn.Write(frame(t, &imsg.LoadAll{}, 0, 1)); err != nil {
		t.Fatal(err)
	}
	if err := receive(t, "lost", lost); !errors.Is(err, ErrLaw) {
		t.Fatal(err)
	}
}

// The answer to a call is of the wrong type, or cannot be read: the caller is
// told at once.
func TestBadAnswers(t *testing.T) {
	noLeaks(t)
	tests := map[string][]byte{
		"another type": frame(t, &imsg.Count{}, flagReply, 1),
		"unreadable":   with(frame(t, &imsg.Signature{}, flagReply, 1), headerLen, 200),
		"unknown type": with(frame(t, &imsg.Signature{}, flagReply, 1), 4, 255, 255),
	}
	for name, b := range tests {
		t.Run(name, func(t *testing.T) {
			conn, l, lost := raw(t, imsg.Keys, imsg.SMTP, ignore)
			errs := make(chan error, 1)
			go func() { _, err := Ask[*imsg.Signature](t.Context(), l, &imsg.Sign{}); errs <- err }()
			conn.SetReadDeadline(time.Now().Add(bound))
			if _, err := conn.Read(make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write(b); err != nil {
				t.Fatal(err)
			}
			if err := receive(t, "Call", errs); !errors.Is(err, ErrGone) {
				t.Fatalf("the caller: %v", err)
			}
			if _, ok := errors.AsType[*ProtocolError](receive(t, "lost", lost)); !ok {
				t.Fatal("not a violation")
			}
			if len(l.slots) != 0 {
				t.Fatalf("%d slots taken", len(l.slots))
			}
		})
	}
}

func TestTooManyOpenCalls(t *testing.T) {
	conn, _, lost := raw(t, imsg.SMTP, imsg.Keys, ignore)
	var b []byte
	for id := uint32(1); id <= 2*maxCalls+2; id++ {
		b = append(b, frame(t, &imsg.Sign{}, 0, id)...)
	}
	go conn.Write(b)
	if err := receive(t, "lost", lost); !errors.Is(err, errTooMany) {
		t.Fatal(err)
	}
}

// The end of the channel in the middle of a frame is no breach: the peer died.
func TestEndInTheMiddle(t *testing.T) {
	noLeaks(t)
	b := frame(t, &imsg.Sign{PKI: "mx"}, 0, 1)
	for n := range len(b) {
		conn, _, lost := raw(t, imsg.SMTP, imsg.Keys, ignore)
		if _, err := conn.Write(b[:n]); err != nil {
			t.Fatal(err)
		}
		conn.Close()
		if pe, ok := errors.AsType[*ProtocolError](receive(t, "lost", lost)); ok {
			t.Fatalf("after %d octets: %v", n, pe)
		}
	}
}

// Frames arrive in whatever pieces.
func TestPieces(t *testing.T) {
	noLeaks(t)
	got := make(chan int, 100)
	conn, _, _ := raw(t, imsg.Scheduler, imsg.Queue, func(r *Request) { got <- len(r.Msg.(*imsg.Attempt).IDs) })
	sizes := []int{0, 1, 100, imsg.MaxItems, 3}
	for piece := 1; piece < 1<<20; piece = piece*7 + 1 {
		var b []byte
		for _, n := range sizes {
			b = append(b, frame(t, &imsg.Attempt{IDs: make([]mail.EnvelopeID, n)}, 0, 0)...)
		}
		go func() {
			for len(b) > 0 {
				n, err := conn.Write(b[:min(piece, len(b))])
				if err != nil {
					t.Error(err)
					return
				}
				b = b[n:]
			}
		}()
		for _, n := range sizes {
			if g := receive(t, "imsg", got); g != n {
				t.Fatalf("pieces of %d: got %d ids; want %d", piece, g, n)
			}
		}
	}
}

// sendFiles sends b with n descriptors of /dev/null.
func sendFiles(t *testing.T, conn *net.UnixConn, b []byte, n int) {
	t.Helper()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fds := make([]int, n)
	for i := range fds {
		fds[i] = int(f.Fd())
	}
	if _, _, err := conn.WriteMsgUnix(b, unix.UnixRights(fds...), nil); err != nil {
		t.Fatal(err)
	}
}

func TestUnannouncedDescriptors(t *testing.T) {
	noLeaks(t)
	b := frame(t, &imsg.DeliverRun{}, 0, 1)
	tests := map[string]func(*net.UnixConn){
		"more at once than one may": func(c *net.UnixConn) { sendFiles(t, c, b[:1], 40) },
		"one by one": func(c *net.UnixConn) {
			long := frame(t, &imsg.DeliverRun{Inline: make([]byte, 1000)}, 0, 1)
			for i := range maxFiles + 1 {
				sendFiles(t, c, long[i:i+1], 1)
			}
		},
		"with an imsg that carries none": func(c *net.UnixConn) {
			sendFiles(t, c, with(frame(t, &imsg.DeliverRun{}, 0, 1), 4, byte(imsg.TypeSign)), 1)
		},
	}
	for name, send := range tests {
		t.Run(name, func(t *testing.T) {
			conn, _, lost := raw(t, imsg.MDA, imsg.Deliver, func(r *Request) { closeFile(r.File) })
			send(conn)
			if _, ok := errors.AsType[*ProtocolError](receive(t, "lost", lost)); !ok {
				t.Fatal("not a violation")
			}
		})
	}
}

// A descriptor where none is foreseen would stay open.
func TestDescriptorWithoutCarrier(t *testing.T) {
	noLeaks(t)
	conn, _, lost := raw(t, imsg.SMTP, imsg.Keys, ignore)
	sendFiles(t, conn, frame(t, &imsg.Sign{}, flagFile, 1), 1)
	if err := receive(t, "lost", lost); !errors.Is(err, errNoFile) {
		t.Fatal(err)
	}
}

// FuzzFrames feeds the frame reader: it takes frames or ends the channel, and
// whatever it took was allowed.
func FuzzFrames(f *testing.F) {
	f.Add(frame(f, &imsg.LoadAll{}, 0, 0))
	f.Add(frame(f, &imsg.Attempt{IDs: []mail.EnvelopeID{1, 2}}, 0, 0))
	f.Add(append(frame(f, &imsg.LoadAll{}, 0, 0), frame(f, &imsg.Remove{}, 0, 0)...))
	f.Add(frame(f, &imsg.Count{}, flagReply, 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 8<<10 {
			return // the socket's buffer holds it all
		}
		conn, _, lost := raw(t, imsg.Scheduler, imsg.Queue, func(r *Request) {
			if !imsg.May(imsg.Scheduler, imsg.Queue, r.Msg.Type()) || r.File != nil {
				t.Errorf("took %T", r.Msg)
			}
		})
		if _, err := conn.Write(b); err != nil && !errors.Is(err, unix.EPIPE) {
			t.Fatal(err)
		}
		conn.Close()
		receive(t, "lost", lost)
	})
}

func TestCallTimeoutIsSet(t *testing.T) {
	conn, l, _ := raw(t, imsg.Keys, imsg.SMTP, ignore)
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error, 1)
	go func() { _, err := Ask[*imsg.Signature](ctx, l, &imsg.Sign{}); errs <- err }()
	conn.SetReadDeadline(time.Now().Add(bound))
	if _, err := conn.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := receive(t, "Call", errs); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}
