package imsg

import (
	"time"

	"smtpd/internal/mail"
)

// envelopeField is one field of mail.Envelope.
type envelopeField struct {
	same func(a, b *mail.Envelope) bool
	code func(*Codec, *mail.Envelope)
}

// value is a field that is compared as it is.
func value[T comparable](at func(*mail.Envelope) *T, code func(*Codec, *T)) envelopeField {
	return envelopeField{
		same: func(a, b *mail.Envelope) bool { return *at(a) == *at(b) },
		code: func(c *Codec, e *mail.Envelope) { code(c, at(e)) },
	}
}

// short is a text of at most max octets that is printed, logged or sent.
func short(max int, at func(*mail.Envelope) *string) envelopeField {
	return value(at, func(c *Codec, s *string) { line(c, s, max) })
}

// instant is a time: two with the same nanosecond are the same.
func instant(at func(*mail.Envelope) *time.Time) envelopeField {
	return envelopeField{
		same: func(a, b *mail.Envelope) bool { return at(a).Equal(*at(b)) },
		code: func(c *Codec, e *mail.Envelope) { c.Time(at(e)) },
	}
}

// envelopeFields are all fields of mail.Envelope, in the order of their bits.
// Home and Exec are not for printing.
var envelopeFields = [...]envelopeField{
	value(func(e *mail.Envelope) *mail.EnvelopeID { return &e.ID }, Uint[mail.EnvelopeID]),
	value(func(e *mail.Envelope) *mail.Kind { return &e.Kind }, Uint[mail.Kind]),
	value(func(e *mail.Envelope) *mail.Flags { return &e.Flags }, Uint[mail.Flags]),
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
	value(func(e *mail.Envelope) *mail.DSN { return &e.DSN }, dsn),
	short(MaxName, func(e *mail.Envelope) *string { return &e.User }),
	value(func(e *mail.Envelope) *string { return &e.Home }, (*Codec).Text),
	value(func(e *mail.Envelope) *string { return &e.Exec }, (*Codec).Text),
	short(mail.MaxLocalPart, func(e *mail.Envelope) *string { return &e.SubAddr }),
	instant(func(e *mail.Envelope) *time.Time { return &e.Created }),
	value(func(e *mail.Envelope) *time.Duration { return &e.TTL }, (*Codec).Duration),
	instant(func(e *mail.Envelope) *time.Time { return &e.LastTry }),
	value(func(e *mail.Envelope) *uint16 { return &e.Retry }, Uint[uint16]),
	value(func(e *mail.Envelope) *mail.Status { return &e.LastStatus }, status),
	short(MaxText, func(e *mail.Envelope) *string { return &e.LastError }),
	short(MaxName, func(e *mail.Envelope) *string { return &e.RemoteMTA }),
	value(func(e *mail.Envelope) *uint8 { return &e.DelayNotices }, Uint[uint8]),
	value(func(e *mail.Envelope) *mail.NoticeKind { return &e.Notice }, Uint[mail.NoticeKind]),
	value(func(e *mail.Envelope) *time.Duration { return &e.NoticeDelay }, (*Codec).Duration),
}

// envelopeAfter is an envelope as what differs from the one before: the
// recipients of a message share nearly all, and their texts are then shared in
// memory too.
func envelopeAfter(c *Codec, before, e *mail.Envelope) {
	var differs uint64
	if c.reading {
		*e = *before
	} else {
		for i := range envelopeFields {
			if !envelopeFields[i].same(before, e) {
				differs |= 1 << i
			}
		}
	}
	differs = c.uvarint(differs, 1<<len(envelopeFields)-1)
	for i := range envelopeFields {
		if differs&(1<<i) != 0 {
			envelopeFields[i].code(c, e)
		}
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
