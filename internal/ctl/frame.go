package ctl

import "encoding/binary"

// Kind says what a frame is.
type Kind uint8

// The kinds. A conversation is Hello from both sides, then for each Request any
// number of Row, Data and File, and one OK or Fail.
const (
	KindHello   Kind = 1 + iota // Protocol
	KindRequest                 // a Req constant and its arguments
	KindRow                     // fields as the request says
	KindData                    // one field of octets
	KindFile                    // comes with a descriptor
	KindOK                      // what the request says
	KindFail                    // the reason
)

// Frame is one unit on the control socket. On the wire, little endian: length
// of the rest u32 | kind u8 | number of fields u8 | each field: length u32,
// octets.
type Frame struct {
	Kind   Kind
	Fields []string
}

// Arg is field n, or nothing when there are fewer.
func (f *Frame) Arg(n int) string {
	if n < len(f.Fields) {
		return f.Fields[n]
	}
	return ""
}

// appendFrame adds the frame to b. Fields over the bounds are the caller's
// mistake: the receiver will refuse the frame.
func appendFrame(b []byte, kind Kind, fields []string) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0, byte(kind), byte(len(fields)))
	for _, s := range fields {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	binary.LittleEndian.PutUint32(b[start:], uint32(len(b)-start-4))
	return b
}

// parseFrame reads what follows the length. It copies b once, after all
// lengths were checked.
func parseFrame(b []byte) (Frame, error) {
	if len(b) < 2 || b[0] < byte(KindHello) || b[0] > byte(KindFail) || b[1] > MaxFields {
		return Frame{}, ErrFrame
	}
	rest := b[2:]
	for range b[1] {
		if len(rest) < 4 || uint64(binary.LittleEndian.Uint32(rest)) > uint64(len(rest)-4) {
			return Frame{}, ErrFrame
		}
		rest = rest[4+binary.LittleEndian.Uint32(rest):]
	}
	if len(rest) != 0 {
		return Frame{}, ErrFrame
	}
	f := Frame{Kind: Kind(b[0])}
	if b[1] == 0 {
		return f, nil
	}
	f.Fields = make([]string, b[1])
	all := string(b[2:]) // the fields share one allocation
	for i := range f.Fields {
		n := binary.LittleEndian.Uint32([]byte(all[:4]))
		f.Fields[i], all = all[4:4+n], all[4+n:]
	}
	return f, nil
}
