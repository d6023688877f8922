package mail

import (
	"errors"
	"strconv"
)

// MessageID names one message in the queue. It is never zero for a stored
// message; ids are handed out in the order of arrival and printed as 8 hex
// digits.
type MessageID uint32

// String prints the id as 8 lower-case hex digits.
func (id MessageID) String() string { return hex(uint64(id), 8) }

// Envelope is the id of the message's recipient number n.
func (id MessageID) Envelope(n uint32) EnvelopeID {
	return EnvelopeID(uint64(id)<<32 | uint64(n))
}

// EnvelopeID names one recipient of one message: the message id in the high
// 32 bits, a number of its own in the low 32. Printed as 16 hex digits.
type EnvelopeID uint64

// String prints the id as 16 lower-case hex digits.
func (id EnvelopeID) String() string { return hex(uint64(id), 16) }

// Message is the message that the envelope belongs to.
func (id EnvelopeID) Message() MessageID { return MessageID(id >> 32) }

// SessionID names one connection, in or out, in the log. Random; printed as
// 16 hex digits. Zero means that there was no connection.
type SessionID uint64

// String prints the id as 16 lower-case hex digits.
func (id SessionID) String() string { return hex(uint64(id), 16) }

var errBadID = errors.New("invalid id")

// ParseMessageID reads exactly 8 hex digits that are not all zero.
func ParseMessageID(s string) (MessageID, error) {
	v, err := parseHex(s, 8)
	return MessageID(v), err
}

// ParseEnvelopeID reads exactly 16 hex digits that are not all zero.
func ParseEnvelopeID(s string) (EnvelopeID, error) {
	v, err := parseHex(s, 16)
	return EnvelopeID(v), err
}

func parseHex(s string, digits int) (uint64, error) {
	if len(s) != digits || s[0] == '+' || s[0] == '-' {
		return 0, errBadID
	}
	v, err := strconv.ParseUint(s, 16, 64)
	if err != nil || v == 0 {
		return 0, errBadID
	}
	return v, nil
}

// hex writes n in so many hexadecimal digits, at most 16. Ids are in every line
// of the log, where fmt is too slow.
func hex(n uint64, digits int) string {
	var b [16]byte
	for i := digits - 1; i >= 0; i-- {
		b[i] = "0123456789abcdef"[n&15]
		n >>= 4
	}
	return string(b[:digits])
}
