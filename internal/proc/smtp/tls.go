package smtp

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"smtpd/internal/config"
)

// tlsConfig is how a listener does TLS: its certificates by SNI, with keys that
// never come here.
func tlsConfig(conf *config.Config, l *config.Listener, keys asker) (*tls.Config, error) {
	c := &certificates{byName: map[string]*tls.Certificate{}}
	for _, name := range l.PKI {
		name = strings.ToLower(name)
		cert, err := certificate(conf.PKI[name], keys)
		if err != nil {
			return nil, fmt.Errorf("pki %s: %w", name, err)
		}
		c.all = append(c.all, cert)
		c.byName[name] = cert
	}
	if len(c.all) == 0 {
		return nil, errors.New("no pki")
	}
	ciphers, err := config.ParseCiphers(l.Ciphers)
	if err != nil {
		return nil, err
	}
	t := &tls.Config{
		GetCertificate: c.get,
		NextProtos:     []string{"smtp"}, // another protocol's client is turned away (ALPACA)
		// A large sender mishandles tickets of Go servers; clients that log in gain from them.
		SessionTicketsDisabled: !l.Auth,
		CipherSuites:           ciphers.Suites,
	}
	t.MinVersion, t.MaxVersion = protocols(l.Protocols)
	return t, clientCerts(t, conf, l)
}

// clientCerts says what is asked of the client. A certificate is asked for only
// where the configuration names who may have signed it, or demands one.
func clientCerts(t *tls.Config, conf *config.Config, l *config.Listener) error {
	switch {
	case l.VerifyPeer:
		t.ClientAuth = tls.RequireAndVerifyClientCert
	case l.CA != "":
		t.ClientAuth = tls.VerifyClientCertIfGiven
	default:
		return nil
	}
	if l.CA == "" {
		roots, err := x509.SystemCertPool()
		if err != nil {
			return fmt.Errorf("system certificates: %w", err)
		}
		t.ClientCAs = roots
		return nil
	}
	ca := conf.CA[l.CA]
	t.ClientCAs = x509.NewCertPool()
	if ca == nil || !t.ClientCAs.AppendCertsFromPEM(ca.Cert) {
		return fmt.Errorf("ca %s: no certificate", l.CA)
	}
	return nil
}

// certificate makes a pki ready; its key signs in the keys process.
func certificate(p *config.PKI, keys asker) (*tls.Certificate, error) {
	if p == nil {
		return nil, errors.New("not configured")
	}
	cert := &tls.Certificate{}
	for rest := p.Cert; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type == "CERTIFICATE" {
			cert.Certificate = append(cert.Certificate, block.Bytes)
		}
	}
	if len(cert.Certificate) == 0 {
		return nil, errors.New("no certificate")
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		return nil, err
	}
	cert.Leaf = leaf
	cert.PrivateKey = &signer{keys: keys, pki: p.Name, pub: leaf.PublicKey}
	return cert, nil
}

// certificates are those of one listener.
type certificates struct {
	all    []*tls.Certificate // the first is for clients that name nobody we know
	byName map[string]*tls.Certificate
}

// get chooses by the name the client asked for: that of a pki entry, else one
// in a certificate.
func (c *certificates) get(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := strings.ToLower(strings.TrimSuffix(h.ServerName, "."))
	if name == "" {
		return c.all[0], nil
	}
	if cert := c.byName[name]; cert != nil {
		return cert, nil
	}
	for _, cert := range c.all {
		if cert.Leaf.VerifyHostname(name) == nil {
			return cert, nil
		}
	}
	return c.all[0], nil
}

// protocols reads the words of `protocols`: versions, groups of them, and "!"
// in front of what is left out. Go speaks a range; nothing below TLS 1.0.
func protocols(s string) (lowest, highest uint16) {
	groups := map[string][]uint16{
		"tlsv1": {tls.VersionTLS10}, "tlsv1.0": {tls.VersionTLS10}, "tlsv1.1": {tls.VersionTLS11},
		"tlsv1.2": {tls.VersionTLS12}, "tlsv1.3": {tls.VersionTLS13},
		"default": {tls.VersionTLS12, tls.VersionTLS13}, "secure": {tls.VersionTLS12, tls.VersionTLS13},
		"all":    {tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12, tls.VersionTLS13},
		"legacy": {tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12, tls.VersionTLS13},
	}
	on := map[uint16]bool{}
	for i, word := range strings.FieldsFunc(strings.ToLower(s), func(r rune) bool { return r == ',' || r == ':' || r == ' ' }) {
		name, not := strings.CutPrefix(word, "!")
		if i == 0 && not {
			for _, v := range groups["all"] {
				on[v] = true
			}
		}
		for _, v := range groups[name] {
			on[v] = !not
		}
	}
	for _, v := range groups["all"] {
		if on[v] && lowest == 0 {
			lowest = v
		}
		if on[v] {
			highest = v
		}
	}
	if lowest == 0 {
		return tls.VersionTLS12, tls.VersionTLS13
	}
	return lowest, highest
}
