package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/go-ldap/ldap/v3"

	"smtpd/table"
	"smtpd/table/query"
)

// Bounds. Ours.
const (
	connectTime = 5 * time.Second
	searchTime  = 8 * time.Second
)

// engine is a query.Engine. One connection carries all searches, several at a
// time.
type engine struct {
	url, user, password, base string
	tls                       *tls.Config
	startTLS                  bool
	attributes                map[string][]string // by the query's name

	dialing sync.Mutex
	mu      sync.Mutex
	conn    *ldap.Conn
}

// open is query.Open.
func open(s *query.Settings) (query.Engine, []query.Query, error) {
	e := &engine{user: s.Text("username", ""), password: s.Text("password", ""), base: s.Text("basedn", ""),
		attributes: map[string][]string{}}
	var errs []error
	if err := e.server(s); err != nil {
		errs = append(errs, err)
	}
	var queries []query.Query
	for _, q := range query.Kinds() {
		service := q.Service.String()
		q.Name = service + "_filter"
		if q.Text = s.Text(q.Name, ""); q.Text == "" {
			continue
		}
		attributes, err := attributes(&q, s.Text(service+"_attributes", ""))
		if err != nil {
			errs = append(errs, s.Mistake(service+"_attributes", err))
		}
		if err := checkFilter(q.Text); err != nil {
			errs = append(errs, s.Mistake(q.Name, err))
		}
		e.attributes[q.Name] = attributes
		queries = append(queries, q)
	}
	if len(queries) == 0 {
		errs = append(errs, s.Mistake("alias_filter", errors.New("there is no filter, for this or another service")))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, nil, err
	}
	return e, queries, nil
}

// server reads where the directory is. ldap+tls is LDAP with STARTTLS.
func (e *engine) server(s *query.Settings) error {
	text := s.Text("url", "")
	if rest, ok := strings.CutPrefix(text, "ldapi://"); ok { // a socket, its slashes quoted or not
		path, err := url.PathUnescape(rest)
		if err != nil || !strings.HasPrefix(path, "/") {
			return s.Mistake("url", fmt.Errorf("%q is not the path of a socket", rest))
		}
		e.url = "ldapi://" + path
		return nil
	}
	u, err := url.Parse(text)
	if err != nil {
		return s.Mistake("url", err)
	}
	e.url = text
	switch u.Scheme {
	case "ldap", "ldaps":
	case "ldap+tls":
		e.url, e.startTLS = strings.Replace(text, "ldap+tls:", "ldap:", 1), true
	default:
		return s.Mistake("url", fmt.Errorf("%q is none of ldap://, ldap+tls://, ldaps://, ldapi://", text))
	}
	e.tls = &tls.Config{ServerName: u.Hostname()}
	path := s.Text("ca_file", "")
	if path == "" {
		return nil
	}
	pem, err := os.ReadFile(path)
	if err != nil {
		return s.Mistake("ca_file", err)
	}
	e.tls.RootCAs = x509.NewCertPool()
	if !e.tls.RootCAs.AppendCertsFromPEM(pem) {
		return s.Mistake("ca_file", errors.New("no certificate in it"))
	}
	return nil
}

// attributes takes a list apart. A service that is only asked whether an entry
// is there needs none.
func attributes(q *query.Query, text string) ([]string, error) {
	var list []string
	for w := range strings.SplitSeq(text, ",") {
		if w = strings.TrimSpace(w); w != "" {
			list = append(list, w)
		}
	}
	if len(list) == 0 && matching(q.Service) {
		return []string{"1.1"}, nil // none: RFC 4511, section 4.5.1.8
	}
	if len(list) != q.Columns {
		return nil, fmt.Errorf("%d attributes instead of %d", len(list), q.Columns)
	}
	return list, nil
}

// matching reports a service that is asked whether, not what.
func matching(s table.Service) bool {
	return s&(table.Domain|table.Netaddr|table.Mailaddr) != 0
}

// checkFilter checks a filter and its placeholders.
func checkFilter(text string) error {
	if !strings.Contains(text, "%s") {
		return errors.New("no placeholder %s for the key")
	}
	if _, err := ldap.CompileFilter(filter(text, "key")); err != nil {
		return err
	}
	return nil
}

