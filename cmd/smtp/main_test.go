package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

// server is an independent mail server that writes down what it is told.
type server struct {
	mu  sync.Mutex
	got []string
}

func (s *server) add(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = append(s.got, line)
}

func (s *server) NewSession(*smtp.Conn) (smtp.Session, error) { return &session{s}, nil }

type session struct{ s *server }

func (s *session) AuthMechanisms() []string { return []string{sasl.Plain} }

func (s *session) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, user, password string) error {
		s.s.add("login " + user + " " + password)
		return nil
	}), nil
}

func (s *session) Mail(from string, _ *smtp.MailOptions) error { s.s.add("from " + from); return nil }

func (s *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	if strings.HasPrefix(to, "nosuch") {
		return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.NoEnhancedCode, Message: "Invalid recipient: <" + to + ">"}
	}
	s.s.add("to " + to)
	return nil
}

func (s *session) Data(r io.Reader) error {
	b, err := io.ReadAll(r)
	s.s.add(string(b))
	return err
}

func (s *session) Reset()        {}
func (s *session) Logout() error { return nil }

// certificate is one for localhost that signs itself, and its PEM file.
func certificate(t *testing.T) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"mx.test"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, path
}

func TestRun(t *testing.T) {
	cert, ca := certificate(t)
	secrets := filepath.Join(t.TempDir(), "secrets")
	if err := os.WriteFile(secrets, []byte("# ours\nother a:b\nmine alice:secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const sent = "from a@b.test|to bob@example.org|Subject: x\r\n\r\n.dot\r\n"
	const try = "trying host 127.0.0.1 port PORT...\n"
	const end = "connection closed...\ndone...\n"
	tests := map[string]struct {
		tls    string // "", "start" or "smtps"
		args   string
		status int
		got    string
		out    string
	}{
		"plain":   {"", "-F a@b.test -s smtp://HOST bob@example.org", 0, sent, ""},
		"verbose": {"", "-v -F a@b.test -s HOST bob@example.org", 0, sent, try + "connection ready...\n" + end},
		"refused": {"", "-F a@b.test -s smtp://HOST nosuch@example.org bob@example.org", 0, sent,
			"nosuch@example.org: RCPT: 550 Invalid recipient: <nosuch@example.org>\n"},
		"nobody":      {"", "-F <> -s smtp+notls://HOST nosuch@example.org", 0, "from ", "nosuch@example.org: RCPT: 550 Invalid recipient: <nosuch@example.org>\n"},
		"self-signed": {"start", "-vF a@b.test -s smtp://HOST bob@example.org", 1, "", try + "connection error: certificate verification failed: self-signed certificate\nconnection closed...\nsmtp: no more host\n"},
		"unchecked":   {"start", "-C -F a@b.test -s smtp://HOST bob@example.org", 0, sent, ""},
		"noverify":    {"start", "-T noverify,nosni -F a@b.test -s smtp+tls://HOST bob@example.org", 0, sent, ""},
		"cafile":      {"start", "-T cafile=CA,protocols=tlsv1.2:tlsv1.3 -F a@b.test -s smtp+tls://HOST bob@example.org", 0, sent, ""},
		"servername":  {"start", "-T cafile=CA,servername=mx.test,nosni -F a@b.test -s smtp+tls://HOST bob@example.org", 0, sent, ""},
		"other name": {"start", "-T cafile=CA,servername=mx2.test -s smtp+tls://HOST bob@example.org", 1, "",
			"connection error: certificate verification failed: certificate is valid for mx.test, not mx2.test\nsmtp: no more host\n"},
		"connect":    {"start", "-nC -s smtp+tls://HOST", 0, "", try + "connection ready...\n" + end},
		"no TLS":     {"", "-s smtp+tls://HOST bob@example.org", 1, "", "connection error: TLS is not offered\nsmtp: no more host\n"},
		"never TLS":  {"start", "-F a@b.test -s smtp+notls://HOST bob@example.org", 0, sent, ""},
		"smtps":      {"smtps", "-C -F a@b.test -s smtps://HOST bob@example.org", 0, sent, ""},
		"login":      {"smtps", "-C -a SECRETS -F a@b.test -s smtps://mine@HOST bob@example.org", 0, "login alice secret|" + sent, ""},
		"login bare": {"", "-a SECRETS -s smtp://HOST bob@example.org", 1, "", "smtp: SECRETS: want user:password\n" + usage + "\n"},
		"help":       {"", "-h", 1, "", usage + "\n"},
		"bad -T":     {"", "-T what", 1, "", "smtp: unknown TLS parameter: what\n" + usage + "\n"},
		"bad server": {"", "-s gopher://HOST", 1, "", "smtp: server: unknown scheme \"gopher\"\n" + usage + "\n"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := &server{}
			srv := smtp.NewServer(s)
			srv.Domain, srv.AllowInsecureAuth = "mx.test", true
			ln, err := net.Listen("tcp4", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			host := ln.Addr().String()
			conf := &tls.Config{Certificates: []tls.Certificate{cert}}
			switch tt.tls {
			case "start":
				srv.TLSConfig = conf
			case "smtps":
				ln = tls.NewListener(ln, conf)
			}
			done := make(chan struct{})
			go func() { defer close(done); _ = srv.Serve(ln) }()
			_, port, _ := net.SplitHostPort(host)
			fill := strings.NewReplacer("HOST", host, "CA", ca, "SECRETS", secrets, "PORT", port)
			var args []string
			for _, a := range strings.Fields(tt.args) {
				args = append(args, fill.Replace(a))
			}
			var out bytes.Buffer
			status := run(context.Background(), args, strings.NewReader("Subject: x\n\n.dot\n"), &out)
			ln.Close() // Serve may not have begun
			srv.Close()
			<-done
			s.mu.Lock()
			defer s.mu.Unlock()
			if got := strings.Join(s.got, "|"); status != tt.status || got != tt.got {
				t.Errorf("status %d, want %d; got %q, want %q; said %q", status, tt.status, got, tt.got, out.String())
			}
			if want := fill.Replace(tt.out); out.String() != want {
				t.Errorf("said %q, want %q", out.String(), want)
			}
		})
	}
}

// TestNobodyThere: a port where nobody listens.
func TestNobodyThere(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	var out bytes.Buffer
	status := run(context.Background(), []string{"-s", "smtp+notls://" + ln.Addr().String(), "a@b.test"}, strings.NewReader(""), &out)
	if want := "connection error: Connection refused\nsmtp: no more host\n"; status != 1 || out.String() != want {
		t.Errorf("status %d, said %q", status, out.String())
	}
}

// TestInjected: what comes in plain text behind the reply to STARTTLS is not
// taken for a reply in TLS.
func TestInjected(t *testing.T) {
	cert, _ := certificate(t)
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	done := make(chan error, 1)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			done <- err
			return
		}
		defer conn.Close()
		buf := make([]byte, 512)
		for _, reply := range []string{"220 x\r\n", "250-x\r\n250 STARTTLS\r\n", "220 go\r\n250 injected\r\n"} {
			io.WriteString(conn, reply)
			conn.Read(buf)
		}
		done <- tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{cert}}).Handshake()
	}()
	var out bytes.Buffer
	if status := run(context.Background(), []string{"-nC", "-s", "smtp://" + ln.Addr().String()}, nil, &out); status != 1 {
		t.Errorf("status %d, said %q", status, out.String())
	}
	if <-done == nil {
		t.Error("the handshake succeeded")
	}
}

