package table

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// The binary protocol of opensmtpd-extras: imsg frames in the byte order of the
// machine, one question at a time.
const (
	binaryVersion = 2
	binaryHeader  = 16    // type u32, length u16 with the header, flags u16, peer u32, pid u32
	binaryMax     = 16384 // the longest frame
	binaryName    = 2048  // the field of a table's name

	binaryOK     = 0
	binaryFail   = 1
	binaryOpen   = 2
	binaryUpdate = 4
	binaryCheck  = 5
	binaryLookup = 6
	binaryFetch  = 7
)

// binaryServices are those that the protocol has numbers for; a program does
// not say which it offers.
const binaryServices = Regex - 1

// binaryTalk is a dialogue in the binary protocol.
type binaryTalk struct {
	conn  net.Conn
	child context.Context // ends with the program
	asked sync.WaitGroup  // questions under way

	mu    sync.Mutex // one question at a time
	cause error      // why no more can be asked
	over  chan struct{}
}

// openBinary greets a program in the binary protocol. io.EOF: it does not speak
// it.
func openBinary(c *child, name string) (dialogue, error) {
	b := &binaryTalk{conn: c.conn, child: c.over, over: make(chan struct{})}
	payload := make([]byte, 4+binaryName)
	binary.NativeEndian.PutUint32(payload, binaryVersion)
	if len(name) >= binaryName {
		return nil, errAnswer
	}
	copy(payload[4:], name)
	answer, err := b.exchange(binaryOpen, payload, handshakeTime)
	if err != nil {
		return nil, err
	}
	if len(answer) != 0 {
		return nil, fmt.Errorf("%w: %d octets after opening", errAnswer, len(answer))
	}
	return b, nil
}

// exchange sends one frame and reads the answer's payload.
func (b *binaryTalk) exchange(typ uint32, payload []byte, limit time.Duration) ([]byte, error) {
	if err := b.conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return nil, err
	}
	frame := make([]byte, binaryHeader, binaryHeader+len(payload))
	binary.NativeEndian.PutUint32(frame, typ)
	binary.NativeEndian.PutUint16(frame[4:], uint16(binaryHeader+len(payload)))
	binary.NativeEndian.PutUint32(frame[12:], uint32(os.Getpid()))
	if _, err := b.conn.Write(append(frame, payload...)); err != nil {
		return nil, err
	}
	return readFrame(b.conn)
}

// readFrame reads one answer.
func readFrame(r io.Reader) ([]byte, error) {
	var head [binaryHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := int(binary.NativeEndian.Uint16(head[4:]))
	if n < binaryHeader || n > binaryMax {
		return nil, fmt.Errorf("%w: a frame of %d octets", errAnswer, n)
	}
	payload := make([]byte, n-binaryHeader)
	if _, err := io.ReadFull(r, payload); err != nil {
		return nil, err
	}
	if typ := binary.NativeEndian.Uint32(head[:]); typ != binaryOK {
		return nil, fmt.Errorf("%w: answer of type %d", errAnswer, typ)
	}
	return payload, nil
}

func (b *binaryTalk) services() Service { return binaryServices }

func (b *binaryTalk) parallel() int { return 1 }

// run waits for the end: of the program, or of its wits.
func (b *binaryTalk) run() error {
	select {
	case <-b.over:
	case <-b.child.Done():
	}
	b.conn.Close() // who waits for an answer gets none
	b.asked.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cause == nil {
		return io.EOF
	}
	return b.cause
}

func (b *binaryTalk) ask(ctx context.Context, op operation, s Service, key string) (string, bool, error) {
	done := make(chan reply, 1)
	b.asked.Go(func() { done <- b.question(op, s, key) }) // ends within answerTime, whoever waits
	select {
	case r := <-done:
		return r.value, r.found, r.err
	case <-ctx.Done():
		return "", false, ctx.Err()
	}
}

func (b *binaryTalk) question(op operation, s Service, key string) reply {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cause != nil {
		return reply{err: errEnded}
	}
	typ, payload := encodeQuestion(op, s, key)
	answer, err := b.exchange(typ, payload, answerTime)
	if err == nil {
		var r reply
		if r, err = decodeAnswer(op, answer); err == nil {
			return r
		}
	}
	b.cause = err
	close(b.over)
	return reply{err: errEnded}
}

func encodeQuestion(op operation, s Service, key string) (typ uint32, payload []byte) {
	if op == opUpdate {
		return binaryUpdate, nil
	}
	payload = binary.NativeEndian.AppendUint32(nil, uint32(s))
	payload = binary.NativeEndian.AppendUint64(payload, 0)
	switch op {
	case opFetch:
		return binaryFetch, payload
	case opCheck:
		typ = binaryCheck
	default:
		typ = binaryLookup
	}
	payload = append(payload, key...)
	return typ, append(payload, 0)
}

// decodeAnswer reads the payload of an answer: 1 found, 0 not, -1 trouble; a
// value ends in NUL.
func decodeAnswer(op operation, p []byte) (reply, error) {
	if len(p) < 4 {
		return reply{}, fmt.Errorf("%w: an answer of %d octets", errAnswer, len(p))
	}
	switch code := int32(binary.NativeEndian.Uint32(p)); {
	case code < 0:
		return reply{err: errGarbled}, nil
	case code == 0:
		return reply{}, nil
	}
	if op == opCheck || op == opUpdate {
		return reply{found: true}, nil
	}
	value := p[4:]
	if n := len(value); n == 0 || bytes.IndexByte(value, 0) != n-1 {
		return reply{}, fmt.Errorf("%w: a value without its end", errAnswer)
	}
	return reply{value: string(value[:len(value)-1]), found: true}, nil
}
