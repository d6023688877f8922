package parser

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"smtpd/internal/config"
)

const (
	maxCert     = 16 << 20            // octets of a certificate or key file; ours
	expiresSoon = 21 * 24 * time.Hour // when a certificate is warned of
	certMode    = fs.FileMode(0o755)
	keyMode     = fs.FileMode(0o740)
)

// pkiInfo is a pki name with where its parts were written.
type pkiInfo struct {
	cfg       *config.PKI
	cert, key *token
	last      pos
}

// pki adds to what one name stands for; several statements may.
func (c *checker) pki(st *stmt, n *pkiStmt) {
	name := strings.ToLower(n.name.text)
	if name != "*" && !validName(name) {
		c.errorf(n.name.pos, "not a valid domain name: %s", n.name.text)
		return
	}
	p := c.pkis[name]
	if p == nil {
		p = &pkiInfo{cfg: &config.PKI{Name: name, DHE: "none", Pos: c.at(st.pos)}}
		c.pkis[name] = p
		c.cfg.PKI[name] = p.cfg
	}
	p.last = st.pos
	for _, o := range n.opts {
		switch o.key {
		case "cert":
			p.cert, p.cfg.CertFile = o.arg, o.arg.text
		case "key":
			p.key, p.cfg.KeyFile = o.arg, o.arg.text
		case "dhe":
			switch v := strings.ToLower(o.arg.text); v {
			case "none", "auto", "legacy":
				if p.cfg.DHE = v; v != "none" {
					c.warnf(o.arg.pos, "dhe %s: suites with DHE are not offered, those with ECDHE take their place", v)
				}
			default:
				c.errorf(o.arg.pos, "invalid DHE keyword: %s%s, expected none, auto or legacy", o.arg.text,
					suggestion(v, []string{"none", "auto", "legacy"}))
			}
		}
	}
}

func (c *checker) ca(st *stmt, n *caStmt) {
	name := strings.ToLower(n.name.text)
	if name != "*" && !validName(name) {
		c.errorf(n.name.pos, "not a valid domain name: %s", n.name.text)
		return
	}
	ca := &config.CA{Name: name, CertFile: n.cert.text, Pos: c.at(st.pos)}
	c.cfg.CA[name] = ca
	f := c.bundle(n.cert)
	if f.err != nil {
		c.errorf(n.cert.pos, "cannot load CA file %s: %v", n.cert.text, f.err)
		return
	}
	ca.Cert = f.data
}

// bundle is the text of a file of authorities, or what is wrong with it.
type bundle struct {
	data []byte
	err  error
}

// bundle reads each file once: that of a system has more than a hundred
// certificates, and many names may go by it.
func (c *checker) bundle(t *token) *bundle {
	b := c.bundles[t.text]
	if b == nil {
		b = &bundle{}
		if b.data, b.err = c.pemFile(t, "CA file", certMode); b.err == nil {
			_, b.err = certificates(b.data)
		}
		if c.bundles == nil {
			c.bundles = map[string]*bundle{}
		}
		c.bundles[t.text] = b
	}
	return b
}

// finishPKI resolves the names of pki and ca, which may stand below their use,
// and looks at the files.
func (c *checker) finishPKI() {
	pkis, cas := near(c.cfg.PKI), near(c.cfg.CA)
	for _, r := range c.refs {
		name := strings.ToLower(r.name.text)
		known := pkis
		_, ok := c.cfg.PKI[name]
		hint := fmt.Sprintf("; declare it: pki %s cert \"FILE\" and pki %s key \"FILE\"", r.name.text, r.name.text)
		if r.kind == "ca" {
			known = cas
			_, ok = c.cfg.CA[name]
			hint = fmt.Sprintf("; declare it: ca %s cert \"FILE\"", r.name.text)
		}
		if ok {
			continue
		}
		if s := c.diags.suggestion(name, known); s != "" {
			hint = ""
		}
		c.noSuch(r.kind, r.name, r.kind+" name not found: %s"+hint, known)
	}
	for _, name := range keys(c.pkis) {
		c.loadPKI(c.pkis[name])
	}
}

