package imsg

import "smtpd/internal/mail"

// DeliverRun has one message delivered by the worker, as the user it runs as.
// mda -> deliver, with a descriptor of the body unless it is inline; answered
// by DeliverResult.
type DeliverRun struct {
	Envelope mail.Envelope
	Method   string // config.Method, or "file", "pipe" for items of aliases and .forward
	Path     string // maildir folder, file, lmtp destination: as configured, formats not yet expanded
	Command  string // mda, pipe: as configured
	Wrapper  string // command of the wrapper, or empty
	Junk     bool
	RcptTo   bool
	Original bool   // X-Original-To is put in front
	Verify   bool   // lmtp: nothing is delivered, the store is asked about the recipient
	Delim    string // sub-address delimiter
	Hostname string // server name, for names of maildir files
	Inline   []byte
	Size     int64
}

// Fields implements Msg.
func (m *DeliverRun) Fields(c *Codec) {
	envelope(c, &m.Envelope)
	c.Name(&m.Method)
	c.Text(&m.Path)
	c.Text(&m.Command)
	c.Text(&m.Wrapper)
	c.Bool(&m.Junk)
	c.Bool(&m.RcptTo)
	c.Bool(&m.Original)
	c.Bool(&m.Verify)
	c.Name(&m.Delim)
	c.Name(&m.Hostname)
	c.Bytes(&m.Inline, MaxInline)
	c.Int(&m.Size)
}

// DeliverResult answers DeliverRun.
type DeliverResult struct {
	Status mail.Status
	Line   string // error line as show queue prints it
	Stat   string // as the log prints it: `Delivered`, `Error (...)`
	Loop   bool
	Store  bool // Status is the store's answer to RCPT; only after Verify
}

// Fields implements Msg.
func (m *DeliverResult) Fields(c *Codec) {
	status(c, &m.Status)
	line(c, &m.Line, MaxText)
	line(c, &m.Stat, MaxText)
	c.Bool(&m.Loop)
	c.Bool(&m.Store)
}
