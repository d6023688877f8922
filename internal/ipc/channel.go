package ipc

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"runtime"
	"sync"

	"smtpd/internal/imsg"
)

// A frame is, little endian, len u32 | type u16 | flags u16 | id u32 | fields.
const (
	headerLen = 12
	flagReply = 1 // answers the call with this id
	flagFile  = 2 // a descriptor came with the first octet
	readSize  = 32 << 10
	maxFiles  = 64 // ours: descriptors that may be ahead of their frames
	// maxUnread is how many octets of answers wait for a peer that goes on
	// asking and does not read them. Ours: many times what a healthy one leaves.
	maxUnread = 64 << 20
)

var (
	errLength   = errors.New("frame length out of bounds")
	errFlags    = errors.New("unknown flags")
	errNoFile   = errors.New("a descriptor is missing, or one too many")
	errFiles    = errors.New("descriptors that nobody announced")
	errUnasked  = errors.New("an answer to nothing")
	errTooMany  = errors.New("too many open calls")
	errUnread   = errors.New("answers that nobody reads")
	errTooLarge = errors.New("ipc: imsg larger than a frame")
)

// channel is one socketpair end, from Attach until it fails.
type channel struct {
	l    *Link
	conn wire

	once sync.Once // starting

	mu     sync.Mutex
	calls  map[uint32]*call    // ours that wait for an answer
	served map[uint32]struct{} // the peer's that wait for ours
	nextID uint32
	failed error

	wmu   sync.Mutex
	wcond *sync.Cond
	out   []byte
	files []outFile
	ended bool
}

// call keeps one of Link.slots until it is answered, even when the caller has
// given up: it is open with the peer still, which counts it.
type call struct {
	want imsg.Type
	done chan answer // buffered; nil once the caller has given up
}

type answer struct {
	m   imsg.Msg
	f   *os.File
	err error
}

// outFile is a descriptor to be sent with the octet at offset at of out.
type outFile struct {
	at int
	f  *os.File
}

func newChannel(l *Link, conn wire) *channel {
	ch := &channel{l: l, conn: conn, calls: map[uint32]*call{}, served: map[uint32]struct{}{}}
	ch.wcond = sync.NewCond(&ch.wmu)
	go ch.writer() // ends when the channel fails
	return ch
}

// start begins to read; the reader ends when the channel fails.
func (ch *channel) start(h Handler, onAttach func()) {
	ch.once.Do(func() {
		go func() {
			if onAttach != nil {
				onAttach()
			}
			ch.l.greeted(ch)
			ch.fail(ch.read(h))
		}()
	})
}

// fail ends the channel once; everyone who waits is told.
func (ch *channel) fail(err error) {
	ch.mu.Lock()
	if ch.failed != nil {
		ch.mu.Unlock()
		return
	}
	ch.failed = err
	calls := ch.calls
	ch.calls = nil
	ch.mu.Unlock()

	ch.wmu.Lock()
	ch.ended = true
	for _, o := range ch.files {
		o.f.Close()
	}
	ch.files, ch.out = nil, nil
	ch.wcond.Broadcast()
	ch.wmu.Unlock()

	ch.conn.close()
	for _, c := range calls {
		ch.finish(c, answer{err: ErrGone})
	}
	ch.l.lost(ch, err)
}

// finish ends a call that was taken out of ch.calls.
func (ch *channel) finish(c *call, a answer) {
	<-ch.l.slots
	if c.done != nil {
		c.done <- a
	} else {
		closeFile(a.f)
	}
}

// answered forgets the peer's call id and reports whether it was open.
func (ch *channel) answered(id uint32) bool {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	_, ok := ch.served[id]
	delete(ch.served, id)
	return ok
}