// filter puts a key into a filter, escaped so that it stays a value (RFC 4515,
// section 3).
func filter(text, key string) string {
	return strings.ReplaceAll(text, "%s", ldap.EscapeFilter(key))
}

// connection is the living connection, or a new one.
func (e *engine) connection() (*ldap.Conn, error) {
	e.dialing.Lock()
	defer e.dialing.Unlock()
	e.mu.Lock()
	c := e.conn
	e.mu.Unlock()
	if c != nil && !c.IsClosing() {
		return c, nil
	}
	c, err := ldap.DialURL(e.url, ldap.DialWithDialer(&net.Dialer{Timeout: connectTime}), ldap.DialWithTLSConfig(e.tls))
	if err != nil {
		return nil, err
	}
	c.SetTimeout(searchTime)
	if e.startTLS {
		err = c.StartTLS(e.tls)
	}
	if err == nil && e.user != "" {
		err = c.Bind(e.user, e.password)
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.conn = c
	return c, nil
}

// Rows implements query.Engine.
func (e *engine) Rows(ctx context.Context, q *query.Query, key string) ([][]string, error) {
	c, err := e.connection()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, searchTime)
	defer cancel()
	names := e.attributes[q.Name]
	res := c.SearchAsync(ctx, ldap.NewSearchRequest(e.base, ldap.ScopeWholeSubtree, ldap.NeverDerefAliases,
		query.MaxRows, int(searchTime/time.Second), false, filter(q.Text, key), names, nil), 0)
	var rows [][]string
	for res.Next() {
		if entry := res.Entry(); entry != nil {
			r, err := values(q, entry, names)
			if err != nil {
				return nil, err
			}
			rows = append(rows, r...)
		}
	}
	err = res.Err()
	switch {
	case err == nil:
		return rows, nil
	case ldap.IsErrorWithCode(err, ldap.LDAPResultNoSuchObject):
		return nil, nil
	case answer(err):
		return nil, fmt.Errorf("%w: %w", query.ErrRefused, err)
	}
	c.Close()
	return nil, err
}

// answer reports an error that is about a search rather than about the state of
// the server or of the way to it.
func answer(err error) bool {
	e, ok := errors.AsType[*ldap.Error](err)
	if !ok || e.ResultCode >= ldap.ErrorNetwork {
		return false
	}
	switch e.ResultCode {
	case ldap.LDAPResultBusy, ldap.LDAPResultUnavailable, ldap.LDAPResultOther, ldap.LDAPResultOperationsError:
		return false
	}
	return true
}

// values makes rows of an entry: one for each value where a service has one
// attribute, else one of the first values.
func values(q *query.Query, entry *ldap.Entry, names []string) ([][]string, error) {
	if matching(q.Service) {
		return [][]string{{entry.DN}}, nil
	}
	var rows [][]string
	if q.Columns == 1 {
		for _, v := range entry.GetEqualFoldAttributeValues(names[0]) {
			rows = append(rows, []string{v})
		}
		return rows, nil
	}
	row := make([]string, len(names))
	for i, name := range names {
		v := entry.GetEqualFoldAttributeValues(name)
		if len(v) == 0 {
			return nil, fmt.Errorf("%w: an entry shows no attribute %s", query.ErrRefused, name)
		}
		row[i] = v[0]
	}
	if q.Service == table.Credentials {
		row[1] = hash(row[1])
	}
	return [][]string{row}, nil
}

// hash takes off the scheme that directories put before hashes of crypt(3).
func hash(v string) string {
	const scheme = "{crypt}"
	if len(v) > len(scheme) && strings.EqualFold(v[:len(scheme)], scheme) {
		return v[len(scheme):]
	}
	return v
}

// Verify implements query.Engine.
func (e *engine) Verify(context.Context) error {
	_, err := e.connection()
	return err
}

// Close implements query.Engine.
func (e *engine) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.conn == nil {
		return nil
	}
	return e.conn.Close()
}
