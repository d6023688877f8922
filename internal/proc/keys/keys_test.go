package keys

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/log"
	"smtpd/internal/privsep"
	"smtpd/internal/stat"
)

const bound = 20 * time.Second

// pair is one key in every form a file may have.
type pair struct {
	key crypto.Signer
	pem map[string]string
}

// pairs makes one key of each kind, once for all tests.
var pairs = sync.OnceValue(func() map[string]pair {
	r, err1 := rsa.GenerateKey(rand.Reader, 2048)
	e, err2 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	_, ed, err3 := ed25519.GenerateKey(rand.Reader)
	ec, err4 := x509.MarshalECPrivateKey(e)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		panic(err)
	}
	pkcs8 := func(k any) string {
		b, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			panic(err)
		}
		return block("PRIVATE KEY", b)
	}
	params := block("EC PARAMETERS", []byte{6, 8, 42, 134, 72, 206, 61, 3, 1, 7})
	return map[string]pair{
		"rsa": {r, map[string]string{"pkcs8": pkcs8(r), "pkcs1": block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(r))}},
		"ecdsa": {e, map[string]string{"pkcs8": pkcs8(e), "sec1": block("EC PRIVATE KEY", ec),
			"openssl": params + block("EC PRIVATE KEY", ec)}},
		"ed25519": {ed, map[string]string{"pkcs8": pkcs8(ed), "after text": "my key\n" + pkcs8(ed)}},
	}
})

func block(typ string, b []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: b}))
}

// process is Run with a link for smtp.
type process struct {
	smtp, control *ipc.Link
	configs       chan *config.Config
	logged        *safeBuffer
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}
func (b *safeBuffer) String() string { b.mu.Lock(); defer b.mu.Unlock(); return b.b.String() }

func keyring(keys map[string]string) *config.Config {
	c := config.Defaults()
	for name, k := range keys {
		c.PKI[name] = &config.PKI{Name: name, Key: config.Secret(k)}
	}
	return c
}

func start(t testing.TB, c *config.Config) *process {
	t.Helper()
	p := &process{smtp: ipc.NewLink(imsg.SMTP, imsg.Keys), control: ipc.NewLink(imsg.Control, imsg.Keys),
		configs: make(chan *config.Config), logged: &safeBuffer{}}
	mine := Peers{SMTP: ipc.NewLink(imsg.Keys, imsg.SMTP), MTA: ipc.NewLink(imsg.Keys, imsg.MTA),
		Lookup: ipc.NewLink(imsg.Keys, imsg.Lookup), Control: ipc.NewLink(imsg.Keys, imsg.Control)}
	l := log.New(p.logged, log.FormPlain)
	l.SetVerbose(true)
	ready := make(chan struct{})
	env := &privsep.Env{Role: imsg.Keys, Log: l, Stat: &stat.Set{}, Now: time.Now,
		Config: p.configs, Switches: make(chan *imsg.Switches), Ready: func() { close(ready) }}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, env, mine) }()
	p.configs <- c
	<-ready
	p.smtp.Serve(func(*ipc.Request) {}, nil, nil)
	p.control.Serve(func(*ipc.Request) {}, nil, nil)
	if err := errors.Join(ipc.Connect(p.smtp, mine.SMTP), ipc.Connect(p.control, mine.Control)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(bound):
			t.Error("Run did not end")
		}
		for _, l := range []*ipc.Link{p.smtp, p.control, mine.SMTP, mine.Control} {
			l.Close()
		}
	})
	return p
}

// remote is a crypto.Signer whose key is at the other end of a link.
type remote struct {
	link *ipc.Link
	name string
	pub  crypto.PublicKey
}

func (r *remote) Public() crypto.PublicKey { return r.pub }

func (r *remote) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	m := &imsg.Sign{PKI: r.name, Hash: uint8(opts.HashFunc()), PSSSalt: imsg.NoPSS, Digest: digest}
	if o, ok := opts.(*rsa.PSSOptions); ok {
		m.PSSSalt = int64(o.SaltLength)
	}
	a, err := ipc.Ask[*imsg.Signature](context.Background(), r.link, m)
	if err == nil && len(a.Data) == 0 {
		err = errors.New("no signature")
	}
	if err != nil {
		return nil, err
	}
	return a.Data, nil
}

