package imsg

import "smtpd/internal/mail"

// line is a text of at most max octets that is printed, logged or sent some
// day. Control octets become '?' when it comes in: the process that sent it may
// not be itself any more.
func line(c *Codec, s *string, max int) {
	String(c, s, max)
	if !c.reading {
		return
	}
	for i := range len(*s) {
		if (*s)[i] < ' ' || (*s)[i] == 0x7f {
			*s = mail.Clean(*s, len(*s))
			return
		}
	}
}

// again is a value that is mostly the one before, and costs one octet then.
func again[T comparable](c *Codec, before, v *T, code func(*Codec, *T)) {
	same := *before == *v
	c.Bool(&same)
	switch {
	case !same:
		code(c, v)
	case c.reading:
		*v = *before
	}
}

// status is a Status.
func status(c *Codec, s *mail.Status) {
	code := uint16(s.Code)
	Uint(c, &code)
	if c.reading {
		s.Code = int(code)
	}
	for i := range s.Enh {
		Uint(c, &s.Enh[i])
	}
	line(c, &s.Text, MaxText)
}

// name and domain are lines of that length.
func name(c *Codec, s *string)   { line(c, s, MaxName) }
func domain(c *Codec, s *string) { line(c, s, mail.MaxDomain) }

func address(c *Codec, a *mail.Address) {
	line(c, &a.User, mail.MaxLocalPart)
	line(c, &a.Domain, mail.MaxDomain)
}

func dsn(c *Codec, d *mail.DSN) {
	Uint(c, &d.Notify)
	Uint(c, &d.Ret)
	line(c, &d.EnvID, mail.MaxEnvID)
	line(c, &d.ORcpt, mail.MaxORcpt)
}

func envelopeID(c *Codec, id *mail.EnvelopeID) { Uint(c, id) }

// TableQuery asks one table one question. smtp, mta, mda, control -> lookup;
// answered by TableAnswer.
type TableQuery struct {
	Table   string
	Service string // as the table package names it: "alias", "credentials", ...
	Key     string
	Fetch   bool // the next value of a list, in turn; Key is not used

	Generation uint64 // of the configuration that the asker works by; 0: the present one
}

// Fields implements Msg.
func (m *TableQuery) Fields(c *Codec) {
	c.Name(&m.Table)
	c.Name(&m.Service)
	c.Text(&m.Key)
	c.Bool(&m.Fetch)
	Uint(c, &m.Generation)
}

// TableAnswer answers TableQuery.
type TableAnswer struct {
	Found     bool
	Temporary bool // could not be decided
	Value     string
	Reason    string // why, for the operator: in answers to control alone
}

// Fields implements Msg.
func (m *TableAnswer) Fields(c *Codec) {
	c.Bool(&m.Found)
	c.Bool(&m.Temporary)
	String(c, &m.Value, MaxInline)
	c.Text(&m.Reason)
}

// Sign asks for a signature over a digest with a private key that stays where
// it is. smtp, mta, lookup -> keys; answered by Signature.
type Sign struct {
	PKI     string // name of the pki entry
	Hash    uint8  // crypto.Hash; 0: Ed25519, Digest is the message
	PSSSalt int64  // rsa.PSSOptions.SaltLength; NoPSS: PKCS #1 v1.5 or not RSA
	Digest  []byte
	KeyID   []byte // of the public key, see privsep.KeyID: after a renewal there may be two; empty: the newest
}

// NoPSS is Sign.PSSSalt for every signature but RSA-PSS.
const NoPSS = -99

// Fields implements Msg.
func (m *Sign) Fields(c *Codec) {
	c.Name(&m.PKI)
	Uint(c, &m.Hash)
	c.Int(&m.PSSSalt)
	c.Bytes(&m.Digest, 4096)
	c.Bytes(&m.KeyID, 32)
}

// Signature answers Sign; Data is empty when there is none.
type Signature struct{ Data []byte }

// Fields implements Msg.
func (m *Signature) Fields(c *Codec) { c.Bytes(&m.Data, 4096) }
