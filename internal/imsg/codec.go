package imsg

import (
	"encoding/binary"
	"errors"
	"time"
)

// Bounds on what a frame may hold. A field over its bound, or a length that
// the frame does not hold, breaks the protocol.
const (
	MaxFrame  = 1 << 20   // ours: a whole frame, header included, in octets
	MaxInline = 64 << 10  // ours: a body that travels inside a frame (DESIGN section 4)
	MaxName   = 1024      // ours: names of tables, actions, users, hosts
	MaxText   = 4096      // ours: error lines, commands, paths
	MaxData   = 256 << 10 // ours: one part of something that travels in parts
	MaxItems  = 4096      // ours: items of a list in one frame
)

// Errors that decoding reports.
var (
	ErrShort    = errors.New("imsg: a field is cut short or over its bound")
	ErrLeftover = errors.New("imsg: octets left over after the last field")
	ErrKind     = errors.New("imsg: unknown kind")
)

// Codec reads or writes the fields of one imsg in order. The same method of an
// imsg serves both directions, so what is written is what is read. After the
// first error all further fields are left alone; see Err.
type Codec struct {
	b       []byte
	reading bool
	err     error
}

// Append adds the fields of m to b. It fails on a field over its bound.
func Append(b []byte, m Msg) ([]byte, error) {
	c := Codec{b: b}
	m.Fields(&c)
	return c.b, c.err
}

// Decode makes the imsg of kind t from b. What it returns does not refer to b.
func Decode(t Type, b []byte) (Msg, error) {
	m := t.make()
	if m == nil {
		return nil, ErrKind
	}
	c := Codec{b: b, reading: true}
	m.Fields(&c)
	if c.err == nil && len(c.b) != 0 {
		c.err = ErrLeftover
	}
	if c.err != nil {
		return nil, c.err
	}
	return m, nil
}

// Reading tells the direction; only list helpers need it.
func (c *Codec) Reading() bool { return c.reading }

func (c *Codec) fail() {
	if c.err == nil {
		c.err = ErrShort
	}
	if c.reading {
		c.b = nil
	}
}

func (c *Codec) uvarint(v, max uint64) uint64 {
	if c.err != nil {
		return 0
	}
	if !c.reading {
		if v > max {
			c.fail()
			return v
		}
		c.b = binary.AppendUvarint(c.b, v)
		return v
	}
	v, n := binary.Uvarint(c.b)
	if n <= 0 || v > max {
		c.fail()
		return 0
	}
	c.b = c.b[n:]
	return v
}

// unsigned is any unsigned integer.
type unsigned interface {
	~uint8 | ~uint16 | ~uint32 | ~uint64
}

// Uint is one unsigned integer, bounded by its type.
func Uint[T unsigned](c *Codec, v *T) {
	u := c.uvarint(uint64(*v), uint64(^T(0)))
	if c.reading { // writing touches nothing: others may be reading it
		*v = T(u)
	}
}

// Int is one signed integer.
func (c *Codec) Int(v *int64) {
	u := c.uvarint(uint64(*v)<<1^uint64(*v>>63), ^uint64(0))
	if c.reading {
		*v = int64(u>>1) ^ -int64(u&1)
	}
}

// Count is a number that is never negative, at most max.
func (c *Codec) Count(v *int, max int) {
	if *v < 0 {
		c.fail()
		return
	}
	u := c.uvarint(uint64(*v), uint64(max))
	if c.reading {
		*v = int(u)
	}
}

// Bool is one octet.
func (c *Codec) Bool(v *bool) {
	var u uint64
	if *v {
		u = 1
	}
	u = c.uvarint(u, 1)
	if c.reading {
		*v = u == 1
	}
}

// Time is nanoseconds since 1970; the zero Time is kept.
func (c *Codec) Time(t *time.Time) {
	var n int64
	if !t.IsZero() {
		n = t.UnixNano()
	}
	c.Int(&n)
	if c.reading {
		*t = time.Time{}
		if n != 0 {
			*t = time.Unix(0, n)
		}
	}
}

// Duration is nanoseconds.
func (c *Codec) Duration(d *time.Duration) { c.Int((*int64)(d)) }

// text is any string type.
type text interface{ ~string }

// String is at most max octets.
func String[T text](c *Codec, s *T, max int) {
	n := int(c.uvarint(uint64(len(*s)), uint64(max)))
	if c.err != nil {
		return
	}
	if !c.reading {
		c.b = append(c.b, string(*s)...)
		return
	}
	if n > len(c.b) {
		c.fail()
		return
	}
	*s = T(c.b[:n])
	c.b = c.b[n:]
}

// Name is a string of at most MaxName octets.
func (c *Codec) Name(s *string) { String(c, s, MaxName) }

// Text is a string of at most MaxText octets.
func (c *Codec) Text(s *string) { String(c, s, MaxText) }

// Bytes is at most max octets; nil and empty are the same.
func (c *Codec) Bytes(p *[]byte, max int) {
	n := int(c.uvarint(uint64(len(*p)), uint64(max)))
	if c.err != nil {
		return
	}
	if !c.reading {
		c.b = append(c.b, *p...)
		return
	}
	if n > len(c.b) {
		c.fail()
		return
	}
	*p = nil
	if n > 0 {
		*p = append([]byte(nil), c.b[:n]...)
	}
	c.b = c.b[n:]
}

// List is at most max items, each read and written by item. It allocates no
// more than the frame can hold.
func List[T any](c *Codec, l *[]T, max int, item func(*Codec, *T)) {
	n := int(c.uvarint(uint64(len(*l)), uint64(max)))
	if c.err != nil {
		return
	}
	if c.reading {
		if n > len(c.b) { // an item is one octet at least
			c.fail()
			return
		}
		*l = nil
		if n > 0 {
			*l = make([]T, 0, min(n, 512))
		}
		for i := range n {
			var none T
			*l = append(*l, none)
			if item(c, &(*l)[i]); c.err != nil {
				return
			}
		}
		return
	}
	for i := range *l {
		item(c, &(*l)[i])
	}
}