// Every kind of key in every form serves a TLS handshake, in TLS 1.2 and 1.3.
func TestHandshakes(t *testing.T) {
	for kind, pr := range pairs() {
		for form, text := range pr.pem {
			t.Run(kind+" "+form, func(t *testing.T) {
				p := start(t, keyring(map[string]string{"mx": text}))
				r := &remote{p.smtp, "mx", pr.key.Public()}
				tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mx"},
					DNSNames: []string{"mx"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
				cert, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, r.pub, r)
				if err != nil {
					t.Fatal(err)
				}
				for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
					handshake(t, version, tls.Certificate{Certificate: [][]byte{cert}, PrivateKey: r})
				}
			})
		}
	}
}

func handshake(t *testing.T, version uint16, cert tls.Certificate) {
	t.Helper()
	pool := x509.NewCertPool()
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	pool.AddCert(leaf)
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	a.SetDeadline(time.Now().Add(bound))
	b.SetDeadline(time.Now().Add(bound))
	served := make(chan error, 1)
	go func() { served <- tls.Server(a, &tls.Config{Certificates: []tls.Certificate{cert}}).Handshake() }()
	err = tls.Client(b, &tls.Config{ServerName: "mx", RootCAs: pool, MaxVersion: version}).Handshake()
	if err = errors.Join(err, <-served); err != nil {
		t.Fatalf("version %x: %v", version, err)
	}
}

func TestSignatures(t *testing.T) {
	keys := map[string]string{"rsa": pairs()["rsa"].pem["pkcs1"], "ecdsa": pairs()["ecdsa"].pem["sec1"],
		"ed25519": pairs()["ed25519"].pem["pkcs8"], "broken": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "none": ""}
	p := start(t, keyring(keys))
	digest := func(n int) []byte { return bytes.Repeat([]byte{7}, n) }
	const no = imsg.NoPSS
	tests := map[string]struct {
		m  imsg.Sign
		ok bool
	}{
		"rsa sha256":              {imsg.Sign{PKI: "rsa", Hash: uint8(crypto.SHA256), PSSSalt: no, Digest: digest(32)}, true},
		"rsa md5sha1":             {imsg.Sign{PKI: "rsa", Hash: uint8(crypto.MD5SHA1), PSSSalt: no, Digest: digest(36)}, true},
		"rsa pss, salt as hash":   {imsg.Sign{PKI: "rsa", Hash: uint8(crypto.SHA512), PSSSalt: -1, Digest: digest(64)}, true},
		"rsa pss, longest salt":   {imsg.Sign{PKI: "rsa", Hash: uint8(crypto.SHA256), PSSSalt: 0, Digest: digest(32)}, true},
		"rsa pss, salt given":     {imsg.Sign{PKI: "rsa", Hash: uint8(crypto.SHA256), PSSSalt: 20, Digest: digest(32)}, true},
		"rsa pss, salt too long":  {imsg.Sign{PKI: "rsa", Hash: uint8(crypto.SHA256), PSSSalt: 1 << 40, Digest: digest(32)}, false},
		"rsa pss, salt negative":  {imsg.Sign{PKI: "rsa", Hash: uint8(crypto.SHA256), PSSSalt: -2, Digest: digest(32)}, false},
		"rsa without hash":        {imsg.Sign{PKI: "rsa", PSSSalt: no, Digest: digest(32)}, false},
		"rsa unknown hash":        {imsg.Sign{PKI: "rsa", Hash: 200, PSSSalt: no, Digest: digest(32)}, false},
		"rsa md4":                 {imsg.Sign{PKI: "rsa", Hash: uint8(crypto.MD4), PSSSalt: no, Digest: digest(16)}, false},
		"rsa digest too short":    {imsg.Sign{PKI: "rsa", Hash: uint8(crypto.SHA256), PSSSalt: no, Digest: digest(31)}, false},
		"rsa digest too long":     {imsg.Sign{PKI: "rsa", Hash: uint8(crypto.SHA256), PSSSalt: no, Digest: digest(33)}, false},
		"rsa no digest":           {imsg.Sign{PKI: "rsa", Hash: uint8(crypto.SHA256), PSSSalt: no}, false},
		"ecdsa sha384":            {imsg.Sign{PKI: "ecdsa", Hash: uint8(crypto.SHA384), PSSSalt: no, Digest: digest(48)}, true},
		"ecdsa with pss":          {imsg.Sign{PKI: "ecdsa", Hash: uint8(crypto.SHA256), PSSSalt: -1, Digest: digest(32)}, false},
		"ecdsa without hash":      {imsg.Sign{PKI: "ecdsa", PSSSalt: no, Digest: digest(32)}, false},
		"ecdsa digest too long":   {imsg.Sign{PKI: "ecdsa", Hash: uint8(crypto.SHA256), PSSSalt: no, Digest: digest(64)}, false},
		"ed25519":                 {imsg.Sign{PKI: "ed25519", PSSSalt: no, Digest: digest(146)}, true},
		"ed25519 prehashed":       {imsg.Sign{PKI: "ed25519", Hash: uint8(crypto.SHA512), PSSSalt: no, Digest: digest(64)}, false},
		"ed25519 with pss":        {imsg.Sign{PKI: "ed25519", PSSSalt: -1, Digest: digest(64)}, false},
		"unknown name":            {imsg.Sign{PKI: "nobody", Hash: uint8(crypto.SHA256), PSSSalt: no, Digest: digest(32)}, false},
		"no name":                 {imsg.Sign{Hash: uint8(crypto.SHA256), PSSSalt: no, Digest: digest(32)}, false},
		"key that does not parse": {imsg.Sign{PKI: "broken", PSSSalt: no, Digest: digest(32)}, false},
		"pki without key":         {imsg.Sign{PKI: "none", PSSSalt: no, Digest: digest(32)}, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			a, err := ipc.Ask[*imsg.Signature](t.Context(), p.smtp, &tt.m)
			if err != nil {
				t.Fatal(err)
			}
			if (len(a.Data) > 0) != tt.ok {
				t.Fatalf("signature of %d octets; want one: %v", len(a.Data), tt.ok)
			}
			if tt.ok && !verify(&tt.m, a.Data) {
				t.Fatal("the signature does not verify")
			}
		})
	}
	for name, k := range keys {
		lines := strings.Split(k, "\n")
		if len(lines) > 3 && strings.Contains(p.logged.String(), lines[1]) {
			t.Errorf("the key %s is in the log", name)
		}
	}
}

