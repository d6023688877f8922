package mda

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
)

// store is a scripted LMTP server: it answers a command by its first word.
type store struct {
	addr    string
	answers map[string]string // "MAIL" -> reply lines; "." after the data; "" the greeting
	close   map[string]bool   // ends the connection instead of answering
	ln      net.Listener
	wg      sync.WaitGroup

	mu    sync.Mutex
	lines []string // commands, and the data as one line
	conns int
	open  map[net.Conn]bool
}

func newStore(t *testing.T, network string, answers map[string]string) *store {
	t.Helper()
	s := &store{answers: map[string]string{"": "220 store", "LHLO": "250 store", "MAIL": "250 ok", "RCPT": "250 ok", "DATA": "354 go",
		".": "250 2.0.0 taken", "QUIT": "221 bye", "RSET": "250 ok"}, close: map[string]bool{}, open: map[net.Conn]bool{}}
	for k, v := range answers {
		s.answers[k] = v
	}
	addr := "127.0.0.1:0"
	if network == "unix" {
		addr = filepath.Join(t.TempDir(), "s")
	}
	var err error
	if s.ln, err = net.Listen(network, addr); err != nil {
		t.Fatal(err)
	}
	s.addr = s.ln.Addr().String()
	s.wg.Go(func() {
		for {
			c, err := s.ln.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns++
			s.open[c] = true
			s.mu.Unlock()
			s.wg.Go(func() { s.serve(c) })
		}
	})
	t.Cleanup(func() {
		s.ln.Close()
		s.mu.Lock()
		for c := range s.open {
			c.Close()
		}
		s.mu.Unlock()
		s.wg.Wait()
	})
	return s
}

func (s *store) serve(c net.Conn) {
	defer c.Close()
	r := bufio.NewReader(c)
	answer := func(word string) bool {
		s.mu.Lock()
		text, end := s.answers[word], s.close[word]
		s.mu.Unlock()
		if end {
			return false
		}
		_, err := io.WriteString(c, strings.ReplaceAll(text, "\n", "\r\n")+"\r\n")
		return err == nil
	}
	if !answer("") {
		return
	}
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		s.note(strings.TrimRight(line, "\r\n"))
		word, _, _ := strings.Cut(strings.TrimRight(line, "\r\n"), " ")
		if !answer(word) {
			return
		}
		s.mu.Lock()
		data := word == "DATA" && strings.HasPrefix(s.answers["DATA"], "354")
		s.mu.Unlock()
		if data {
			var data strings.Builder
			for {
				line, err := r.ReadString('\n')
				if err != nil {
					s.note("cut short")
					return
				}
				if line == ".\r\n" {
					break
				}
				data.WriteString(line)
			}
			s.note(data.String())
			if !answer(".") {
				return
			}
		}
	}
}

func (s *store) note(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, line)
}

func (s *store) noted() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.lines...)
}

const exampleFrontCRLF = "Return-Path: <a@b.org>\r\nDelivered-To: team@md.test\r\n"

func TestLMTP(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		s := newStore(t, network, nil)
		d, v := newDeliverer(t, nil), example(t, LMTP)
		v.Path = s.addr
		v.Text.Data = []byte("Subject: x\n\n.\n..a\nb\rc\r\nd\r\r\nend")
		mustDeliver(t, d, v)
		want := []string{"LHLO localhost", "MAIL FROM:<a@b.org>", "RCPT TO:<alice>", "DATA",
			exampleFrontCRLF + "Subject: x\r\n\r\n..\r\n...a\r\nb c\r\nd \r\nend\r\n"}
		if got := s.noted(); strings.Join(got, "|") != strings.Join(want, "|") {
			t.Errorf("%s: got %q; want %q", network, got, want)
		}
		v.Sender.User, v.Sender.Domain, v.RcptTo, v.Dest.User = "", "", true, "alice+folder"
		mustDeliver(t, d, v)
		got := s.noted()
		if got[5] != "MAIL FROM:<>" || got[6] != "RCPT TO:<alice+folder@md.test>" || s.conns != 1 {
			t.Errorf("%s: then %q on %d connections", network, got[5:], s.conns)
		}
	}
}

