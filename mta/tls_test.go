package mta

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"strings"
	"testing"
	"time"

	"smtpd/internal/config"
)

// bubbleTime is when a synctest bubble begins; certificates are made for it.
var bubbleTime = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// authority signs certificates.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t}
	a.key, a.cert = a.make("Test CA", nil, bubbleTime.Add(-time.Hour), time.Now().Add(time.Hour*24))
	return a
}

// pool trusts the authority.
func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

func (a *authority) make(name string, parent *x509.Certificate, from, to time.Time) (*ecdsa.PrivateKey, *x509.Certificate) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: from, NotAfter: to, BasicConstraintsValid: true}
	signer := key
	if parent == nil {
		parent = tmpl
		tmpl.IsCA, tmpl.KeyUsage = name == "Test CA", x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
	} else {
		signer = a.key
	}
	if name != "Test CA" {
		tmpl.DNSNames = []string{name}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return key, cert
}

// leaf is a certificate for a host; signed by itself when own.
func (a *authority) leaf(name string, from, to time.Duration, own bool) *tls.Certificate {
	parent := a.cert
	if own {
		parent = nil
	}
	key, cert := a.make(name, parent, bubbleTime.Add(from), bubbleTime.Add(to))
	return &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

// secure goes on inside TLS.
func (p *peer) secure(cert *tls.Certificate, change func(*tls.Config)) bool {
	c := &tls.Config{Certificates: []tls.Certificate{*cert}}
	if change != nil {
		change(c)
	}
	conn := tls.Server(p.conn, c)
	if conn.Handshake() != nil {
		return false
	}
	p.conn, p.in = conn, bufio.NewReaderSize(conn, 1<<20)
	return true
}

// tlsHost offers STARTTLS, or speaks TLS at once.
func tlsHost(cert *tls.Certificate, implicit bool, inside *goodHost) func(*peer) {
	return func(p *peer) {
		if implicit {
			if p.secure(cert, nil) {
				inside.serve(p)
			}
			return
		}
		p.say("220 mx")
		for {
			switch line := p.hear(); {
			case line == "":
				return
			case strings.HasPrefix(line, "EHLO"):
				p.say("250-mx\r\n250 STARTTLS\r\n")
			case line == "STARTTLS":
				p.say("220 go")
				if p.secure(cert, nil) {
					inside.serveFrom(p)
				}
				return
			case strings.HasPrefix(line, "MAIL"):
				p.say("250 in clear")
			case strings.HasPrefix(line, "RCPT"):
				p.say("250 in clear")
			case line == "DATA":
				p.say("354 in clear")
				p.body()
				p.say("250 2.0.0 in clear")
			default:
				p.say("502 what")
			}
		}
	}
}

func TestTLS(t *testing.T) {
	a := newAuthority(t)
	good := a.leaf("mx.d.test", -time.Hour, time.Hour, false)
	expired := a.leaf("mx.d.test", -2*time.Hour, -time.Hour, false)
	early := a.leaf("mx.d.test", time.Hour, 2*time.Hour, false)
	wrong := a.leaf("other.test", -time.Hour, time.Hour, false)
	self := a.leaf("mx.d.test", -time.Hour, time.Hour, true)
	foreign := newAuthority(t).leaf("mx.d.test", -time.Hour, time.Hour, false)
	const network = "u@d.test 451 Network error on destination MXs\n"
	const ok = "u@d.test 250 250 2.0.0 queued as ABC123\n"
	const clear = "u@d.test 250 250 2.0.0 in clear\n"
	inside := &goodHost{}
	host := func(c *tls.Certificate) func(*peer) { return tlsHost(c, false, inside) }
	tests := map[string]struct {
		relay config.Relay
		url   string // of the relay; empty: MX
		host  func(*peer)
		want  string
		log   string
	}{
		"opportunistic":          {config.Relay{}, "", host(good), ok, `mta cert-check result="unverified" fingerprint="SHA256:`},
		"opportunistic, self":    {config.Relay{}, "", host(self), ok, "mta tls ciphers=TLSv1.3:TLS_"},
		"opportunistic, expired": {config.Relay{}, "", host(expired), ok, ""},
		"not offered":            {config.Relay{}, "", (&goodHost{}).serve, ok, ""},
		"required":               {config.Relay{TLS: true}, "", host(good), ok, `mta cert-check result="valid" fingerprint="SHA256:`},
		"required, expired":      {config.Relay{TLS: true}, "", host(expired), network, "mta error reason=IO Error: certificate verification failed: certificate has expired\n"},
		"required, early":        {config.Relay{TLS: true}, "", host(early), network, "verification failed: certificate is not yet valid"},
		"required, wrong name":   {config.Relay{TLS: true}, "", host(wrong), network, "verification failed: name of the host is not in the certificate"},
		"required, self-signed":  {config.Relay{TLS: true}, "", host(self), network, "mta error reason=IO Error: certificate verification failed: self-signed certificate\n"},
		"required, foreign":      {config.Relay{TLS: true}, "", host(foreign), network, "verification failed: unable to get local issuer certificate"},
		"required, not offered":  {config.Relay{TLS: true}, "", (&goodHost{}).serve, network, "mta error reason=TLS required but not supported by remote host\n"},
		"no-verify":              {config.Relay{TLS: true, NoVerify: true}, "", host(self), ok, `result="unverified"`},
		"smtp+tls":               {config.Relay{}, "smtp+tls://mx.d.test", host(good), ok, `result="valid"`},
		"smtp+tls, self-signed":  {config.Relay{}, "smtp+tls://mx.d.test", host(self), network, "self-signed"},
		"smtp+notls":             {config.Relay{}, "smtp+notls://mx.d.test", host(good), clear, "address=smtp+notls://"},
		"smtps":                  {config.Relay{}, "smtps://mx.d.test:25", tlsHost(good, true, inside), ok, "mta connecting address=smtps://192.0.2.1:25"},
		"smtps, wrong name":      {config.Relay{}, "smtps://mx.d.test:25", tlsHost(wrong, true, inside), network, "not in the certificate"},
		"STARTTLS 454, optional": {config.Relay{}, "", play("S: 220 mx\nC: EHLO .*\nS: 250-mx\nS: 250 STARTTLS\nC: STARTTLS\nS: 454 no\nC: MAIL.*\nS: 550 seen"), "u@d.test 550 550 seen\n", ""},
		"STARTTLS 454, required": {config.Relay{TLS: true}, "", play("S: 220 mx\nC: EHLO .*\nS: 250-mx\nS: 250 STARTTLS\nC: STARTTLS\nS: 454 no"), network, "STARTTLS rejected: 454 no"},
		"octets behind STARTTLS": {config.Relay{TLS: true}, "", play("S: 220 mx\nC: EHLO .*\nS: 250-mx\nS: 250 STARTTLS\nC: STARTTLS\n" + `S: 220 go\r\n250 injected\r\n`), network, "Bad response: data before TLS was ready"},
		"EHLO refused, required": {config.Relay{TLS: true}, "", play("S: 220 mx\nC: EHLO .*\nS: 502 no"), network, "EHLO rejected: 502 no"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.roots = a.pool()
			w.mx("d.test", "10 mx.d.test 192.0.2.1")
			w.hosts["192.0.2.1:25"] = tt.host
			if tt.url != "" {
				w.lists["<h>"] = []string{tt.url}
				tt.relay.Host = "<h>"
			}
			w.run(func(e *Engine) {
				e.Submit(context.Background(), w.message(&tt.relay, "u@d.test"))
				w.wait(1)
			})
			if got := w.results(); got != tt.want {
				t.Errorf("got %q, want %q\n%s", got, tt.want, w.text())
			}
			if !strings.Contains(w.text(), tt.log) {
				t.Errorf("log has no %q:\n%s", tt.log, w.text())
			}
		})
	}
}