func verify(m *imsg.Sign, sig []byte) bool {
	switch pub := pairs()[m.PKI].key.Public().(type) {
	case *rsa.PublicKey:
		if m.PSSSalt == imsg.NoPSS {
			return rsa.VerifyPKCS1v15(pub, crypto.Hash(m.Hash), m.Digest, sig) == nil
		}
		return rsa.VerifyPSS(pub, crypto.Hash(m.Hash), m.Digest, sig, &rsa.PSSOptions{SaltLength: int(m.PSSSalt)}) == nil
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(pub, m.Digest, sig)
	case ed25519.PublicKey:
		return ed25519.Verify(pub, m.Digest, sig)
	}
	return false
}

func TestParseRefuses(t *testing.T) {
	tests := map[string]struct {
		text string
		want error
	}{
		"nothing":         {"", errNoKey},
		"no PEM":          {"hello", errNoKey},
		"a certificate":   {block("CERTIFICATE", []byte("x")), errNoKey},
		"garbage pkcs8":   {block("PRIVATE KEY", []byte("x")), errBadKey},
		"garbage pkcs1":   {block("RSA PRIVATE KEY", []byte("x")), errBadKey},
		"garbage sec1":    {block("EC PRIVATE KEY", []byte("x")), errBadKey},
		"encrypted pkcs8": {block("ENCRYPTED PRIVATE KEY", []byte("x")), errLocked},
		"encrypted old": {string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY",
			Headers: map[string]string{"DEK-Info": "AES-128-CBC,00"}, Bytes: []byte("x")})), errLocked},
	}
	for name, tt := range tests {
		if _, err := parse([]byte(tt.text)); err != tt.want {
			t.Errorf("%s: got %v; want %v", name, err, tt.want)
		}
	}
}

func TestKeyIsNotPrinted(t *testing.T) {
	k, err := parse([]byte(pairs()["rsa"].pem["pkcs8"]))
	if err != nil {
		t.Fatal(err)
	}
	d := pairs()["rsa"].key.(*rsa.PrivateKey).D.String()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if s := fmt.Sprintf(verb, k); s != "private key" || strings.Contains(s, d) {
			t.Errorf("%s prints %.20q", verb, s)
		}
	}
}

