package imsg

import (
	"math/bits"

	"smtpd/internal/mail"
)

// envelopeField reads or writes one field of mail.Envelope.
type envelopeField func(*Codec, *mail.Envelope)

// short is a text of at most max octets that is printed, logged or sent.
func short(max int, at func(*mail.Envelope) *string) envelopeField {
	return func(c *Codec, e *mail.Envelope) { line(c, at(e), max) }
}

// envelopeFields are all fields of mail.Envelope, in the order of their bits.
// Home and Exec are not for printing.
var envelopeFields = [...]envelopeField{
	func(c *Codec, e *mail.Envelope) { Uint(c, &e.ID) },
	func(c *Codec, e *mail.Envelope) { Uint(c, &e.Kind) },
	func(c *Codec, e *mail.Envelope) { Uint(c, &e.Flags) },
	short(MaxName, func(e *mail.Envelope) *string { return &e.Dispatcher }),
	short(MaxName, func(e *mail.Envelope) *string { return &e.Tag }),
	short(MaxName, func(e *mail.Envelope) *string { return &e.SMTPName }),
	short(MaxName, func(e *mail.Envelope) *string { return &e.Helo }),
	short(MaxName, func(e *mail.Envelope) *string { return &e.Host }),
	short(MaxName, func(e *mail.Envelope) *string { return &e.Client }),
	short(MaxName, func(e *mail.Envelope) *string { return &e.Username }),
	short(mail.MaxLocalPart, func(e *mail.Envelope) *string { return &e.Sender.User }),
	short(mail.MaxDomain, func(e *mail.Envelope) *string { return &e.Sender.Domain }),
	short(mail.MaxLocalPart, func(e *mail.Envelope) *string { return &e.Rcpt.User }),
	short(mail.MaxDomain, func(e *mail.Envelope) *string { return &e.Rcpt.Domain }),
	short(mail.MaxLocalPart, func(e *mail.Envelope) *string { return &e.Dest.User }),
	short(mail.MaxDomain, func(e *mail.Envelope) *string { return &e.Dest.Domain }),
	func(c *Codec, e *mail.Envelope) { dsn(c, &e.DSN) },
	short(MaxName, func(e *mail.Envelope) *string { return &e.User }),
	func(c *Codec, e *mail.Envelope) { c.Text(&e.Home) },
	func(c *Codec, e *mail.Envelope) { c.Text(&e.Exec) },
	short(mail.MaxLocalPart, func(e *mail.Envelope) *string { return &e.SubAddr }),
	func(c *Codec, e *mail.Envelope) { c.Time(&e.Created) },
	func(c *Codec, e *mail.Envelope) { c.Duration(&e.TTL) },
	func(c *Codec, e *mail.Envelope) { c.Time(&e.LastTry) },
	func(c *Codec, e *mail.Envelope) { Uint(c, &e.Retry) },
	func(c *Codec, e *mail.Envelope) { status(c, &e.LastStatus) },
	short(MaxText, func(e *mail.Envelope) *string { return &e.LastError }),
	short(MaxName, func(e *mail.Envelope) *string { return &e.RemoteMTA }),
	func(c *Codec, e *mail.Envelope) { Uint(c, &e.DelayNotices) },
	func(c *Codec, e *mail.Envelope) { Uint(c, &e.Notice) },
	func(c *Codec, e *mail.Envelope) { c.Duration(&e.NoticeDelay) },
}

// differing are the bits of the fields in which two envelopes differ. It is
// written out because a message to many is compared with itself so often.
func differing(a, b *mail.Envelope) (bits uint64) {
	for i, same := range [len(envelopeFields)]bool{
		a.ID == b.ID, a.Kind == b.Kind, a.Flags == b.Flags,
		a.Dispatcher == b.Dispatcher, a.Tag == b.Tag, a.SMTPName == b.SMTPName,
		a.Helo == b.Helo, a.Host == b.Host, a.Client == b.Client, a.Username == b.Username,
		a.Sender.User == b.Sender.User, a.Sender.Domain == b.Sender.Domain,
		a.Rcpt.User == b.Rcpt.User, a.Rcpt.Domain == b.Rcpt.Domain,
		a.Dest.User == b.Dest.User, a.Dest.Domain == b.Dest.Domain, a.DSN == b.DSN,
		a.User == b.User, a.Home == b.Home, a.Exec == b.Exec, a.SubAddr == b.SubAddr,
		a.Created.Equal(b.Created), a.TTL == b.TTL, a.LastTry.Equal(b.LastTry), // of the same nanosecond
		a.Retry == b.Retry, a.LastStatus == b.LastStatus, a.LastError == b.LastError, a.RemoteMTA == b.RemoteMTA,
		a.DelayNotices == b.DelayNotices, a.Notice == b.Notice, a.NoticeDelay == b.NoticeDelay,
	} {
		if !same {
			bits |= 1 << i
		}
	}
	return bits
}

// envelopeAfter is an envelope as what differs from the one before: the
// recipients of a message share nearly all, and their texts are then shared in
// memory too.
func envelopeAfter(c *Codec, before, e *mail.Envelope) {
	var differs uint64
	if c.reading {
		*e = *before
	} else {
		differs = differing(before, e)
	}
	differs = c.uvarint(differs, 1<<len(envelopeFields)-1)
	for ; differs != 0; differs &= differs - 1 {
		envelopeFields[bits.TrailingZeros64(differs)](c, e)
	}
}

// envelope is a single one.
func envelope(c *Codec, e *mail.Envelope) { envelopeAfter(c, &mail.Envelope{}, e) }

// envelopes is a list of at most MaxItems. before is what the first follows on.
func envelopes(c *Codec, l *[]mail.Envelope, before *mail.Envelope) {
	i := 0
	List(c, l, MaxItems, func(c *Codec, e *mail.Envelope) {
		if i > 0 {
			before = &(*l)[i-1]
		}
		i++
		envelopeAfter(c, before, e)
	})
}