// call owns the slot that its caller took.
func (ch *channel) call(ctx context.Context, m imsg.Msg, f *os.File) (imsg.Msg, *os.File, error) {
	c := &call{want: imsg.ReplyOf(m.Type()), done: make(chan answer, 1)}
	ch.mu.Lock()
	if ch.failed != nil {
		ch.mu.Unlock()
		closeFile(f)
		<-ch.l.slots
		return nil, nil, ErrGone
	}
	for {
		ch.nextID++
		if _, used := ch.calls[ch.nextID]; !used && ch.nextID != 0 {
			break
		}
	}
	id := ch.nextID
	ch.calls[id] = c
	ch.mu.Unlock()

	if err := ch.post(ctx, m, 0, id, f); err != nil {
		closeFile(f)
		ch.mu.Lock()
		_, open := ch.calls[id]
		delete(ch.calls, id)
		ch.mu.Unlock()
		if open { // else the channel has failed, and finished it
			<-ch.l.slots
		}
		return nil, nil, err
	}
	select {
	case a := <-c.done:
		return a.m, a.f, a.err
	case <-ctx.Done():
	}
	return ch.abandon(id, c, ctx.Err())
}

// abandon leaves a tombstone, so that a late answer is known and dropped.
func (ch *channel) abandon(id uint32, c *call, err error) (imsg.Msg, *os.File, error) {
	ch.mu.Lock()
	if ch.calls != nil && ch.calls[id] == c {
		ch.calls[id] = &call{want: c.want}
		ch.mu.Unlock()
		return nil, nil, err
	}
	ch.mu.Unlock()
	a := <-c.done // it came at the same moment
	return a.m, a.f, a.err
}

