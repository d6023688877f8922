package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"smtpd/internal/config"
)

// tlsParams is what -T sets.
type tlsParams struct {
	roots    *x509.CertPool // nil: the system's
	name     string         // to ask for and to check; empty: the server's
	noSNI    bool
	noVerify bool
	min, max uint16
	ciphers  []uint16
}

// versions are the protocols that -T can name.
var versions = map[string]uint16{"tlsv1.2": tls.VersionTLS12, "tlsv1.3": tls.VersionTLS13}

// parseTLS reads comma-separated words: cafile=, ciphers=, nosni, noverify,
// protocols= and servername=. Lists within a value are separated by colons.
func parseTLS(params string) (tlsParams, error) {
	t := tlsParams{min: tls.VersionTLS12}
	if params == "" {
		return t, nil
	}
	for param := range strings.SplitSeq(params, ",") {
		key, value, _ := strings.Cut(param, "=")
		var err error
		switch key {
		case "nosni":
			t.noSNI = true
		case "noverify":
			t.noVerify = true
		case "servername":
			t.name = value
		case "cafile":
			t.roots, err = readRoots(value)
		case "protocols":
			err = t.protocols(value)
		case "ciphers":
			t.ciphers, err = suites(value)
		default:
			err = errors.New("unknown TLS parameter: " + key)
		}
		if err != nil {
			return t, err
		}
	}
	return t, nil
}

func readRoots(path string) (*x509.CertPool, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, errors.New(path + ": no certificates")
	}
	return pool, nil
}

func (t *tlsParams) protocols(list string) error {
	var set []uint16
	for name := range strings.SplitSeq(list, ":") {
		v := versions[strings.ToLower(name)]
		if v == 0 {
			return fmt.Errorf("unknown TLS protocol: %s", name)
		}
		set = append(set, v)
	}
	t.min, t.max = slices.Min(set), slices.Max(set)
	return nil
}

// suites are those of TLS 1.2 by a list as smtpd.conf has it; in TLS 1.3 there
// is no choice.
func suites(list string) ([]uint16, error) {
	l, err := config.ParseCiphers(list)
	if err == nil && len(l.Unknown) > 0 {
		err = errors.New("unknown cipher suite: " + l.Unknown[0])
	}
	return l.Suites, err
}

// config is for a session with host; check: its certificate has to be good.
func (t *tlsParams) config(host string, check bool) *tls.Config {
	name := host
	if t.name != "" {
		name = t.name
	}
	c := &tls.Config{ServerName: name, RootCAs: t.roots, MinVersion: t.min, MaxVersion: t.max, CipherSuites: t.ciphers,
		InsecureSkipVerify: !check || t.noVerify}
	if t.noSNI {
		c = withoutSNI(c)
	}
	return c
}

// withoutSNI checks the name itself, as crypto/tls sends the one it checks.
func withoutSNI(c *tls.Config) *tls.Config {
	name, check := c.ServerName, !c.InsecureSkipVerify
	c.ServerName, c.InsecureSkipVerify = "", true
	if !check {
		return c
	}
	c.VerifyConnection = func(s tls.ConnectionState) error {
		o := x509.VerifyOptions{DNSName: name, Roots: c.RootCAs, Intermediates: x509.NewCertPool()}
		for _, cert := range s.PeerCertificates[1:] {
			o.Intermediates.AddCert(cert)
		}
		_, err := s.PeerCertificates[0].Verify(o)
		return err
	}
	return c
}