// TestSendable: what comes from a command line stays one argument of one command.
func TestSendable(t *testing.T) {
	for _, bad := range []string{"x\r\nRSET", "x\nRSET", "x\rRSET", "x\x00", "x y", "a@b> SIZE=1", "a@b>", "<a@b", "\"a@b"} {
		for _, args := range [][]string{{"-H", bad, "u@x"}, {"-F", bad, "u@x"}, {bad}} {
			if _, err := parse(args); err == nil && (args[0] != "-H" || strings.ContainsAny(bad, "\r\n\x00 ")) {
				t.Errorf("%q is taken", args)
			}
		}
	}
	o, err := parse([]string{"-F", "<a@b>", "<u@x>", "\"v w>\"@x", "y@x"})
	if err != nil || o.from != "a@b" || strings.Join(o.rcpts, "|") != "u@x|\"v w>\"@x|y@x" {
		t.Errorf("%v: from %q to %q", err, o.from, o.rcpts)
	}
}

// TestSuites: -T takes the names that smtpd.conf takes.
func TestSuites(t *testing.T) {
	const want = tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384
	for _, name := range []string{"ECDHE-RSA-AES256-GCM-SHA384", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"} {
		p, err := parseTLS("noverify,ciphers=" + name)
		if err != nil || len(p.ciphers) != 1 || p.ciphers[0] != want {
			t.Errorf("%s: %v, %x", name, err, p.ciphers)
		}
	}
	if _, err := parseTLS("ciphers=NONE-SUCH"); err == nil {
		t.Error("an unknown name is taken")
	}
}

