package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"sync"
	"time"

	"smtpd/internal/mail"
)

// Bounds of the text in an envelope, in octets; those of the channels that
// bring them. Ours.
const (
	maxName = 1024
	maxText = 4096
)

// envelopeVersion is the first octet of an encoded envelope. A change of the
// fields is a new number, and decodeEnvelope goes on reading the old ones.
// The second has the sub-address at its end and is written where there is one.
const (
	envelopeVersion  = 1
	envelopeVersion2 = 2
)

// castagnoli is the table of the check sums. It is made when it is first needed:
// every process of the daemon holds this code, and only one uses it.
var castagnoli = sync.OnceValue(func() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) })

var (
	errCut      = errors.New("cut short, or a field over its bound")
	errLeftover = errors.New("octets left over")
	errVersion  = errors.New("unknown version")
	errKind     = errors.New("unknown kind")
)

// coder reads or writes fields in order. One description serves both ways, so
// what is written is what is read. After an error nothing more happens.
type coder struct {
	out     []byte
	in      string
	reading bool
	err     error
}

func (c *coder) fail() {
	if c.err == nil {
		c.err = errCut
	}
	c.in = ""
}

func (c *coder) uint(v, max uint64) uint64 {
	if c.err != nil {
		return 0
	}
	if !c.reading {
		if v > max {
			c.fail()
		}
		c.out = binary.AppendUvarint(c.out, v)
		return v
	}
	var x uint64
	for i := range min(len(c.in), binary.MaxVarintLen64) {
		b := c.in[i]
		if b >= 0x80 {
			x |= uint64(b&0x7f) << (7 * i)
			continue
		}
		x |= uint64(b) << (7 * i)
		if x > max || (i == binary.MaxVarintLen64-1 && b > 1) {
			break
		}
		c.in = c.in[i+1:]
		return x
	}
	c.fail()
	return 0
}

func num[T ~uint8 | ~uint16 | ~uint32 | ~uint64](c *coder, v *T) {
	*v = T(c.uint(uint64(*v), uint64(^T(0))))
}

func (c *coder) int64(v *int64) {
	u := uint64(*v)<<1 ^ uint64(*v>>63)
	u = c.uint(u, ^uint64(0))
	*v = int64(u>>1) ^ -int64(u&1)
}

func (c *coder) time(t *time.Time) {
	var n int64
	if !t.IsZero() {
		n = t.UnixNano()
	}
	c.int64(&n)
	if !c.reading {
		return
	}
	*t = time.Time{}
	if n != 0 {
		*t = time.Unix(0, n)
	}
}

// str is a string of at most max octets. What is read shares the memory of the
// whole item: an envelope is one allocation.
func (c *coder) str(s *string, max int) {
	n := int(c.uint(uint64(len(*s)), uint64(max)))
	if c.err != nil {
		return
	}
	if !c.reading {
		c.out = append(c.out, *s...)
		return
	}
	if n > len(c.in) {
		c.fail()
		return
	}
	*s, c.in = c.in[:n], c.in[n:]
}

func (c *coder) addr(a *mail.Address) {
	c.str(&a.User, mail.MaxLocalPart)
	c.str(&a.Domain, mail.MaxDomain)
}

// envelope is every field of a mail.Envelope but its id, which is the key.
func (c *coder) envelope(e *mail.Envelope) {
	num(c, &e.Kind)
	num(c, &e.Flags)
	for _, s := range []*string{&e.Dispatcher, &e.Tag, &e.SMTPName, &e.Helo, &e.Host, &e.Client, &e.Username} {
		c.str(s, maxName)
	}
	c.addr(&e.Sender)
	c.addr(&e.Rcpt)
	c.addr(&e.Dest)
	num(c, &e.DSN.Notify)
	num(c, &e.DSN.Ret)
	c.str(&e.DSN.EnvID, mail.MaxEnvID)
	c.str(&e.DSN.ORcpt, mail.MaxORcpt)
	c.str(&e.User, maxName)
	c.str(&e.Home, maxText)
	c.str(&e.Exec, maxText)
	c.time(&e.Created)
	c.int64((*int64)(&e.TTL))
	c.time(&e.LastTry)
	num(c, &e.Retry)
	code := uint16(e.LastStatus.Code)
	num(c, &code)
	e.LastStatus.Code = int(code)
	for i := range e.LastStatus.Enh {
		num(c, &e.LastStatus.Enh[i])
	}
	c.str(&e.LastStatus.Text, maxText)
	c.str(&e.LastError, maxText)
	c.str(&e.RemoteMTA, maxName)
	num(c, &e.DelayNotices)
	num(c, &e.Notice)
	c.int64((*int64)(&e.NoticeDelay))
}