// TestLMTPBrokenTLS has stores offer TLS and not begin it: mail comes without, on
// the same connection when the store says so.
func TestLMTPBrokenTLS(t *testing.T) {
	for answer, conns := range map[string]int{"454 4.7.0 not now": 1, "220 go": 2} {
		s := newStore(t, "tcp", map[string]string{"LHLO": "250-store\n250 STARTTLS", "STARTTLS": answer})
		var said []string
		d, v := newDeliverer(t, func(o *Options) { o.Report = func(line string) { said = append(said, line) } }), example(t, LMTP)
		v.Path = s.addr
		mustDeliver(t, d, v)
		if s.conns != conns || len(said) != conns-1 {
			t.Errorf("%q: %d connections, %q", answer, s.conns, said)
		}
		if st, err := d.VerifyRcpt(t.Context(), v); err != nil || !st.OK() {
			t.Errorf("%q: asked: %v, %v", answer, st, err)
		}
	}
}

func TestLMTPExtensions(t *testing.T) {
	s := newStore(t, "unix", map[string]string{"LHLO": "250-store\n250-PIPELINING\n250-8BITMIME\n250-Size 1000\n250-STARTTLS\n250 SMTPUTF8"})
	d, v := newDeliverer(t, nil), example(t, LMTP)
	v.Path = s.addr
	mustDeliver(t, d, v)
	v.UTF8 = true
	mustDeliver(t, d, v)
	v.UTF8, v.User = false, "álice"
	mustDeliver(t, d, v)
	var mails []string
	for _, l := range s.noted() {
		if strings.HasPrefix(l, "MAIL") {
			mails = append(mails, l)
		}
	}
	size := fmt.Sprintf("MAIL FROM:<a@b.org> SIZE=%d BODY=8BITMIME", len(exampleText))
	if want := []string{size, size + " SMTPUTF8", size + " SMTPUTF8"}; strings.Join(mails, "|") != strings.Join(want, "|") {
		t.Errorf("got %q; want %q", mails, want)
	}
}

// A store that does not know SMTPUTF8 is told no address of other letters (RFC
// 6531 section 3.5), and the mail goes back; all else is as before.
func TestLMTPWithoutUTF8(t *testing.T) {
	s := newStore(t, "unix", map[string]string{"LHLO": "250-store\n250 8BITMIME"})
	d, v := newDeliverer(t, nil), example(t, LMTP)
	v.Path, v.UTF8 = s.addr, true
	mustDeliver(t, d, v)
	v.User = "álice"
	st := d.Deliver(context.Background(), v).Status
	if !st.Permanent() || st.Enh != [3]uint8{5, 6, 7} {
		t.Errorf("got %v", st)
	}
	v.User = "alice"
	mustDeliver(t, d, v)
	for _, l := range s.noted() {
		if !ascii(l) && strings.HasPrefix(l, "RCPT") || strings.HasSuffix(l, "SMTPUTF8") {
			t.Errorf("the store heard %q", l)
		}
	}
}

