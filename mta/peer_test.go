package mta

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"

	"smtpd/internal/config"
	"smtpd/internal/mail"
)

// backend is what go-smtp's server, as a peer that others wrote, is to do.
type backend struct {
	mu    sync.Mutex
	mails []peerMail
}

type peerMail struct {
	from, user string
	opts       smtp.MailOptions
	rcpts      []string
	notify     []smtp.DSNNotify
	text       string
}

func (b *backend) NewSession(*smtp.Conn) (smtp.Session, error) { return &peerSession{b: b}, nil }

type peerSession struct {
	b    *backend
	user string
	m    peerMail
}

func (s *peerSession) AuthMechanisms() []string { return []string{sasl.Plain} }
func (s *peerSession) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, user, password string) error {
		if password != "right" {
			return errors.New("wrong")
		}
		s.user = user
		return nil
	}), nil
}
func (s *peerSession) Mail(from string, o *smtp.MailOptions) error {
	s.m = peerMail{from: from, user: s.user, opts: *o}
	return nil
}
func (s *peerSession) Rcpt(to string, o *smtp.RcptOptions) error {
	if strings.HasPrefix(to, "no") {
		return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "no such user"}
	}
	s.m.rcpts = append(s.m.rcpts, to)
	s.m.notify = append(s.m.notify, o.Notify...)
	return nil
}
func (s *peerSession) Data(r io.Reader) error {
	text, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	s.m.text = string(text)
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	s.b.mails = append(s.b.mails, s.m)
	return nil
}
func (s *peerSession) Reset()        {}
func (s *peerSession) Logout() error { return nil }

func TestIndependentPeer(t *testing.T) {
	a := newAuthority(t)
	now := time.Since(bubbleTime) // outside of a bubble
	cert := a.leaf("mx.d.test", now-time.Hour, now+time.Hour, false)
	b := &backend{}
	srv := smtp.NewServer(b)
	srv.Domain, srv.EnableSMTPUTF8, srv.EnableDSN, srv.MaxMessageBytes = "mx.d.test", true, true, 10<<20
	srv.TLSConfig = &tls.Config{Certificates: []tls.Certificate{*cert}}
	srv.ReadTimeout, srv.WriteTimeout = 10*time.Second, 10*time.Second
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { srv.Serve(ln) })

	w := &tcpWorld{newWorld(t), ln.Addr().String()}
	w.roots = a.pool()
	w.addr("mx.d.test", "192.0.2.1")
	w.lists["<h>"] = []string{"smtp+tls://lbl@mx.d.test"}
	w.tables["<secrets>"] = map[string]string{"lbl": "user:right"}
	w.opt.Dialer = w
	e := New(w.cfg, w.opt)
	ctx, cancel := context.WithCancel(context.Background())
	wg.Go(func() { e.Run(ctx) })
	big := "Subject: big\r\n\r\n" + strings.Repeat(".a line that begins with a dot\r\n", 20000)
	for _, text := range []string{"Subject: x\r\n\r\n.\r\n..\r\n", big, "Subject: LF\n\n.\nx"} {
		m := w.message(&config.Relay{Host: "<h>", Auth: "<secrets>"}, "u@d.test", "no@d.test")
		m.Envelopes[0].DSN = mail.DSN{Notify: mail.NotifySuccess, EnvID: "id", Ret: mail.RetHeaders}
		m.Size = int64(len(text))
		m.Open = func(context.Context) (Text, error) { return Text{Data: []byte(text)}, nil }
		e.Submit(ctx, m)
	}
	w.wait(6)
	cancel()
	srv.Close()
	wg.Wait()
	if got := w.codes(); got[250] != 3 || got[550] != 3 {
		t.Fatalf("codes %v\n%s", got, w.text())
	}
	texts := map[string]bool{}
	for _, m := range b.mails {
		texts[m.text] = true
		if m.from != "a@b.test" || m.user != "user" || len(m.rcpts) != 1 || len(m.notify) != 1 || m.opts.EnvelopeID != "id" {
			t.Errorf("got %+v", m)
		}
	}
	for _, want := range []string{"Subject: x\r\n\r\n.\r\n..\r\n", big, "Subject: LF\r\n\r\n.\r\nx\r\n"} {
		if !texts[want] {
			t.Errorf("%.30q did not arrive", want)
		}
	}
	if !strings.Contains(w.text(), `mta cert-check result="valid"`) {
		t.Errorf("log:\n%s", w.text())
	}
}