// A handshake that fails is followed by one connection in clear, if that will
// do.
func TestDowngrade(t *testing.T) {
	for name, after := range map[string]string{"garbage": `S: nothing like TLS`, "drop": "drop", "hang": "hang"} {
		for _, required := range []bool{false, true} {
			w := newWorld(t)
			w.mx("d.test", "10 mx.d.test 192.0.2.1")
			n := 0
			w.hosts["192.0.2.1:25"] = func(p *peer) {
				if n++; n > 1 {
					(&goodHost{ext: []string{"STARTTLS"}}).serve(p)
					return
				}
				play("S: 220 mx\nC: EHLO .*\nS: 250-mx\nS: 250 STARTTLS\nC: STARTTLS\nS: 220 go\n" + after)(p)
			}
			w.run(func(e *Engine) {
				e.Submit(context.Background(), w.message(&config.Relay{TLS: required}, "u@d.test"))
				w.wait(1)
			})
			code := w.reports[0].Status.Code
			if required && (code != 451 || n != 1) || !required && (code != 250 || n != 2 ||
				w.count(`^smtp-out: Error on session [0-9a-f]{16}: opportunistic TLS failed, downgrading to plain$`) != 1) {
				t.Errorf("%s, required %v: %d connections\n%s%s", name, required, n, w.results(), w.text())
			}
		}
	}
}