func TestLMTPRefusals(t *testing.T) {
	tests := map[string]struct {
		answers map[string]string
		close   string
		change  func(*Delivery)
		code    int
		enh     [3]uint8
		line    string
		exit    int
	}{
		"rcpt 550": {answers: map[string]string{"RCPT": "550 5.1.1 no mailbox"}, code: 550, enh: [3]uint8{5, 1, 1},
			line: `"mail.lmtp: LMTP server error: 550 5.1.1 no mailbox"`, exit: 69},
		"rcpt 452": {answers: map[string]string{"RCPT": "452 4.2.2 over quota"}, code: 451, enh: [3]uint8{4, 2, 2},
			line: `"mail.lmtp: LMTP server error: 452 4.2.2 over quota"`, exit: 75},
		"greeting":      {answers: map[string]string{"": "421 busy"}, code: 451, line: "421 busy", exit: 75},
		"greeting 554":  {answers: map[string]string{"": "554 no"}, code: 550, line: "554 no", exit: 69},
		"hello":         {answers: map[string]string{"LHLO": "500 what"}, code: 550, line: "500 what", exit: 69},
		"mail":          {answers: map[string]string{"MAIL": "451 later"}, code: 451, line: "451 later", exit: 75},
		"data":          {answers: map[string]string{"DATA": "503 no"}, code: 550, line: "503 no", exit: 69},
		"data 250":      {answers: map[string]string{"DATA": "250 what"}, code: 550, line: "250 what", exit: 69},
		"end of data":   {answers: map[string]string{".": "552-5.2.2 full\n552 5.2.2 really"}, code: 550, enh: [3]uint8{5, 2, 2}, line: "552 5.2.2 full really", exit: 69},
		"pipelined":     {answers: map[string]string{"LHLO": "250-s\n250 PIPELINING", "MAIL": "550 no"}, code: 550, line: "550 no", exit: 69},
		"closes":        {close: "MAIL", code: 451, line: "connection closed by the LMTP server", exit: 75},
		"closes at end": {close: ".", code: 451, line: "connection closed by the LMTP server", exit: 75},
		"closes first":  {close: "", code: 451, line: "connection closed", exit: 75},
		"nonsense":      {answers: map[string]string{"MAIL": "hello"}, code: 451, line: "invalid reply: hello", exit: 75},
		"mixed codes":   {answers: map[string]string{"MAIL": "250-a\n550 b"}, code: 451, line: "invalid reply", exit: 75},
		"long line":     {answers: map[string]string{"MAIL": "250 " + strings.Repeat("x", 9000)}, code: 451, line: "endless line", exit: 75},
		"endless reply": {answers: map[string]string{"LHLO": strings.Repeat("250-x\n", 100) + "250 x"}, code: 451, line: "invalid reply", exit: 75},
		"bad address":   {change: func(v *Delivery) { v.User = "a>\r\nRCPT" }, code: 550, line: "addresses cannot be sent", exit: 65},
		"no user":       {change: func(v *Delivery) { v.User = "" }, code: 550, line: "addresses cannot be sent", exit: 65},
		"short text":    {change: func(v *Delivery) { v.AsIs = true; v.Text = Text{File: strings.NewReader("x"), Size: 2} }, code: 451, line: "cut short", exit: 75},
		"no server":     {change: func(v *Delivery) { v.Path += ".none" }, code: 451, line: "connect: No such file or directory", exit: 75},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, "unix", tt.answers)
			if tt.close != "" || strings.HasPrefix(name, "closes") {
				s.mu.Lock()
				s.close[tt.close] = true
				s.mu.Unlock()
			}
			d, v := newDeliverer(t, nil), example(t, LMTP)
			v.Path = s.addr
			if tt.change != nil {
				tt.change(v)
			}
			r := mustFail(t, d, v, tt.code, tt.line)
			if r.Exit != tt.exit || (tt.enh[0] != 0 && r.Status.Enh != tt.enh) {
				t.Errorf("got %+v", r)
			}
			if d.stores.n != 0 {
				t.Error("the connection is kept")
			}
			for i, l := range s.noted() {
				if name == "short text" && i > 3 && l != "cut short" {
					t.Errorf("half a message was given an end: %q", l)
				}
			}
		})
	}
}

// TestLMTPStale has the store close a kept connection: the next delivery uses
// another.
func TestLMTPStale(t *testing.T) {
	for _, how := range []string{"closed", "421"} {
		s := newStore(t, "unix", nil)
		d, v := newDeliverer(t, nil), example(t, LMTP)
		v.Path = s.addr
		mustDeliver(t, d, v)
		s.mu.Lock()
		if how == "closed" {
			for c := range s.open {
				c.Close()
			}
		} else {
			s.answers["MAIL"] = "421 closing"
		}
		s.mu.Unlock()
		if how == "421" {
			r := mustFail(t, d, v, 451, "421 closing") // a new one says so too
			t.Log(r.Line)
		} else {
			mustDeliver(t, d, v)
		}
		if s.conns != 2 {
			t.Errorf("%s: %d connections", how, s.conns)
		}
	}
}

func TestLMTPTimeout(t *testing.T) {
	s := newStore(t, "unix", nil)
	silent, err := net.Listen("unix", s.addr+"2")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	d, v := newDeliverer(t, nil), example(t, LMTP)
	v.Path = s.addr + "2"
	ctx := newTimeUp(t)
	go func() { // ends with silent
		c, err := silent.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.WriteString(c, "220 store\r\n")
		_, _ = c.Read(make([]byte, 1)) // it waits for the answer to LHLO
		ctx.end()
		_, _ = io.Copy(io.Discard, c)
	}()
	if r := d.Deliver(ctx, v); r.Status.Code != 451 || !strings.Contains(r.Line, "does not answer") {
		t.Errorf("got %+v", r)
	}
}

