package imsg

import "smtpd/internal/mail"

// StoreCheck asks whether the store of an lmtp action with verify-rcpt would take
// mail for an envelope. lookup -> mda; answered by StoreAnswer. mda takes the
// store from its own configuration: the action, and no address, is named.
type StoreCheck struct{ Envelope mail.Envelope }

// Fields implements Msg.
func (m *StoreCheck) Fields(c *Codec) { envelope(c, &m.Envelope) }

// StoreAnswer answers StoreCheck.
type StoreAnswer struct {
	Answered bool        // otherwise the store could not be asked, and Status says why
	Status   mail.Status // the store's answer to RCPT
}

// Fields implements Msg.
func (m *StoreAnswer) Fields(c *Codec) { c.Bool(&m.Answered); status(c, &m.Status) }
