package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/emersion/go-sasl"
	gosmtp "github.com/emersion/go-smtp"

	"smtpd/internal/resolver/dnstest"
)

// seedHosts are the hosts that the seeds relay to, far off, each on an address of
// its own with the ports 25, 465 and 587. One offers no TLS; only one has a certificate
// that an authority signed.
type seedHosts struct {
	hosts map[string]string // by address

	mu      sync.Mutex
	arrived map[string]string // what came, by the token of the mail
}

const (
	seedHostNoTLS    = "mail.defcon.no"
	seedHostVerified = "smtp.example.net"
)

// seedHostNames are their names, in the order of their addresses. mx.NAME is the
// MX of NAME.
var seedHostNames = []string{"mx.far.example", "mx.example.net", "mailrelay.domain.lan", "smtp.gmail.com", "smtp.example.com",
	"smtp.hig.no", seedHostVerified, "rt.home.defcon.no", seedHostNoTLS, "mx1.example.org"}

// startSeedHosts starts them, and the name server of this world.
func startSeedHosts(t *testing.T, f *farNet, a *authority) *seedHosts {
	t.Helper()
	h := &seedHosts{hosts: map[string]string{}, arrived: map[string]string{}}
	a.issue(t, seedHostVerified, true, false)
	good, err := tls.LoadX509KeyPair(a.path(seedHostVerified+".crt"), a.path(seedHostVerified+".key"))
	if err != nil {
		t.Fatal(err)
	}
	cert, key := selfSigned(t)
	odd, err := tls.X509KeyPair([]byte(cert), []byte(key))
	if err != nil {
		t.Fatal(err)
	}
	var zone strings.Builder
	for i, name := range seedHostNames {
		addr := fmt.Sprintf("198.51.100.%d", i+1)
		h.hosts[addr] = name
		fmt.Fprintf(&zone, "%s A %s\n", name, addr)
		if domain, ok := strings.CutPrefix(name, "mx."); ok {
			fmt.Fprintf(&zone, "%s MX 10 %s\n", domain, name)
		}
		conf := &tls.Config{Certificates: []tls.Certificate{odd}}
		if name == seedHostVerified {
			conf.Certificates[0] = good
		}
		for _, port := range []string{"25", "465", "587"} {
			ln := f.listen(t, addr, port)
			srv := gosmtp.NewServer(h)
			srv.Domain = name
			switch {
			case name == seedHostNoTLS:
			case port == "465":
				ln = tls.NewListener(ln, conf)
			default:
				srv.TLSConfig = conf
			}
			go func() { _ = srv.Serve(ln) }() // ends with the test
			t.Cleanup(func() { _ = srv.Close() })
		}
	}
	names, err := dnstest.StartAt("127.0.0.1:53", zone.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(names.Close)
	return h
}

// NewSession implements gosmtp.Backend.
func (h *seedHosts) NewSession(c *gosmtp.Conn) (gosmtp.Session, error) {
	addr, port, err := net.SplitHostPort(c.Conn().LocalAddr().String())
	if err != nil {
		return nil, err
	}
	return &seedSession{h: h, conn: c, host: h.hosts[addr], port: port}, nil
}

type seedSession struct {
	h          *seedHosts
	conn       *gosmtp.Conn
	host, port string
	login      string
	to         []string
}

// AuthMechanisms implements gosmtp.AuthSession.
func (s *seedSession) AuthMechanisms() []string { return []string{sasl.Plain} }

// Auth implements gosmtp.AuthSession: all may log in.
func (s *seedSession) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, user, password string) error {
		s.login = user + ":" + password
		return nil
	}), nil
}

func (s *seedSession) Mail(string, *gosmtp.MailOptions) error { return nil }

func (s *seedSession) Rcpt(to string, _ *gosmtp.RcptOptions) error {
	s.to = append(s.to, to)
	return nil
}

var tokenRE = regexp.MustCompile(`(?m)^X-Token: (\w+)`)

// Data notes who sent a mail to whom, and how the session was.
func (s *seedSession) Data(r io.Reader) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	token := tokenRE.FindSubmatch(b)
	if token == nil {
		return fmt.Errorf("no token in %q", b)
	}
	how := "clear"
	if _, ok := s.conn.TLSConnectionState(); ok {
		how = "tls"
	}
	what := fmt.Sprintf("%s:%s %s login %q helo %s for %s", s.host, s.port, how, s.login, s.conn.Hostname(), strings.Join(s.to, ","))
	if strings.Contains(string(b), "\nDKIM-Signature: ") || strings.HasPrefix(string(b), "DKIM-Signature: ") {
		what += " signed"
	}
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	s.h.arrived[string(token[1])] += what
	return nil
}

func (s *seedSession) Reset()        { s.to = nil }
func (s *seedSession) Logout() error { return nil }

// places gives what arrived, by token, and forgets it.
func (h *seedHosts) places() map[string]string {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := maps.Clone(h.arrived)
	h.arrived = map[string]string{}
	return m
}

// secretsOf reads a table of credentials: label to "user:password".
func secretsOf(text string) map[string]string {
	m := map[string]string{}
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) == 2 {
			user, _, _ := strings.Cut(f[0], "@")
			if !slices.Contains(strings.Split(f[1], ""), ":") {
				f[1] = user + ":" + f[1]
			}
			m[f[0]] = f[1]
		}
	}
	return m
}
