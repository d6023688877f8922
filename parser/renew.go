package parser

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"smtpd/internal/config"
)

// Renew reads again what a configuration that is in force took from files
// besides its own text and the tables, and from the network interfaces:
// certificates, keys, authorities and the addresses of this host, with those of
// listeners that wait for one. The result is
// a copy of conf with them; conf is not changed. Without files it is the
// addresses alone. Any of them that cannot be used
// is an error, one line for each.
func Renew(ctx context.Context, o Options, conf *config.Config, files bool) (*config.Config, error) {
	if o.System == nil {
		o.System = host{}
	}
	r := &renewal{c: &checker{o: &o, diags: &diagList{}}}
	next := *conf
	next.Renewal = true
	next.PKI, next.CA = maps.Clone(conf.PKI), maps.Clone(conf.CA)
	if files {
		r.files(&next)
	}
	ifs, err := o.System.Interfaces()
	if err != nil {
		r.errs = append(r.errs, err)
	}
	next.LocalAddrs = nil
	for _, in := range ifs {
		next.LocalAddrs = append(next.LocalAddrs, in.Addrs...)
	}
	r.c.ifs, r.c.cfg = ifs, &next
	r.pending(ctx, &next)
	if len(r.errs) > 0 {
		return nil, errors.Join(r.errs...)
	}
	return &next, nil
}

func (r *renewal) files(next *config.Config) {
	for _, name := range keys(next.PKI) {
		p := *next.PKI[name]
		r.pki(&p)
		next.PKI[name] = &p
	}
	for _, name := range keys(next.CA) {
		ca := *next.CA[name]
		r.ca(&ca)
		next.CA[name] = &ca
	}
}

// pending adds the listeners that have an address by now.
func (r *renewal) pending(ctx context.Context, next *config.Config) {
	waiting := next.Pending
	next.Pending, next.Listeners = nil, slices.Clone(next.Listeners)
	taken := map[netip.AddrPort]bool{}
	for _, l := range next.Listeners {
		taken[l.Addr] = true
	}
	r.c.diags = &diagList{}
	for _, p := range waiting {
		addrs, _ := r.c.addresses(ctx, &token{text: p.Listener.Name, pos: noPos()}, p.Family)
		if len(addrs) == 0 {
			next.Pending = append(next.Pending, p)
		}
		for _, a := range addrs {
			one := *p.Listener
			if one.Addr = netip.AddrPortFrom(a, p.Port); !taken[one.Addr] {
				taken[one.Addr] = true
				next.Listeners = append(next.Listeners, &one)
			}
		}
	}
}

// renewal collects what is wrong.
type renewal struct {
	c    *checker
	errs []error
}

func (r *renewal) errorf(at config.Pos, format string, args ...any) {
	text := printable(fmt.Errorf(format, args...).Error())
	if at.Line > 0 {
		text = fmt.Sprintf("%s:%d: %s", at.File, at.Line, text)
	}
	r.errs = append(r.errs, errors.New(text))
}

func (r *renewal) pki(p *config.PKI) {
	info := &pkiInfo{cfg: p, last: noPos()}
	for _, f := range []struct {
		to   **token
		path string
	}{{&info.cert, p.CertFile}, {&info.key, p.KeyFile}} {
		if f.path != "" {
			*f.to = &token{text: f.path, pos: noPos()}
		}
	}
	d := &diagList{}
	r.c.diags = d
	r.c.loadPKI(info)
	for _, placed := range slices.Clone(d.list) {
		if !placed.diag.Warning {
			r.errorf(p.Pos, "%s", placed.diag.Text)
		}
	}
}

func (r *renewal) ca(ca *config.CA) {
	r.c.diags = &diagList{}
	data, err := r.c.pemFile(&token{text: ca.CertFile, pos: noPos()}, "CA file", certMode)
	if err == nil {
		_, err = certificates(data)
	}
	if err != nil {
		r.errorf(ca.Pos, "cannot load CA file %s: %w", ca.CertFile, err)
		return
	}
	ca.Cert = data
}