// TestHelo: a server that does not know EHLO is greeted with HELO, unless TLS or a
// login is wanted.
func TestHelo(t *testing.T) {
	for server, want := range map[string]int{"smtp://HOST": 0, "smtp+tls://HOST": 1} {
		ln, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		heard := make(chan string, 1)
		go func() {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			var all strings.Builder
			in := bufio.NewReader(conn)
			io.WriteString(conn, "220 old\r\n")
			for text := false; ; {
				line, err := in.ReadString('\n')
				if err != nil {
					break
				}
				all.WriteString(line)
				switch {
				case text:
					if text = line != ".\r\n"; !text {
						io.WriteString(conn, "250 taken\r\n")
					}
				case strings.HasPrefix(line, "EHLO"):
					io.WriteString(conn, "500 what\r\n")
				case strings.HasPrefix(line, "DATA"):
					text = true
					io.WriteString(conn, "354 go\r\n")
				default:
					io.WriteString(conn, "250 ok\r\n")
				}
			}
			heard <- all.String()
		}()
		var out bytes.Buffer
		args := []string{"-H", "me.test", "-F", "a@b.test", "-s", strings.ReplaceAll(server, "HOST", ln.Addr().String()), "u@d.test"}
		status := run(t.Context(), args, strings.NewReader("x\n"), &out)
		ln.Close()
		got := <-heard
		if status != want || want == 0 && got != "EHLO me.test\r\nHELO me.test\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<u@d.test>\r\nDATA\r\nx\r\n.\r\nQUIT\r\n" ||
			want == 1 && strings.Contains(got, "MAIL") {
			t.Errorf("%s: status %d, heard %q, said %q", server, status, got, out.String())
		}
	}
}

// TestLMTP: each recipient has its own reply after the text.
func TestLMTP(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	heard := make(chan string, 1)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		var all strings.Builder
		in := bufio.NewReader(conn)
		io.WriteString(conn, "220 lmtp\r\n")
		for text := false; ; {
			line, err := in.ReadString('\n')
			if err != nil {
				break
			}
			all.WriteString(line)
			switch {
			case text:
				if text = line != ".\r\n"; !text {
					io.WriteString(conn, "250 first\r\n550 5.2.2 second is full\r\n")
				}
			case strings.HasPrefix(line, "EHLO"), strings.HasPrefix(line, "HELO"):
				io.WriteString(conn, "500 this is LMTP\r\n")
			case strings.HasPrefix(line, "DATA"):
				text = true
				io.WriteString(conn, "354 go\r\n")
			default:
				io.WriteString(conn, "250 ok\r\n")
			}
		}
		heard <- all.String()
	}()
	var out bytes.Buffer
	status := run(t.Context(), []string{"-H", "me.test", "-F", "a@b.test", "-s", "lmtp://" + ln.Addr().String(), "u@d.test", "v@d.test"},
		strings.NewReader("x\n"), &out)
	got := <-heard
	if !strings.HasPrefix(got, "LHLO me.test\r\nMAIL FROM:<a@b.test>") || !strings.Contains(out.String(), "second is full") || status != 0 {
		t.Errorf("status %d, heard %q, said %q", status, got, out.String())
	}
}

// TestNoLines: what would begin another command is refused before it is sent.
func TestNoLines(t *testing.T) {
	for name, args := range map[string][]string{
		"sender":    {"-F", "a@b.test>\r\nRCPT TO:<evil@x.test", "u@d.test"},
		"recipient": {"-F", "a@b.test", "u@d.test>\nRCPT TO:<evil@x.test"},
		"helo":      {"-H", "me\r\nMAIL FROM:<evil@x.test>", "-F", "a@b.test", "u@d.test"},
	} {
		s := &server{}
		srv := smtp.NewServer(s)
		ln, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() { defer close(done); _ = srv.Serve(ln) }()
		var out bytes.Buffer
		run(t.Context(), append([]string{"-s", "smtp://" + ln.Addr().String()}, args...), strings.NewReader("x\n"), &out)
		ln.Close()
		srv.Close()
		<-done
		s.mu.Lock()
		if got := strings.Join(s.got, "|"); got != "" || !strings.Contains(out.String(), "control character") {
			t.Errorf("%s: got %q, said %q", name, got, out.String())
		}
		s.mu.Unlock()
	}
}
