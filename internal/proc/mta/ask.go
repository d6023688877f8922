package mta

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"

	"smtpd/internal/config"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/privsep"
	"smtpd/mta"
)

// dns asks lookup.
type dns struct{ link *ipc.Link }

// Query implements mta.DNS.
func (d *dns) Query(ctx context.Context, name string, qtype uint16) ([]mta.Record, mta.Result) {
	a, err := ipc.Ask[*imsg.DNSAnswer](ctx, d.link, &imsg.DNSQuery{Name: name, QType: qtype})
	if err != nil || a.Result > uint8(mta.DNSFailure) {
		return nil, mta.DNSFailure
	}
	records := make([]mta.Record, len(a.Records))
	for i, r := range a.Records {
		records[i] = mta.Record{Pref: r.Pref, Data: r.Data}
	}
	return records, mta.Result(a.Result)
}

// Secured implements mta.DNS.
func (d *dns) Secured(ctx context.Context, name string, qtype uint16) (bool, mta.Result) {
	a, err := ipc.Ask[*imsg.DNSAnswer](ctx, d.link, &imsg.DNSQuery{Name: name, QType: qtype})
	if err != nil || a.Result > uint8(mta.DNSFailure) {
		return false, mta.DNSFailure
	}
	return a.AD, mta.Result(a.Result)
}

// tables asks lookup, except for tables that the configuration itself holds.
type tables struct {
	link *ipc.Link

	mu   sync.Mutex
	conf map[string]*config.Table
	next map[string]int // where the next Fetch of a list begins
}

var errTemporary = errors.New("table: temporary failure")

func (t *tables) set(conf *config.Config) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.conf = conf.Tables
}

// static is a table of the configuration that is a list, or a mapping.
func (t *tables) static(name string, kind config.TableType) *config.Table {
	c := t.conf[name]
	if c == nil || c.Backend != "static" || c.Param != "" || c.Type != kind {
		return nil
	}
	return c
}

// Lookup implements mta.Tables.
func (t *tables) Lookup(ctx context.Context, table, service, key string) (string, bool, error) {
	t.mu.Lock()
	c := t.static(table, config.TableMapping)
	t.mu.Unlock()
	if c != nil {
		key = strings.ToLower(key)
		for _, p := range c.Pairs {
			if p[0] == key {
				return p[1], true, nil
			}
		}
		return "", false, nil
	}
	return t.ask(ctx, &imsg.TableQuery{Table: table, Service: service, Key: key})
}

// Fetch implements mta.Tables.
func (t *tables) Fetch(ctx context.Context, table, service string) (string, bool, error) {
	t.mu.Lock()
	c := t.static(table, config.TableList)
	if c != nil && len(c.List) > 0 {
		n := t.next[table] % len(c.List)
		t.next[table] = n + 1
		t.mu.Unlock()
		return c.List[n], true, nil
	}
	t.mu.Unlock()
	return t.ask(ctx, &imsg.TableQuery{Table: table, Service: service, Fetch: true})
}

func (t *tables) ask(ctx context.Context, q *imsg.TableQuery) (string, bool, error) {
	a, err := ipc.Ask[*imsg.TableAnswer](ctx, t.link, q)
	switch {
	case err != nil:
		return "", false, err
	case a.Temporary:
		return "", false, errTemporary
	}
	return a.Value, a.Found, nil
}

// trust has the certificates of the configuration; keys has their keys.
type trust struct {
	keys *ipc.Link

	mu    sync.Mutex
	conf  *config.Config
	certs map[string]*tls.Certificate
	roots map[string]*x509.CertPool
}

func (t *trust) set(conf *config.Config) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.conf = conf
	t.certs, t.roots = map[string]*tls.Certificate{}, map[string]*x509.CertPool{}
}

// Certificate implements mta.Trust.
func (t *trust) Certificate(pki string) (*tls.Certificate, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c := t.certs[pki]; c != nil {
		return c, nil
	}
	p := t.conf.PKI[strings.ToLower(pki)]
	if p == nil {
		return nil, errors.New("no such pki")
	}
	c := &tls.Certificate{}
	for rest := p.Cert; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type == "CERTIFICATE" {
			c.Certificate = append(c.Certificate, block.Bytes)
		}
	}
	if len(c.Certificate) == 0 {
		return nil, errors.New("no certificate")
	}
	leaf, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	c.Leaf, c.PrivateKey = leaf, privsep.NewSigner(t.keys, p.Name, leaf.PublicKey)
	t.certs[pki] = c
	return c, nil
}

// Roots implements mta.Trust. Those of the system were read by Preload.
func (t *trust) Roots(ca string) (*x509.CertPool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.roots[ca]; p != nil {
		return p, nil
	}
	var pool *x509.CertPool
	if ca == "" {
		var err error
		if pool, err = x509.SystemCertPool(); err != nil {
			return nil, err
		}
	} else {
		c := t.conf.CA[strings.ToLower(ca)]
		if c == nil {
			return nil, errors.New("no such ca")
		}
		if pool = x509.NewCertPool(); !pool.AppendCertsFromPEM(c.Cert) {
			return nil, errors.New("no certificate")
		}
	}
	t.roots[ca] = pool
	return pool, nil
}

// dialer opens TCP connections.
type dialer struct{}

// Dial implements mta.Dialer.
func (dialer) Dial(ctx context.Context, src netip.Addr, dst netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{}
	if src.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(src, 0))
	}
	return d.DialContext(ctx, "tcp", dst.String())
}

// opener opens the text of a Transfer: what came with it, or what queue gives.
func (s *state) opener(t *imsg.Transfer) func(context.Context) (mta.Text, error) {
	return func(ctx context.Context) (mta.Text, error) {
		if len(t.Inline) > 0 || t.Size == 0 {
			return mta.Text{Data: t.Inline}, nil
		}
		b, f, err := ipc.AskFile[*imsg.Body](ctx, s.peers.Queue, &imsg.BodyOpen{Message: t.Message})
		return text(b, f, err)
	}
}

// text is a Body as the engine takes it.
func text(b *imsg.Body, f *os.File, err error) (mta.Text, error) {
	switch {
	case err != nil:
		return mta.Text{}, err
	case b.Status.Code != 250, b.InFile != (f != nil):
		if f != nil {
			f.Close()
		}
		return mta.Text{}, fmt.Errorf("text of the message: %s", b.Status.String())
	case f != nil:
		return mta.Text{File: f, Size: b.Size}, nil
	}
	return mta.Text{Data: bytes.Clone(b.Inline)}, nil
}