// appendEnvelope encodes e, or says why it cannot be stored.
func appendEnvelope(b []byte, e *mail.Envelope) ([]byte, error) {
	c := coder{out: append(b, envelopeVersion)}
	c.envelope(e)
	if e.SubAddr != "" {
		c.out[len(b)] = envelopeVersion2
		c.str(&e.SubAddr, mail.MaxLocalPart)
	}
	if c.err != nil {
		return b, fmt.Errorf("%w: %w", ErrInvalid, c.err)
	}
	return c.out, nil
}

// decodeEnvelope reads what appendEnvelope wrote.
func decodeEnvelope(id mail.EnvelopeID, b []byte) (mail.Envelope, error) {
	e := mail.Envelope{ID: id}
	if len(b) == 0 || (b[0] != envelopeVersion && b[0] != envelopeVersion2) {
		return e, errVersion
	}
	c := coder{in: string(b[1:]), reading: true}
	c.envelope(&e)
	if b[0] == envelopeVersion2 {
		if c.str(&e.SubAddr, mail.MaxLocalPart); e.SubAddr == "" {
			c.fail()
		}
	}
	switch {
	case c.err != nil:
		return e, c.err
	case c.in != "":
		return e, errLeftover
	case e.Kind < mail.KindMDA || e.Kind > mail.KindBounce:
		return e, errKind
	}
	return e, nil
}

// checkText refuses an envelope with a control octet in a field: such a one
// could forge lines in the log, in listings and in notices. A command or file of
// an alias may hold tabs, as its author wrote it.
func checkText(e *mail.Envelope) error {
	for _, s := range []string{e.Dispatcher, e.Tag, e.SMTPName, e.Helo, e.Host, e.Client, e.Username,
		e.Sender.User, e.Sender.Domain, e.Rcpt.User, e.Rcpt.Domain, e.Dest.User, e.Dest.Domain,
		e.DSN.EnvID, e.DSN.ORcpt, e.User, e.Home, strings.ReplaceAll(e.Exec, "\t", " "), e.SubAddr,
		e.LastStatus.Text, e.LastError, e.RemoteMTA} {
		for i := range len(s) {
			if s[i] < ' ' || s[i] == 0x7f {
				return fmt.Errorf("%w: a control octet in a field: %s", ErrInvalid, mail.Clean(s, 64))
			}
		}
	}
	if e.Kind < mail.KindMDA || e.Kind > mail.KindBounce {
		return fmt.Errorf("%w: %w", ErrInvalid, errKind)
	}
	return nil
}

// record is a message without body and envelopes, the value in bucket msg.
type record struct {
	size    int64
	sum     uint32 // CRC32C of the body as the sender gave it
	arrival time.Time
	rcpts   uint32 // envelopes it was accepted with
	next    uint32 // number of the next envelope that is added
	stored  uint8  // how a body in a file is stored: storedPlain, ...
	inFile  bool
}

const recordVersion = 1

func (c *coder) record(r *record) {
	c.int64(&r.size)
	num(c, &r.sum)
	c.time(&r.arrival)
	num(c, &r.rcpts)
	num(c, &r.next)
	num(c, &r.stored)
	var in uint8
	if r.inFile {
		in = 1
	}
	num(c, &in)
	r.inFile = in == 1
}

func (r *record) encode() []byte {
	c := coder{out: append(make([]byte, 0, 48), recordVersion)}
	c.record(r)
	return c.out
}

func decodeRecord(b []byte) (record, error) {
	var r record
	if len(b) == 0 || b[0] != recordVersion {
		return r, errVersion
	}
	c := coder{in: string(b[1:]), reading: true}
	c.record(&r)
	if c.err == nil && c.in != "" {
		c.err = errLeftover
	}
	if c.err == nil && (r.size < 0 || r.next == 0) {
		c.err = errCut
	}
	return r, c.err
}

func envKey(id mail.EnvelopeID) []byte { return binary.BigEndian.AppendUint64(nil, uint64(id)) }

func msgKey(id mail.MessageID) []byte { return binary.BigEndian.AppendUint32(nil, uint32(id)) }
