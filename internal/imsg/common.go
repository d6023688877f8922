package imsg

import "smtpd/internal/mail"

// status is a Status; its text is cleaned when it comes in.
func status(c *Codec, s *mail.Status) {
	code := uint16(s.Code)
	Uint(c, &code)
	s.Code = int(code)
	for i := range s.Enh {
		Uint(c, &s.Enh[i])
	}
	c.Text(&s.Text)
}

func address(c *Codec, a *mail.Address) {
	String(c, &a.User, mail.MaxLocalPart)
	String(c, &a.Domain, mail.MaxDomain)
}

func dsn(c *Codec, d *mail.DSN) {
	Uint(c, &d.Notify)
	Uint(c, &d.Ret)
	String(c, &d.EnvID, mail.MaxEnvID)
	String(c, &d.ORcpt, mail.MaxORcpt)
}

// envelope is all of mail.Envelope.
func envelope(c *Codec, e *mail.Envelope) {
	Uint(c, &e.ID)
	Uint(c, &e.Kind)
	Uint(c, &e.Flags)
	c.Name(&e.Dispatcher)
	c.Name(&e.Tag)
	c.Name(&e.SMTPName)
	c.Name(&e.Helo)
	c.Name(&e.Host)
	c.Name(&e.Client)
	c.Name(&e.Username)
	address(c, &e.Sender)
	address(c, &e.Rcpt)
	address(c, &e.Dest)
	dsn(c, &e.DSN)
	c.Name(&e.User)
	c.Text(&e.Home)
	c.Text(&e.Exec)
	c.Time(&e.Created)
	c.Duration(&e.TTL)
	c.Time(&e.LastTry)
	Uint(c, &e.Retry)
	status(c, &e.LastStatus)
	c.Text(&e.LastError)
	c.Name(&e.RemoteMTA)
	Uint(c, &e.DelayNotices)
	Uint(c, &e.Notice)
	c.Duration(&e.NoticeDelay)
}

func envelopeID(c *Codec, id *mail.EnvelopeID) { Uint(c, id) }

func name(c *Codec, s *string) { c.Name(s) }

// TableQuery asks one table one question. smtp, mta, mda, control -> lookup;
// answered by TableAnswer.
type TableQuery struct {
	Table   string
	Service string // as the table package names it: "alias", "credentials", ...
	Key     string
	Fetch   bool // the next value of a list, in turn; Key is not used
}

// Fields implements Msg.
func (m *TableQuery) Fields(c *Codec) {
	c.Name(&m.Table)
	c.Name(&m.Service)
	c.Text(&m.Key)
	c.Bool(&m.Fetch)
}

// TableAnswer answers TableQuery.
type TableAnswer struct {
	Found     bool
	Temporary bool // could not be decided
	Value     string
}

// Fields implements Msg.
func (m *TableAnswer) Fields(c *Codec) {
	c.Bool(&m.Found)
	c.Bool(&m.Temporary)
	String(c, &m.Value, MaxInline)
}

// Sign asks for a signature over a digest with a private key that stays where
// it is. smtp, mta, lookup -> keys; answered by Signature.
type Sign struct {
	PKI     string // name of the pki entry
	Hash    uint8  // crypto.Hash; 0: Ed25519, Digest is the message
	PSSSalt int64  // rsa.PSSOptions.SaltLength; NoPSS: PKCS #1 v1.5 or not RSA
	Digest  []byte
}

// NoPSS is Sign.PSSSalt for every signature but RSA-PSS.
const NoPSS = -99

// Fields implements Msg.
func (m *Sign) Fields(c *Codec) {
	c.Name(&m.PKI)
	Uint(c, &m.Hash)
	c.Int(&m.PSSSalt)
	c.Bytes(&m.Digest, 4096)
}

// Signature answers Sign; Data is empty when there is none.
type Signature struct{ Data []byte }

// Fields implements Msg.
func (m *Signature) Fields(c *Codec) { c.Bytes(&m.Data, 4096) }