// post queues one frame. On success it has taken f over.
func (ch *channel) post(ctx context.Context, m imsg.Msg, flags uint16, id uint32, f *os.File) error {
	ch.wmu.Lock()
	defer ch.wmu.Unlock()
	if flags&flagReply == 0 {
		ch.waitForRoom(ctx)
	} else if len(ch.out) > maxUnread {
		return errUnread
	}
	if ch.ended {
		return ErrGone
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	start := len(ch.out)
	if f != nil {
		flags |= flagFile
	}
	b := append(ch.out, make([]byte, headerLen)...)
	binary.LittleEndian.PutUint16(b[start+4:], uint16(m.Type()))
	binary.LittleEndian.PutUint16(b[start+6:], flags)
	binary.LittleEndian.PutUint32(b[start+8:], id)
	b, err := imsg.Append(b, m)
	if err == nil && len(b)-start > imsg.MaxFrame {
		err = errTooLarge
	}
	if err != nil {
		ch.out = b[:start]
		return err
	}
	binary.LittleEndian.PutUint32(b[start:], uint32(len(b)-start))
	ch.out = b
	if f != nil {
		ch.files = append(ch.files, outFile{start, f})
	}
	if start == 0 {
		ch.wcond.Broadcast()
	}
	return nil
}

// waitForRoom holds wmu, and waits while too much is to be written.
func (ch *channel) waitForRoom(ctx context.Context) {
	if len(ch.out) <= maxBacklog {
		return
	}
	stop := context.AfterFunc(ctx, func() {
		ch.wmu.Lock()
		defer ch.wmu.Unlock()
		ch.wcond.Broadcast()
	})
	defer stop()
	for len(ch.out) > maxBacklog && !ch.ended && ctx.Err() == nil {
		ch.wcond.Wait()
	}
}

// keepBuffer is the largest output buffer that is kept for the next round.
const keepBuffer = 64 << 10

func (ch *channel) writer() {
	var spare []byte
	for {
		ch.wmu.Lock()
		for len(ch.out) == 0 && !ch.ended {
			ch.wcond.Wait()
		}
		// Whoever could run by now goes first: what they have to say goes with
		// this, in one write that wakes the peer once. Who is alone waits for
		// nobody.
		ch.wmu.Unlock()
		runtime.Gosched()
		ch.wmu.Lock()
		if ch.ended {
			ch.wmu.Unlock()
			return
		}
		b, files := ch.out, ch.files
		ch.out, ch.files = spare[:0], nil
		ch.wcond.Broadcast() // room for those who wait in post
		ch.wmu.Unlock()
		err := ch.write(b, files)
		if err != nil {
			ch.fail(err)
			return
		}
		if spare = b; cap(b) > keepBuffer {
			spare = nil
		}
	}
}

// write sends b, and each file with the first octet of its frame.
func (ch *channel) write(b []byte, files []outFile) error {
	off := 0
	for i, o := range files {
		err := ch.writeAll(b[off:o.at])
		if err == nil {
			err = ch.conn.writeFile(b[o.at:o.at+1], o.f)
		}
		o.f.Close()
		if err != nil {
			for _, rest := range files[i+1:] {
				rest.f.Close()
			}
			return err
		}
		off = o.at + 1
	}
	return ch.writeAll(b[off:])
}

func (ch *channel) writeAll(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	return ch.conn.write(b)
}

// read serves the peer until the channel ends; what the peer did wrong comes
// back as a *ProtocolError.
func (ch *channel) read(h Handler) error {
	buf := make([]byte, readSize)
	have := 0
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	for {
		n, got, err := ch.conn.read(buf[have:])
		if files = append(files, got...); len(files) > maxFiles {
			return &ProtocolError{errFiles}
		}
		if pe, ok := errors.AsType[*ProtocolError](err); ok {
			return pe
		}
		if err != nil || n == 0 {
			return io.EOF
		}
		have += n
		used := 0
		for {
			l, err := frameLen(buf[used:have])
			if err != nil {
				return &ProtocolError{err}
			}
			if l == 0 || have-used < l {
				break
			}
			if files, err = ch.frame(buf[used:used+l], files, h); err != nil {
				return &ProtocolError{err}
			}
			used += l
		}
		buf, have = compact(buf, used, have)
	}
}

// frameLen is the length of the frame at the start of b; 0: not known yet.
func frameLen(b []byte) (int, error) {
	if len(b) < 4 {
		return 0, nil
	}
	l := binary.LittleEndian.Uint32(b)
	if l < headerLen || l > imsg.MaxFrame {
		return 0, errLength
	}
	return int(l), nil
}

// compact moves what is left to the front, in a buffer large enough for the
// frame that has begun and no larger than needed.
func compact(buf []byte, used, have int) ([]byte, int) {
	rest := buf[used:have]
	want := readSize
	if l, _ := frameLen(rest); l > want {
		want = l
	}
	if want > len(buf) || (want == readSize && len(buf) > keepBuffer) {
		nb := make([]byte, want)
		return nb, copy(nb, rest)
	}
	return buf, copy(buf, rest)
}

// frame handles one whole frame.
func (ch *channel) frame(b []byte, files []*os.File, h Handler) ([]*os.File, error) {
	t := imsg.Type(binary.LittleEndian.Uint16(b[4:]))
	flags := binary.LittleEndian.Uint16(b[6:])
	id := binary.LittleEndian.Uint32(b[8:])
	if flags&^(flagReply|flagFile) != 0 {
		return files, errFlags
	}
	var f *os.File
	if flags&flagFile != 0 {
		if len(files) == 0 || !imsg.MayCarry(t) {
			return files, errNoFile
		}
		f, files = files[0], files[1:]
	}
	var err error
	if flags&flagReply != 0 {
		err = ch.reply(t, id, b[headerLen:], f)
	} else {
		err = ch.request(t, id, b[headerLen:], f, h)
	}
	if err != nil {
		closeFile(f)
	}
	return files, err
}

func (ch *channel) reply(t imsg.Type, id uint32, b []byte, f *os.File) error {
	ch.mu.Lock()
	c := ch.calls[id]
	delete(ch.calls, id)
	failed := ch.failed != nil
	ch.mu.Unlock()
	if failed {
		closeFile(f)
		return nil
	}
	if c == nil {
		return errUnasked
	}
	m, err := imsg.Decode(t, b)
	if c.want != t {
		err = errUnasked
	}
	if err != nil {
		ch.finish(c, answer{err: ErrGone})
		return err
	}
	ch.finish(c, answer{m: m, f: f})
	return nil
}

func (ch *channel) request(t imsg.Type, id uint32, b []byte, f *os.File, h Handler) error {
	if !imsg.May(ch.l.Peer, ch.l.Self, t) || (imsg.ReplyOf(t) != 0) != (id != 0) {
		return ErrLaw
	}
	m, err := imsg.Decode(t, b)
	if err != nil {
		return err
	}
	if id != 0 {
		ch.mu.Lock()
		_, open := ch.served[id]
		n := len(ch.served)
		ch.served[id] = struct{}{}
		ch.mu.Unlock()
		if open || n > 2*maxCalls { // twice: calls that were given up are open here still
			return errTooMany
		}
	}
	h(&Request{Msg: m, File: f, id: id, ch: ch})
	return nil
}
