package mda

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"smtpd/internal/mail"
)

const (
	// maxReplyLine bounds one line of a reply, in octets. RFC 5321 section
	// 4.5.3.1.5 says 512; stores are wordier.
	maxReplyLine = 4096
	// maxReplyLines bounds the lines of one reply. Ours.
	maxReplyLines = 64
	// lmtpTimeout bounds one dialogue when the context does not (delivery.md:
	// 300 s for every delivery).
	lmtpTimeout = 300 * time.Second
	// tlsTimeout bounds the beginning of TLS. Ours: without it there is still time.
	tlsTimeout = 30 * time.Second
	// quitTimeout bounds the farewell.
	quitTimeout = time.Second
)

// errStale is a kept connection that ended before the store took any of it: the
// delivery can begin anew on another.
var errStale = errors.New("stale connection")

// tlsFailure is TLS that was offered and did not begin.
type tlsFailure struct{ error }

// refusal is an answer that is not what the dialogue needs to go on.
type refusal struct{ mail.Status }

func (r *refusal) Error() string { return r.Status.String() }

// transaction is what one delivery says to a store.
type transaction struct {
	sender, rcpt string
	utf8         bool
	size         int64
	v            *Delivery
}

// harmless reports that the addresses do not end the commands they stand in.
func (t *transaction) harmless() bool {
	if t.rcpt == "" {
		return false
	}
	for _, a := range []string{t.sender, t.rcpt} {
		if mail.HasControl(a) || (strings.Contains(a, ">") && a[0] != '"') {
			return false
		}
	}
	return true
}

// lmtpConn is one connection to a store.
type lmtpConn struct {
	nc    net.Conn
	r     *bufio.Reader
	w     *bufio.Writer
	host  string          // for TLS; empty on a UNIX socket
	name  string          // ours
	ext   map[string]bool // of the last LHLO, upper case
	used  bool            // has delivered before
	timer *time.Timer     // while it is kept idle

	rcptRefused bool // the last refusal was that of RCPT
}

func newLMTPConn(nc net.Conn, host, name string) *lmtpConn {
	if name == "" {
		name = "localhost"
	}
	return &lmtpConn{nc: nc, host: host, name: name, r: bufio.NewReaderSize(nc, maxReplyLine), w: bufio.NewWriterSize(nc, 32<<10)}
}

func (c *lmtpConn) close() { c.nc.Close() }

func (c *lmtpConn) quit() {
	_ = c.nc.SetDeadline(time.Now().Add(quitTimeout))
	if _, err := c.w.WriteString("QUIT\r\n"); err == nil {
		_ = c.w.Flush()
	}
	c.nc.Close()
}

// within bounds everything until release is called by ctx.
func (c *lmtpConn) within(ctx context.Context) (release func()) {
	end := time.Now().Add(lmtpTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(end) {
		end = d
	}
	_ = c.nc.SetDeadline(end)
	stop := context.AfterFunc(ctx, func() { _ = c.nc.SetDeadline(time.Unix(1, 0)) })
	return func() { stop() }
}

// open reads the greeting and learns what the store can do. TLS is begun when it
// is offered, unless plain is set; a *tlsFailure leaves nothing to go on with.
func (c *lmtpConn) open(ctx context.Context, plain bool) error {
	defer c.within(ctx)()
	if _, err := c.expect(2); err != nil {
		return err
	}
	if err := c.hello(); err != nil {
		return err
	}
	if c.host == "" || plain || !c.ext["STARTTLS"] {
		return nil
	}
	if _, err := c.cmd(2, "STARTTLS"); err != nil {
		if r, ok := errors.AsType[*refusal](err); ok && r.Status.Code != 421 {
			return nil // not now (RFC 3207 section 4.1): as if it had not been offered
		}
		return err
	}
	if c.r.Buffered() > 0 {
		return errors.New("the LMTP server spoke before TLS began")
	}
	// Opportunistic: nothing in the configuration says who the store must be, so
	// TLS keeps listeners out and no more.
	tc := tls.Client(c.nc, &tls.Config{ServerName: c.host, InsecureSkipVerify: true, MinVersion: tls.VersionTLS12})
	hctx, cancel := context.WithTimeout(ctx, tlsTimeout)
	defer cancel()
	if err := tc.HandshakeContext(hctx); err != nil {
		return &tlsFailure{fmt.Errorf("TLS: %w", err)}
	}
	c.nc = tc
	c.r.Reset(tc)
	c.w.Reset(tc)
	return c.hello()
}

func (c *lmtpConn) hello() error {
	if err := c.send("LHLO " + c.name); err != nil {
		return err
	}
	c.ext = map[string]bool{}
	return c.reply(2, nil, func(line string) {
		word, _, _ := strings.Cut(line, " ")
		c.ext[strings.ToUpper(word)] = true
	})
}

// ask says who the mail is from and for; with PIPELINING in one go (RFC 2920).
func (c *lmtpConn) ask(ctx context.Context, t *transaction) (*mail.Status, error) {
	defer c.within(ctx)()
	return c.begin(t)
}

func (c *lmtpConn) begin(t *transaction) (*mail.Status, error) {
	c.rcptRefused = false
	if !c.ext["SMTPUTF8"] && (!ascii(t.sender) || !ascii(t.rcpt)) {
		return nil, &refusal{mail.Status{Code: 553, Enh: [3]uint8{5, 6, 7}, Text: "The mail store does not support SMTPUTF8"}} // RFC 6531 section 3.5
	}
	from, to := c.mailCommand(t), "RCPT TO:<"+t.rcpt+">"
	if !c.ext["PIPELINING"] {
		if _, err := c.cmd(2, from); err != nil {
			return nil, c.stale(err)
		}
		c.rcptRefused = true
		return c.cmd(2, to)
	}
	if err := c.send(from, to); err != nil {
		return nil, c.stale(err)
	}
	if _, err := c.expect(2); err != nil {
		return nil, c.stale(err)
	}
	c.rcptRefused = true
	return c.expect(2)
}

// reset forgets the transaction, so that another can begin.
func (c *lmtpConn) reset(ctx context.Context) error {
	defer c.within(ctx)()
	_, err := c.cmd(2, "RSET")
	c.used = c.used || err == nil
	return err
}

func (c *lmtpConn) mailCommand(t *transaction) string {
	s := "MAIL FROM:<" + t.sender + ">"
	if c.ext["SIZE"] && t.size > 0 {
		s += " SIZE=" + strconv.FormatInt(t.size, 10)
	}
	if c.ext["8BITMIME"] {
		s += " BODY=8BITMIME"
	}
	if c.ext["SMTPUTF8"] && (t.utf8 || !ascii(t.sender) || !ascii(t.rcpt)) {
		s += " SMTPUTF8"
	}
	return s
}

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// stale turns the end of a kept connection, or its farewell, into errStale.
func (c *lmtpConn) stale(err error) error {
	if !c.used {
		return err
	}
	if r, ok := errors.AsType[*refusal](err); ok && r.Status.Code != 421 {
		return err
	}
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		return err
	}
	return errStale
}