func TestClientCertificate(t *testing.T) {
	a := newAuthority(t)
	w := newWorld(t)
	w.roots = a.pool()
	w.certs["us"] = a.leaf("me.test", -time.Hour, time.Hour, false)
	w.lists["<h>"] = []string{"smtps://mx.d.test:25"}
	w.addr("mx.d.test", "192.0.2.1")
	shown := ""
	w.hosts["192.0.2.1:25"] = func(p *peer) {
		if p.secure(a.leaf("mx.d.test", -time.Hour, time.Hour, false), func(c *tls.Config) { c.ClientAuth = tls.RequireAnyClientCert }) {
			shown = p.conn.(*tls.Conn).ConnectionState().PeerCertificates[0].DNSNames[0]
			(&goodHost{}).serve(p)
		}
	}
	w.run(func(e *Engine) {
		e.Submit(context.Background(), w.message(&config.Relay{Host: "<h>", PKI: "us"}, "u@d.test"))
		w.wait(1)
	})
	if shown != "me.test" {
		t.Errorf("showed %q\n%s", shown, w.text())
	}
}

// A relay that asks more of TLS than a host can does not take the host from
// those it is good enough for.
func TestTLSTermsApart(t *testing.T) {
	a := newAuthority(t)
	good := a.leaf("mx.d.test", -time.Hour, time.Hour, false)
	for name, refused := range map[string]config.Relay{
		"protocols": {Protocols: "tlsv1.3"},
		"ciphers":   {Ciphers: "ECDHE-RSA-AES256-GCM-SHA384"}, // the key is not of RSA
		"the name":  {Host: "<other>"},
	} {
		w := newWorld(t)
		w.roots = a.pool()
		w.addr("mx.d.test", "192.0.2.1")
		w.addr("mx.e.test", "192.0.2.1")
		w.lists["<h>"] = []string{"smtp+tls://mx.d.test:25"}
		w.lists["<other>"] = []string{"smtp+tls://mx.e.test:25"}
		w.hosts["192.0.2.1:25"] = func(p *peer) {
			p.say("220 mx")
			p.hear()
			p.say("250-mx\r\n250 STARTTLS\r\n")
			p.hear()
			p.say("220 go")
			if p.secure(good, func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }) {
				(&goodHost{}).serveFrom(p)
			}
		}
		if refused.Host == "" {
			refused.Host = "<h>"
		}
		w.run(func(e *Engine) {
			e.Submit(context.Background(), w.message(&refused, "u@far.test"))
			w.wait(1)
			e.Submit(context.Background(), w.message(&config.Relay{Host: "<h>"}, "v@far.test"))
			w.wait(2)
		})
		if w.reports[0].Status.Code != 451 || w.reports[1].Status.Code != 250 {
			t.Errorf("%s: %s%s", name, w.results(), w.text())
		}
	}
}