func TestReload(t *testing.T) {
	p := start(t, keyring(map[string]string{"old": pairs()["ed25519"].pem["pkcs8"]}))
	r := func(name string) error {
		_, err := (&remote{p.smtp, name, nil}).Sign(nil, []byte("text"), crypto.Hash(0))
		return err
	}
	if err := r("old"); err != nil {
		t.Fatal(err)
	}
	p.configs <- keyring(map[string]string{"new": pairs()["ed25519"].pem["pkcs8"]})
	p.configs <- keyring(map[string]string{"new": pairs()["ed25519"].pem["pkcs8"]}) // the first has been taken
	if err := r("new"); err != nil {
		t.Fatal(err)
	}
	if err := r("old"); err == nil {
		t.Fatal("a key that is gone signs")
	}
}

func TestMany(t *testing.T) {
	p := start(t, keyring(map[string]string{"rsa": pairs()["rsa"].pem["pkcs8"]}))
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			m := &imsg.Sign{PKI: "rsa", Hash: uint8(crypto.SHA256), PSSSalt: imsg.NoPSS, Digest: bytes.Repeat([]byte{byte(i)}, 32)}
			a, err := ipc.Ask[*imsg.Signature](context.Background(), p.smtp, m)
			if err != nil || !verify(m, a.Data) {
				t.Errorf("number %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if _, err := ipc.Ask[*imsg.Stats](t.Context(), p.control, &imsg.StatsGet{}); err != nil {
		t.Fatal(err)
	}
}

// FuzzParse: a key file is the operator's, but it must not bring the process
// down, and what parses must sign.
func FuzzParse(f *testing.F) {
	for _, pr := range pairs() {
		for _, text := range pr.pem {
			f.Add([]byte(text))
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		k, err := parse(text)
		if err != nil {
			return
		}
		for _, m := range []imsg.Sign{
			{PSSSalt: imsg.NoPSS, Digest: []byte("x")},
			{PSSSalt: imsg.NoPSS, Hash: uint8(crypto.SHA256), Digest: make([]byte, 32)},
		} {
			if sig, err := k.sign(&m); (err == nil) != (len(sig) > 0) {
				t.Fatalf("signature of %d octets, error %v", len(sig), err)
			}
		}
	})
}

func BenchmarkSign(b *testing.B) {
	for _, kind := range []string{"rsa", "ecdsa"} {
		b.Run(kind, func(b *testing.B) {
			p := start(b, keyring(map[string]string{kind: pairs()[kind].pem["pkcs8"]}))
			m := &imsg.Sign{PKI: kind, Hash: uint8(crypto.SHA256), PSSSalt: imsg.NoPSS, Digest: make([]byte, 32)}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := ipc.Ask[*imsg.Signature](context.Background(), p.smtp, m); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestRenewal: after a reload the key before still signs for those who ask for
// it by its name; the one before that is gone.
func TestRenewal(t *testing.T) {
	s := &state{log: log.Discard()}
	load := func(names ...string) {
		for _, n := range names {
			for _, text := range pairs()[n].pem {
				s.configure(&config.Config{PKI: map[string]*config.PKI{"mx": {Name: "mx", Key: config.Secret(text)}}})
			}
		}
	}
	ask := func(name string) bool {
		m := &imsg.Sign{PKI: "mx", Hash: uint8(crypto.SHA256), PSSSalt: imsg.NoPSS, Digest: make([]byte, 32)}
		if name != "" {
			m.KeyID = privsep.KeyID(pairs()[name].key.Public())
		}
		return len(s.sign(m)) > 0
	}
	load("ecdsa")
	if !ask("") || !ask("ecdsa") || ask("rsa") {
		t.Error("one key")
	}
	load("rsa") // in several forms: repeating a key pushes nothing out
	if !ask("") || !ask("ecdsa") || !ask("rsa") {
		t.Error("after a renewal")
	}
	load("ed25519")
	if ask("ecdsa") || !ask("rsa") {
		t.Error("after the second")
	}
	s.configure(&config.Config{})
	if ask("") || ask("rsa") {
		t.Error("the entry has gone")
	}
}

// TestLeaving: the key of an entry that goes serves the sessions of before until
// the configuration changes once more.
func TestLeaving(t *testing.T) {
	text := pairs()["ed25519"].pem["pkcs8"]
	s := &state{log: log.Discard()}
	ask := func() bool {
		return len(s.sign(&imsg.Sign{PKI: "mx", PSSSalt: imsg.NoPSS, Digest: []byte("x")})) > 0
	}
	s.configure(keyring(map[string]string{"mx": text}))
	for step, want := range []bool{true, false} {
		s.configure(keyring(nil))
		if got := ask(); got != want {
			t.Errorf("change %d after it went: signs %v, want %v", step+1, got, want)
		}
	}
}