// deliver hands the message over; nil once the store has taken it.
func (c *lmtpConn) deliver(ctx context.Context, t *transaction) error {
	defer c.within(ctx)()
	if _, err := c.begin(t); err != nil {
		return err
	}
	if _, err := c.cmd(3, "DATA"); err != nil {
		return err
	}
	if err := c.data(t.v); err != nil {
		c.close() // an end of data would be taken for the whole
		return err
	}
	if _, err := c.expect(2); err != nil {
		return err
	}
	c.used = true
	return nil
}

// data sends the text with CRLF and doubled dots (RFC 5321 section 4.5.2). A CR
// that ends no line becomes a blank: some servers would take it for the end of
// a line, and a dot behind it for the end of the data.
func (c *lmtpConn) data(v *Delivery) error {
	start, cr := true, false
	put := func(piece []byte) error {
		if cr && piece[0] != '\n' {
			_ = c.w.WriteByte(' ')
		}
		cr = false
		if start && piece[0] == '.' {
			_ = c.w.WriteByte('.')
		}
		line, end := piece, false
		if n := len(piece); piece[n-1] == '\n' {
			line, end = piece[:n-1], true
		}
		if n := len(line); n > 0 && line[n-1] == '\r' {
			line, cr = line[:n-1], !end
		}
		for {
			i := bytes.IndexByte(line, '\r')
			if i < 0 {
				break
			}
			_, _ = c.w.Write(line[:i])
			_ = c.w.WriteByte(' ')
			line = line[i+1:]
		}
		_, err := c.w.Write(line)
		if end {
			_, err = c.w.WriteString("\r\n")
		}
		start = end
		return err // a bufio.Writer keeps its first error
	}
	front := Text{Data: v.front(nil)}
	if err := front.pieces(put); err != nil {
		return err
	}
	if err := v.Text.pieces(put); err != nil {
		return err
	}
	if !start {
		_, _ = c.w.WriteString("\r\n")
	}
	_, _ = c.w.WriteString(".\r\n")
	return c.w.Flush()
}

// errUnfit is a command that would be another, or several, to who reads it.
var errUnfit = errors.New("a command holds a control character")

// send writes lines at once.
func (c *lmtpConn) send(lines ...string) error {
	for _, line := range lines {
		if mail.HasControl(line) {
			return errUnfit
		}
		_, _ = c.w.WriteString(line)
		_, _ = c.w.WriteString("\r\n")
	}
	return c.w.Flush()
}

// cmd sends a line and expects an answer of that class.
func (c *lmtpConn) cmd(class int, line string) (*mail.Status, error) {
	if err := c.send(line); err != nil {
		return nil, err
	}
	return c.expect(class)
}

// expect reads a reply; one of another class is a *refusal.
func (c *lmtpConn) expect(class int) (*mail.Status, error) {
	var st mail.Status
	err := c.reply(class, &st, nil)
	return &st, err
}

// reply reads one reply of any number of lines into st, if it is not nil, and
// gives each line's text to each, if that is not nil.
func (c *lmtpConn) reply(class int, st *mail.Status, each func(string)) error {
	var joined mail.Status
	for n := 0; ; n++ {
		line, err := c.r.ReadSlice('\n')
		if err != nil {
			return readError(err)
		}
		text := strings.TrimRight(string(line), "\r\n")
		more := len(text) > 3 && text[3] == '-'
		if more {
			text = text[:3] + " " + text[4:]
		}
		one, ok := mail.ParseStatus(text)
		if !ok || n >= maxReplyLines || (n > 0 && one.Code != joined.Code) {
			return fmt.Errorf("LMTP server sent an invalid reply: %s", mail.Clean(text, 80))
		}
		if each != nil && n > 0 {
			each(one.Text)
		}
		if n == 0 {
			joined = *one
		} else if one.Text != "" {
			joined.Text = mail.Clean(strings.TrimSpace(joined.Text+" "+one.Text), mail.MaxStatusText)
		}
		if !more {
			break
		}
	}
	if st != nil {
		*st = joined
	}
	if joined.Code/100 != class {
		return &refusal{joined}
	}
	return nil
}

func readError(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return errors.New("connection closed by the LMTP server")
	}
	if err == bufio.ErrBufferFull {
		return errors.New("LMTP server sent an endless line")
	}
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		return fmt.Errorf("LMTP server does not answer: %w", err)
	}
	return fmt.Errorf("connection lost: %s", cause(err))
}
