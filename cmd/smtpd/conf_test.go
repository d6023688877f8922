package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io/fs"
	"maps"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/tools/txtar"

	"smtpd/internal/config"
	"smtpd/internal/expand"
	"smtpd/internal/explain"
	"smtpd/parser"
	"smtpd/table"
)

// confDir holds the corpus of configurations.
const confDir = "../../testdata/conf"

// confWorld is a host for configurations to be read and tried on: its /etc/mail
// is a scratch folder, its interfaces and users are made up.
type confWorld struct{ dir string }

func newConfWorld(t testing.TB) *confWorld {
	t.Helper()
	w := &confWorld{dir: t.TempDir()}
	ar, err := txtar.ParseFile(filepath.Join(confDir, "tables.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range ar.Files {
		w.write(t, f.Name, string(f.Data))
	}
	w.write(t, "mailname", "mail.example.org\n")
	types := map[string]table.MapType{"aliases": table.MapAliases, "secrets": table.MapPlain, "virtual": table.MapAliases,
		"virtuals": table.MapAliases, "domains": table.MapSet}
	for name, typ := range types {
		w.makeMap(t, name, typ)
	}
	for _, p := range []string{"table-sqlite", "table-ldap", "filter-rspamd", "filter-dkimsign"} {
		w.write(t, "libexec/"+p, "#!/bin/sh\n")
		if err := os.Chmod(filepath.Join(w.dir, "libexec", p), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cert, key := selfSigned(t)
	for _, n := range []string{"example.org", "mail.example.org", "mx1.example.org", "smtp.example.com", "home.defcon.no",
		"mail.serversave.us", "rl0", "172.20.0.12", "127.0.0.1"} {
		w.write(t, "certs/"+n+".crt", cert)
		w.write(t, "certs/"+n+".key", key)
	}
	w.write(t, "certs/ca.crt", cert)
	return w
}

func (w *confWorld) write(t testing.TB, name, text string) {
	t.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}
}

func (w *confWorld) makeMap(t testing.TB, name string, typ table.MapType) {
	t.Helper()
	f, err := os.Open(filepath.Join(w.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	entries, err := table.ReadMap(f, name, typ)
	if err != nil {
		t.Fatal(err)
	}
	each := func(yield func(k, v string) bool) {
		for _, e := range entries {
			if !yield(e[0], e[1]) {
				return
			}
		}
	}
	if err := table.WriteMap(filepath.Join(w.dir, name+".db"), typ, 0o640, each); err != nil {
		t.Fatal(err)
	}
}

// options are those of a file of the corpus on this host.
func (w *confWorld) options(t testing.TB, path string) parser.Options {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer("/usr/local/etc/mail/", w.dir+"/", "/etc/mail/", w.dir+"/", "@DIR@", dir).Replace(string(data))
	return parser.Options{File: filepath.Base(path), Text: []byte(text), System: w, Now: confNow, CheckOnly: true,
		Libexec: filepath.Join(w.dir, "libexec"), Mailname: filepath.Join(w.dir, "mailname"), CertDir: filepath.Join(w.dir, "certs")}
}

// confNow is the time of all configurations.
func confNow() time.Time { return time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC) }

// modernize gives the options for the same file in the modern language.
func modernize(t testing.TB, o parser.Options) parser.Options {
	t.Helper()
	text, diags := parser.Modern(t.Context(), o)
	if diags.Failed() {
		t.Fatal(diags)
	}
	o.Text = []byte(text)
	return o
}

// decider evaluates the configuration as on this host.
func (w *confWorld) decider(t testing.TB, o parser.Options) *decider {
	t.Helper()
	conf, diags := parser.Parse(t.Context(), o)
	if conf == nil {
		t.Fatalf("%v\n%s", diags, o.Text)
	}
	tables := maps.Clone(conf.Tables)
	for name, tab := range tables {
		switch tab.Backend {
		case "static", "file", "db":
		default: // a program that is not here
			tables[name] = &config.Table{Name: name, Backend: "static", Type: config.TableMapping, Pairs: programPairs[name]}
		}
	}
	set, err := table.OpenSet(tables, table.Options{Delim: conf.SMTP.SubAddrDelim})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = set.Close() })
	x := &expand.Expander{Config: conf, Tables: set, System: madeUpUsers{}, Now: confNow, Daemon: expand.User{Name: "_smtpd", UID: 500}}
	return &decider{conf: conf, tables: set, x: x}
}

// programPairs are what the table programs of the corpus answer, by the names
// of their tables.
var programPairs = map[string][][2]string{
	"domains": {{"serversave.us", "serversave.us"}, {"example.org", "example.org"}},
	"users":   {{"alice", "1000:1000:/home/alice"}, {"bob", "1001:1001:/home/bob"}},
	"sqalias": {{"info", "alice"}},
}

// outcome is what becomes of a mail, in one line.
func (d *decider) outcome(ctx context.Context, q *expand.Request) string {
	v := explain.Decide(ctx, d.x, &explain.Facts{Request: *q})
	if !v.Accepted {
		return "refused " + v.Status[:1]
	}
	var parts []string
	for _, e := range v.Envelopes {
		s := e.Details
		if r := d.conf.Actions[e.Action].Relay; r != nil {
			if r.TLS {
				s += " tls"
			}
			if r.NoVerify {
				s += " no-verify"
			}
			if r.Auth != "" {
				s += " auth " + r.Auth
			}
			if r.Helo != "" {
				s += " helo " + r.Helo
			}
		}
		parts = append(parts, s)
	}
	return strings.Join(parts, "; ")
}

// ReadFile implements parser.System.
func (w *confWorld) ReadFile(name string, max int64) ([]byte, error) {
	b, err := os.ReadFile(name)
	if int64(len(b)) > max {
		return nil, fs.ErrInvalid
	}
	return b, err
}

// Stat implements parser.System: all belongs to root.
func (w *confWorld) Stat(name string) (parser.FileInfo, error) {
	fi, err := os.Stat(name)
	if err != nil {
		return parser.FileInfo{}, err
	}
	return parser.FileInfo{Mode: fi.Mode()}, nil
}

// Interfaces implements parser.System.
func (w *confWorld) Interfaces() ([]parser.Interface, error) {
	addrs := func(list ...string) (out []netip.Addr) {
		for _, s := range list {
			out = append(out, netip.MustParseAddr(s))
		}
		return out
	}
	return []parser.Interface{
		{Name: "lo", Loopback: true, Addrs: addrs("127.0.0.1", "::1")},
		{Name: "rl0", Addrs: addrs("172.20.0.12", "172.16.81.241", "fe80::1%rl0")},
		{Name: "rl1", Addrs: addrs("10.0.3.1", "fe80::2%rl1")},
		{Name: "vlan1", Addrs: addrs("10.0.1.1")},
		{Name: "em0", Egress: true, Addrs: addrs("192.168.5.55", "2001:db8::55")},
	}, nil
}

// LookupHost implements parser.System.
func (w *confWorld) LookupHost(_ context.Context, name string) ([]netip.Addr, error) {
	if name == "localhost" {
		return []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")}, nil
	}
	return nil, fs.ErrNotExist
}

// Hostname implements parser.System.
func (w *confWorld) Hostname(context.Context) (string, error) { return "host.example.org", nil }

// HasUser implements parser.System.
func (w *confWorld) HasUser(name string) bool { return slices.Contains(confUsers, name) }

// Users implements parser.System.
func (w *confWorld) Users() []string { return confUsers }

// Groups implements parser.System.
func (w *confWorld) Groups() []string { return confUsers }

// HasGroup implements parser.System.
func (w *confWorld) HasGroup(name string) bool { return w.HasUser(name) }

// CurrentUser implements parser.System.
func (w *confWorld) CurrentUser() string { return "root" }

// CurrentUID implements parser.System.
func (w *confWorld) CurrentUID() uint32 { return 0 }

// Mailbox implements parser.System.
func (w *confWorld) Mailbox(string) error { return nil }

// MayListen implements parser.System.
func (w *confWorld) MayListen(uint16) bool { return true }

// Home implements parser.System.
func (w *confWorld) Home(name string) string {
	if w.HasUser(name) {
		return "/home/" + name
	}
	return ""
}

// confUsers are the accounts there are.
var confUsers = []string{"alice", "bob", "robert", "becky", "vmail", "_dkimsign", "_rspamd"}

// madeUpUsers are confUsers for expansion; none has a .forward file.
type madeUpUsers struct{}

// User implements expand.System.
func (madeUpUsers) User(_ context.Context, name string) (expand.User, error) {
	i := slices.Index(confUsers, name)
	if i < 0 {
		return expand.User{}, table.ErrNotFound
	}
	return expand.User{Name: name, UID: uint32(1000 + i), GID: uint32(1000 + i), Home: "/home/" + name}, nil
}

// Forward implements expand.System.
func (madeUpUsers) Forward(context.Context, expand.User) (expand.Forward, error) {
	return expand.Forward{}, nil
}

// Include implements expand.System.
func (madeUpUsers) Include(context.Context, string) (string, error) { return "", fs.ErrNotExist }

func selfSigned(t testing.TB) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: confNow().Add(-time.Hour), NotAfter: confNow().AddDate(0, 6, 0),
		Subject: pkix.Name{CommonName: "mail.example.org"}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	pk, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pk}))
}

// expectedOK reports what the header of a file of the corpus says of it.
func expectedOK(t testing.TB, path string) bool {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(data), "\n# expect: ok") || strings.HasPrefix(string(data), "# expect: ok")
}

// mailOf is a request from the facts as --explain takes them.
func mailOf(t testing.TB, conf *config.Config, facts string) *expand.Request {
	t.Helper()
	q, err := explain.ParseFacts(conf, strings.Fields(facts))
	if err != nil {
		t.Fatalf("%s: %v", facts, err)
	}
	return &q.Request
}