func TestProtocolsAndCiphers(t *testing.T) {
	for in, want := range map[string][2]uint16{
		"":                 {tls.VersionTLS12, 0},
		"tlsv1.3":          {tls.VersionTLS13, tls.VersionTLS13},
		"tlsv1.2,tlsv1.3":  {tls.VersionTLS12, tls.VersionTLS13},
		"all":              {tls.VersionTLS10, tls.VersionTLS13},
		"all:!tlsv1.0":     {tls.VersionTLS11, tls.VersionTLS13},
		"secure, !tlsv1.3": {tls.VersionTLS12, tls.VersionTLS12},
	} {
		c := &tls.Config{MinVersion: tls.VersionTLS12}
		if err := setProtocols(c, in); err != nil || c.MinVersion != want[0] || c.MaxVersion != want[1] {
			t.Errorf("%q: %v, %x to %x", in, err, c.MinVersion, c.MaxVersion)
		}
	}
	for _, bad := range []string{"sslv3", "tlsv1.3 !tlsv1.3"} {
		if setProtocols(&tls.Config{}, bad) == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	c := &tls.Config{}
	setCiphers(c, "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:!aNULL")
	if len(c.CipherSuites) != 2 || c.CipherSuites[0] != tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 ||
		c.CipherSuites[1] != tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 {
		t.Errorf("suites %x", c.CipherSuites)
	}
	cs := &tls.ConnectionState{Version: tls.VersionTLS12, CipherSuite: tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384}
	if got := cipherText(cs); got != "TLSv1.2:ECDHE-RSA-AES256-GCM-SHA384:256" {
		t.Errorf("got %s", got)
	}
	cs = &tls.ConnectionState{Version: tls.VersionTLS13, CipherSuite: tls.TLS_AES_128_GCM_SHA256}
	if got := cipherText(cs); got != "TLSv1.3:TLS_AES_128_GCM_SHA256:128" {
		t.Errorf("got %s", got)
	}
}

func TestDecideTLS(t *testing.T) {
	tests := map[string]struct {
		f      tlsFacts
		need   tlsNeed
		verify bool
		ok     bool
	}{
		"nothing asked":      {tlsFacts{scheme: config.SchemeSMTP}, tlsIfCan, false, true},
		"tls":                {tlsFacts{scheme: config.SchemeSMTP, tls: true}, tlsRequired, true, true},
		"tls no-verify":      {tlsFacts{scheme: config.SchemeSMTP, tls: true, noVerify: true}, tlsRequired, false, true},
		"smtp+tls":           {tlsFacts{scheme: config.SchemeSMTPTLS}, tlsRequired, true, true},
		"smtp+tls no-verify": {tlsFacts{scheme: config.SchemeSMTPTLS, tls: true, noVerify: true}, tlsRequired, false, true},
		"smtps":              {tlsFacts{scheme: config.SchemeSMTPS}, tlsImplicit, true, true},
		"smtps no-verify":    {tlsFacts{scheme: config.SchemeSMTPS, tls: true, noVerify: true}, tlsImplicit, false, true},
		"smtp+notls":         {tlsFacts{scheme: config.SchemeSMTPNoTLS}, tlsNever, false, true},
		"smtp+notls, tls":    {tlsFacts{scheme: config.SchemeSMTPNoTLS, tls: true}, tlsNever, false, false},
		"smtps, REQUIRETLS":  {tlsFacts{scheme: config.SchemeSMTPS, requireTLS: true, noVerify: true, tls: true}, tlsImplicit, true, true},
		"never":              {tlsFacts{scheme: config.SchemeSMTP, tls: true, domain: config.TLSWishNever}, tlsNever, false, true},
		"opportunistic":      {tlsFacts{scheme: config.SchemeSMTP, tls: true, domain: config.TLSWishOpportunistic}, tlsIfCan, false, true},
		"required":           {tlsFacts{scheme: config.SchemeSMTP, domain: config.TLSWishRequired}, tlsRequired, false, true},
		"verified":           {tlsFacts{scheme: config.SchemeSMTP, tls: true, noVerify: true, domain: config.TLSWishVerified}, tlsRequired, true, true},
		"never, REQUIRETLS":  {tlsFacts{scheme: config.SchemeSMTP, requireTLS: true, domain: config.TLSWishNever}, tlsRequired, true, true},
		"lmtp":               {tlsFacts{scheme: config.SchemeLMTP}, tlsIfCan, false, true},
		"REQUIRETLS":         {tlsFacts{scheme: config.SchemeSMTP, requireTLS: true, noVerify: true, tls: true}, tlsRequired, true, true},
		"REQUIRETLS, MX":     {tlsFacts{scheme: config.SchemeSMTP, requireTLS: true, host: hostFromDNS, tls: true}, tlsNever, false, false},
		"REQUIRETLS, DNSSEC": {tlsFacts{scheme: config.SchemeSMTP, requireTLS: true, host: hostSecured}, tlsRequired, true, true},
		"notice, MX":         {tlsFacts{scheme: config.SchemeSMTP, requireTLS: true, notice: true, host: hostFromDNS}, tlsRequired, true, true},
		"MX":                 {tlsFacts{scheme: config.SchemeSMTP, host: hostFromDNS}, tlsIfCan, false, true},
		"REQUIRETLS, notls":  {tlsFacts{scheme: config.SchemeSMTPNoTLS, requireTLS: true}, tlsNever, false, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p, fail := decideTLS(tt.f)
			if (fail == nil) != tt.ok || p.need != tt.need || p.verify != tt.verify || p.why == "" {
				t.Errorf("got %+v, %v", p, fail)
			}
		})
	}
}
