package mta

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"smtpd/internal/config"
)

// certError is a certificate that does not hold, in the words of the log.
type certError string

func (e certError) Error() string { return "IO Error: certificate verification failed: " + string(e) }

// tlsConfig is for one connection to the host of that name. Verification is
// done here and not by crypto/tls, so that the reason can be told in one line,
// and so that later policies can decide otherwise.
func tlsConfig(r *relay, host string, trust Trust) (*tls.Config, error) {
	c := &tls.Config{
		ServerName:         host,
		InsecureSkipVerify: true, // see VerifyConnection
		MinVersion:         tls.VersionTLS12,
		ClientSessionCache: r.sessions,
	}
	if err := setProtocols(c, r.protocols); err != nil {
		return nil, err
	}
	if err := setCiphers(c, r.ciphers); err != nil {
		return nil, err
	}
	if r.pki != "" {
		cert, err := trust.Certificate(r.pki)
		if err != nil {
			return nil, fmt.Errorf("certificate of pki %s: %w", r.pki, err)
		}
		if cert != nil {
			c.Certificates = []tls.Certificate{*cert}
		}
	}
	if r.policy.verify {
		roots, err := trust.Roots(r.ca)
		if err != nil {
			return nil, fmt.Errorf("certificates of ca %s: %w", r.ca, err)
		}
		c.VerifyConnection = func(cs tls.ConnectionState) error {
			return verifyChain(cs.PeerCertificates, roots, host, time.Now())
		}
	}
	return c, nil
}

// verifyChain checks chain and name; nil roots trust nobody.
func verifyChain(certs []*x509.Certificate, roots *x509.CertPool, host string, now time.Time) error {
	if len(certs) == 0 {
		return certError("no certificate")
	}
	opt := x509.VerifyOptions{Roots: roots, DNSName: host, CurrentTime: now,
		Intermediates: x509.NewCertPool()}
	if opt.Roots == nil {
		opt.Roots = x509.NewCertPool()
	}
	for _, c := range certs[1:] {
		opt.Intermediates.AddCert(c)
	}
	_, err := certs[0].Verify(opt)
	if err == nil {
		return nil
	}
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &unknown) && bytes.Equal(certs[0].RawIssuer, certs[0].RawSubject):
		return certError("self-signed certificate")
	case errors.As(err, &unknown):
		return certError("unable to get local issuer certificate")
	case errors.As(err, &name):
		return certError("name of the host is not in the certificate")
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && now.Before(certs[0].NotBefore):
		return certError("certificate is not yet valid")
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return certError("certificate has expired")
	}
	return certError(err.Error())
}

// fingerprint is of the certificate that the host showed: "SHA256:hex".
func fingerprint(cs *tls.ConnectionState) string {
	if len(cs.PeerCertificates) == 0 {
		return "-"
	}
	sum := sha256.Sum256(cs.PeerCertificates[0].Raw)
	return "SHA256:" + hex.EncodeToString(sum[:])
}

// cipherText is "TLSv1.3:TLS_AES_256_GCM_SHA384:256".
func cipherText(cs *tls.ConnectionState) string {
	name := tls.CipherSuiteName(cs.CipherSuite)
	if cs.Version < tls.VersionTLS13 {
		name = config.OpenSSLName(name)
	}
	bits := "128"
	if strings.Contains(name, "AES_256") || strings.Contains(name, "AES256") || strings.Contains(name, "CHACHA20") {
		bits = "256"
	}
	version := strings.ReplaceAll(tls.VersionName(cs.Version), "TLS ", "TLSv")
	return version + ":" + name + ":" + bits
}

// versions are the protocol words of smtpd.conf, as sets.
var versions = map[string][]uint16{
	"tlsv1.0": {tls.VersionTLS10}, "tlsv1.1": {tls.VersionTLS11},
	"tlsv1.2": {tls.VersionTLS12}, "tlsv1.3": {tls.VersionTLS13},
	"tlsv1":  {tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12, tls.VersionTLS13},
	"all":    {tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12, tls.VersionTLS13},
	"legacy": {tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12, tls.VersionTLS13},
	"secure": {tls.VersionTLS12, tls.VersionTLS13}, "default": {tls.VersionTLS12, tls.VersionTLS13},
}

// setProtocols reads the protocols option: words of versions, with a ! in front
// to take away. crypto/tls takes a range: from the lowest to the highest left.
func setProtocols(c *tls.Config, s string) error {
	set := map[uint16]bool{}
	for _, w := range strings.FieldsFunc(strings.ToLower(s), isSeparator) {
		word, not := strings.CutPrefix(w, "!")
		vs, ok := versions[word]
		if !ok {
			return fmt.Errorf("unknown protocol %q", w)
		}
		for _, v := range vs {
			set[v] = !not
		}
	}
	first := true
	for v := uint16(tls.VersionTLS10); v <= tls.VersionTLS13; v++ {
		if !set[v] {
			continue
		}
		if first {
			c.MinVersion, first = v, false
		}
		c.MaxVersion = v
	}
	if first && s != "" {
		return fmt.Errorf("no protocol is left by %q", s)
	}
	return nil
}

func isSeparator(r rune) bool { return r == ',' || r == ':' || r == ' ' }

// setCiphers reads the ciphers option.
func setCiphers(c *tls.Config, s string) error {
	list, err := config.ParseCiphers(s)
	c.CipherSuites = list.Suites
	return err
}
