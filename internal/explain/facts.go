package explain

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"smtpd/internal/config"
	"smtpd/internal/expand"
	"smtpd/internal/mail"
	"smtpd/internal/ruleset"
)

// Facts are what is known of a mail: enough for the rules to decide.
type Facts struct {
	expand.Request

	// Users are names to take for local accounts, whether the host has them or
	// not; "*" is any name.
	Users []string

	// Listener is where the session takes place; nil: not said, and what a
	// listener asks of its clients does not count.
	Listener *config.Listener
}

// ErrRcpt means that the facts name no recipient.
var ErrRcpt = errors.New("the fact rcpt=user@domain is missing")

// names are the facts there are.
const names = "client, rdns, helo, from, rcpt, auth, tag, tls, listener or users"

// ParseFacts reads words of the form name=value. What is not said is a session
// of this host; addresses without a domain get that of the server, as in a
// session.
func ParseFacts(conf *config.Config, words []string) (*Facts, error) {
	q := &Facts{Request: expand.Request{Envelope: mail.Envelope{Client: "127.0.0.1", Host: "localhost", Helo: "localhost"}}}
	for _, w := range words {
		name, value, _ := strings.Cut(w, "=")
		if err := q.set(conf, name, value); err != nil {
			return nil, err
		}
	}
	for _, a := range []*mail.Address{&q.Envelope.Rcpt, &q.Envelope.Sender} {
		if a.User != "" && a.Domain == "" {
			a.Domain = conf.ServerName
		}
	}
	if q.Envelope.Rcpt.User == "" && q.Envelope.Rcpt.Domain == "" {
		return nil, ErrRcpt
	}
	return q, nil
}

func (q *Facts) set(conf *config.Config, name, value string) error {
	e := &q.Envelope
	switch name {
	case "client":
		return q.client(value)
	case "rdns":
		e.Host = value
	case "helo":
		e.Helo = value
	case "from":
		e.Sender = mail.SplitAddress(strings.Trim(value, "<>"))
	case "rcpt":
		e.Rcpt = mail.SplitAddress(strings.Trim(value, "<>"))
	case "auth":
		e.Username = value
		e.Flags |= mail.FlagAuthenticated
	case "tag":
		e.Tag = value
	case "tls":
		q.TLS = value != "no"
	case "users":
		q.Users = append(q.Users, strings.FieldsFunc(value, func(r rune) bool { return r == ',' })...)
	case "listener":
		return q.listener(conf, value)
	default:
		return fmt.Errorf("unknown fact %q: want %s", mail.Clean(name, 64), names)
	}
	return nil
}

func (q *Facts) client(value string) error {
	e := &q.Envelope
	if value == "local" {
		q.Local, e.Client = true, value
		return nil
	}
	a, err := netip.ParseAddr(strings.TrimPrefix(strings.Trim(value, "[]"), "IPv6:"))
	if err != nil {
		return fmt.Errorf("client=%s: not an address", mail.Clean(value, 64))
	}
	a = a.Unmap()
	if e.Client = a.String(); a.Is6() {
		e.Client = "[" + e.Client + "]"
	}
	if !a.IsLoopback() && e.Host == "localhost" {
		e.Host = ruleset.UnknownHost
	}
	return nil
}

// listener takes the session to the listener that is written so, or that
// listens there: NAME, ADDRESS, ADDRESS:PORT, NAME:PORT or socket.
func (q *Facts) listener(conf *config.Config, name string) error {
	if name == "socket" {
		q.Local, q.Envelope.Client, q.Listener = true, "local", conf.Socket
		q.Envelope.Tag = conf.Socket.Tag
		return nil
	}
	var found *config.Listener
	for _, l := range conf.Listeners {
		port := fmt.Sprint(":", l.Addr.Port())
		if l.Addr.String() != name && l.Addr.Addr().String() != name && l.Name != name && l.Name+port != name {
			continue
		}
		if found != nil && !alike(found, l) {
			return fmt.Errorf("listener=%s: there are several, name one by its address and port, such as %s or %s",
				mail.Clean(name, 64), found.Addr, l.Addr)
		}
		if found == nil {
			found = l
		}
	}
	if found == nil {
		return fmt.Errorf("listener=%s: there is no such listener", mail.Clean(name, 64))
	}
	q.Listener, q.Envelope.Tag = found, found.Tag
	q.TLS = q.TLS || found.TLS == config.TLSImplicit
	return nil
}

// alike reports whether it makes no difference which of two listeners is meant.
func alike(a, b *config.Listener) bool {
	return a.Tag == b.Tag && a.TLS == b.TLS && a.Auth == b.Auth && a.AuthRequired == b.AuthRequired && a.Senders == b.Senders
}