func (c *checker) loadPKI(p *pkiInfo) {
	name := p.cfg.Name
	if p.cert == nil && !c.unknown["pki "+name] {
		c.errorf(p.last, "pki %s: missing certificate file", name)
	}
	if p.key == nil && !c.unknown["pki "+name] {
		c.errorf(p.last, "pki %s: missing key file", name)
	}
	var leaf *x509.Certificate
	if p.cert != nil {
		data, err := c.pemFile(p.cert, "certificate", certMode)
		var certs []*x509.Certificate
		if err == nil {
			certs, err = certificates(data)
		}
		if err != nil {
			c.errorf(p.cert.pos, "cannot load certificate %s: %v", p.cert.text, err)
		} else {
			leaf, p.cfg.Cert = certs[0], data
			c.expiry(p.cert, leaf)
		}
	}
	if p.key == nil {
		return
	}
	data, err := c.pemFile(p.key, "key", keyMode)
	var key crypto.Signer
	if err == nil {
		key, err = privateKey(data)
	}
	if err != nil {
		c.errorf(p.key.pos, "cannot load key %s: %v", p.key.text, err)
		return
	}
	p.cfg.Key = config.Secret(data)
	if pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); leaf != nil && ok && !pub.Equal(leaf.PublicKey) {
		c.errorf(p.key.pos, "the key %s does not fit the certificate %s", p.key.text, p.cert.text)
	}
}

func (c *checker) expiry(t *token, leaf *x509.Certificate) {
	now := c.o.Now()
	day := leaf.NotAfter.UTC().Format(time.DateOnly)
	switch left := leaf.NotAfter.Sub(now); {
	case left < 0:
		c.warnf(t.pos, "the certificate %s ended on %s", t.text, day)
	case left < expiresSoon:
		c.warnf(t.pos, "the certificate %s ends on %s, in %d days", t.text, day, int(left.Hours()/24))
	case now.Before(leaf.NotBefore):
		c.warnf(t.pos, "the certificate %s is not valid before %s", t.text,
			leaf.NotBefore.UTC().Format(time.DateOnly))
	}
}

// pemFile reads a file that only root may have written.
func (c *checker) pemFile(t *token, what string, mode fs.FileMode) ([]byte, error) {
	if !strings.HasPrefix(t.text, "/") {
		c.warnf(t.pos, "%s %q is relative: it depends on the folder smtpd is started in", what, t.text)
	}
	data, err := c.o.System.ReadFile(t.text, maxCert)
	if err != nil {
		return nil, cause(err)
	}
	fi, err := c.o.System.Stat(t.text)
	switch {
	case err != nil:
		return nil, cause(err)
	case fi.UID != 0 && !c.o.Unprivileged:
		return nil, fmt.Errorf("not owned by root (uid 0), but by uid %d", fi.UID)
	case fi.Mode.Perm()&^mode != 0:
		return nil, fmt.Errorf("insecure permissions %04o, must be at most %04o, chmod %s it",
			fi.Mode.Perm(), mode, map[fs.FileMode]string{certMode: "644", keyMode: "600"}[mode])
	}
	return data, nil
}

// certificates reads all certificates of a PEM file; there is at least one.
func certificates(data []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for {
		var b *pem.Block
		if b, data = pem.Decode(data); b == nil {
			break
		}
		if b.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, fmt.Errorf("not a certificate: %w", err)
		}
		out = append(out, cert)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("not a certificate: no PEM block CERTIFICATE in it")
	}
	return out, nil
}

// privateKey reads the first key of a PEM file.
func privateKey(data []byte) (crypto.Signer, error) {
	if bytes.Contains(data, []byte("ENCRYPTED")) {
		return nil, fmt.Errorf("the key is protected by a passphrase, which nobody could type at start")
	}
	for {
		var b *pem.Block
		if b, data = pem.Decode(data); b == nil {
			return nil, fmt.Errorf("not a private key")
		}
		var key any
		var err error
		switch b.Type {
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(b.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(b.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(b.Bytes)
		default:
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("not a private key: %w", err)
		}
		s, ok := key.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("a private key of a kind that cannot sign")
		}
		return s, nil
	}
}