func TestVerifyRcpt(t *testing.T) {
	d := newDeliverer(t, nil)
	for name, ext := range map[string]string{"plain": "250 store", "pipelining": "250-store\n250 PIPELINING"} {
		s := newStore(t, "unix", map[string]string{"LHLO": ext})
		set := func(word, answer string) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.answers[word] = answer
		}
		v := example(t, LMTP)
		v.Path = s.addr
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if st, err := d.VerifyRcpt(ctx, v); err != nil || !st.OK() {
			t.Errorf("%s: got %v, %v", name, st, err)
		}
		for _, refusal := range []string{"552 5.2.2 over quota", "450 4.2.0 locked"} {
			set("RCPT", refusal)
			if st, err := d.VerifyRcpt(ctx, v); err != nil || st.String() != refusal {
				t.Errorf("%s: got %v, %v", name, st, err)
			}
		}
		set("RCPT", "250 ok")
		mustDeliver(t, d, v)
		if s.conns != 1 {
			t.Errorf("%s: %d connections", name, s.conns)
		}
		set("MAIL", "452 4.3.1 full")
		if st, err := d.VerifyRcpt(ctx, v); err == nil {
			t.Errorf("%s: a refusal of MAIL is taken for that of the recipient: %v", name, st)
		}
		v.User = "a\nb"
		if _, err := d.VerifyRcpt(ctx, v); err == nil {
			t.Error("no error for a bad name")
		}
		v.User, v.Path = "alice", s.addr+"x"
		if _, err := d.VerifyRcpt(ctx, v); err == nil {
			t.Error("no error without a store")
		}
	}
}

// peer is the LMTP server of go-smtp: an independent reading of the protocol.
type peer struct {
	mu   sync.Mutex
	got  []string
	tls  int
	opts []smtp.MailOptions
}

func (p *peer) NewSession(c *smtp.Conn) (smtp.Session, error) {
	if _, ok := c.TLSConnectionState(); ok {
		p.mu.Lock()
		p.tls++
		p.mu.Unlock()
	}
	return &peerSession{p: p}, nil
}

type peerSession struct {
	p        *peer
	from, to string
}

func (s *peerSession) Mail(from string, o *smtp.MailOptions) error {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	s.from, s.p.opts = from, append(s.p.opts, *o)
	return nil
}

func (s *peerSession) Rcpt(to string, _ *smtp.RcptOptions) error {
	if strings.HasPrefix(to, "nobody") {
		return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "no mailbox"}
	}
	s.to = to
	return nil
}

func (s *peerSession) LMTPData(r io.Reader, status smtp.StatusCollector) error {
	b, err := io.ReadAll(r)
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	s.p.got = append(s.p.got, s.from+">"+s.to+"\n"+string(b))
	status.SetStatus(s.to, nil)
	return err
}

func (s *peerSession) Data(io.Reader) error { return nil }
func (s *peerSession) Reset()               {}
func (s *peerSession) Logout() error        { return nil }

func TestLMTPWithGoSMTP(t *testing.T) {
	p := &peer{}
	server := smtp.NewServer(p)
	server.LMTP, server.Domain, server.EnableSMTPUTF8 = true, "store", true
	server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{certificate(t)}}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(ln) }()
	defer func() { server.Close(); <-done }()

	d, v := newDeliverer(t, nil), example(t, LMTP)
	v.Path, v.RcptTo = ln.Addr().String(), true
	big := bytes.Repeat([]byte(".line\n\n"), 20000)
	for i := range 3 {
		if i == 1 {
			v.Text = Text{File: bytes.NewReader(big), Size: int64(len(big))}
		}
		mustDeliver(t, d, v)
	}
	v.Dest.User = "nobody"
	mustFail(t, d, v, 550, "550 5.1.1 no mailbox")
	front := "a@b.org>alice@md.test\n" + exampleFrontCRLF
	if len(p.got) != 3 || p.got[0] != front+strings.ReplaceAll(exampleText, "\n", "\r\n") ||
		p.got[2] != front+strings.ReplaceAll(string(big), "\n", "\r\n") {
		t.Errorf("%d messages: %.200q", len(p.got), p.got)
	}
	if p.tls == 0 || p.opts[0].Body != smtp.Body8BitMIME {
		t.Errorf("TLS sessions %d, options %+v", p.tls, p.opts[0])
	}
}

func certificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
