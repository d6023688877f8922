package parser

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"io/fs"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// now is the time of all tests.
func now() time.Time { return time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC) }

// fake is a System in memory, furnished like the scratch root of the corpus.
type fake struct {
	files  map[string]fakeFile
	conf   string // folder that stands for /conf
	ifs    []Interface
	hosts  map[string][]netip.Addr
	users  []string
	myself string

	mailbox error // why mail of myself cannot be delivered to its mailbox
}

// fakeUID is that of fake.myself.
const fakeUID = 1000

type fakeFile struct {
	data string
	mode fs.FileMode
	uid  uint32
}

func (f *fake) open(name string) (fakeFile, error) {
	if x, ok := f.files[name]; ok {
		return x, nil
	}
	if rest, ok := strings.CutPrefix(name, "/conf/"); ok && f.conf != "" {
		data, err := os.ReadFile(filepath.Join(f.conf, rest))
		if err == nil {
			dir := "/conf/" + filepath.Dir(rest)
			return fakeFile{strings.ReplaceAll(string(data), "@DIR@", dir), 0o600, 0}, nil
		}
	}
	return fakeFile{}, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

func (f *fake) ReadFile(name string, _ int64) ([]byte, error) {
	x, err := f.open(name)
	return []byte(x.data), err
}

func (f *fake) Stat(name string) (FileInfo, error) {
	x, err := f.open(name)
	return FileInfo{Mode: x.mode, UID: x.uid}, err
}

func (f *fake) Interfaces() ([]Interface, error) { return f.ifs, nil }

func (f *fake) LookupHost(_ context.Context, name string) ([]netip.Addr, error) {
	if a := f.hosts[name]; a != nil {
		return a, nil
	}
	return nil, fs.ErrNotExist
}

func (f *fake) Hostname(context.Context) (string, error) { return "host.example.org", nil }
func (f *fake) HasUser(name string) bool                 { return slices.Contains(f.users, name) }
func (f *fake) Users() []string                          { return f.users }
func (f *fake) Groups() []string                         { return f.users }
func (f *fake) HasGroup(name string) bool                { return slices.Contains(f.users, name) }
func (f *fake) CurrentUser() string                      { return f.myself }
func (f *fake) CurrentUID() uint32                       { return fakeUID }
func (f *fake) MayListen(port uint16) bool               { return port >= 1024 }
func (f *fake) Mailbox(string) error                     { return f.mailbox }

func (f *fake) Home(name string) string {
	if f.HasUser(name) {
		return "/home/" + name
	}
	return ""
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// tableTexts are the tables of the scratch root.
var tableTexts = map[string]string{
	"aliases":        "root: alice\npostmaster: root\nabuse: root\nteam: alice, bob\nlist: \"|/usr/bin/true\"\n",
	"secrets":        "label gmailuser:gmailpass\nbob username:password\nuser@smtp.example.net password123\nsmtp.gmail.com g:passw0rd\n",
	"virtuals":       "info@example.org alice\nadmin@example.org bob\n@example.net alice\n",
	"virtual":        "bob_smith@example.org: robert\nsupport@example.org: becky\nabuse@example.org: bob\n",
	"domains":        "# @list\nexample.org\n*.example.org\nexample.net\n",
	"users":          "alice 1000:1000:/home/alice\nbob 1001:1001:/home/bob\n",
	"creds":          "alice $2b$10$hIJ4QfMcp.90nJwKqGbKM.MybArjHOTpEtoTV.DgLYAiThuoYmTSe\n",
	"senders":        "alice alice@example.org, info@example.org\nbob @example.net\n",
	"relayhosts":     "# @list\nsmtp://mx1.example.net\nsmtp+tls://mx2.example.net:587\n",
	"domainroutes":   "example.com smtp://10.0.0.5\nexample.net lmtp://10.0.0.6:2003\n",
	"helonames":      "192.0.2.10 a.example.org\n[2001:db8::10] b.example.org\n",
	"sources":        "192.0.2.10\n192.0.2.11\n",
	"badsenders.txt": "spammer@example.com\njunk@example.net\n",
	"blocklist":      "# @list\n198.51.100.0/24\n203.0.113.7\n[2001:db8::/32]\n",
	"badwords":       "# @list\n^viagra\n(?i)casino\n",
	"recipients":     "# @list\nalice@example.org\nbob@example.org\n@example.net\n",
	"empty":          "",
	"oddlist":        "one two\nthree\n",
	"badhash":        "key1 value1\nkey2\n",
	"badbracket":     "[::1 localhost\n",
	"notadb.db":      "plain text, not a map\n",
	"sqlite.conf":    "dbpath /etc/mail/auth.sqlite\n",
}

// newFake furnishes a System; certificates are made anew.
func newFake(t testing.TB) *fake {
	t.Helper()
	f := &fake{
		files: map[string]fakeFile{"/etc/mail/mailname": {"mail.example.org\n", 0o644, 0}},
		ifs: []Interface{
			{Name: "lo", Loopback: true, Addrs: addrs("127.0.0.1", "::1")},
			{Name: "rl0", Addrs: addrs("172.20.0.12", "172.16.81.241", "fe80::1%rl0")},
			{Name: "rl1", Groups: []string{"wireless"}, Addrs: addrs("10.0.3.1", "fe80::2%rl1")},
			{Name: "vlan1", Addrs: addrs("10.0.1.1")},
			{Name: "em0", Egress: true, Addrs: addrs("192.168.5.55", "2001:db8::55")},
			{Name: "dead0"},
		},
		hosts:  map[string][]netip.Addr{"localhost": addrs("127.0.0.1", "::1")},
		users:  []string{"vmail", "alice", "bob", "_dkimsign", "_rspamd"},
		myself: "alice",
	}
	for name, text := range tableTexts {
		mode := fs.FileMode(0o644)
		if name == "secrets" || name == "creds" {
			mode = 0o640
		}
		f.files["/etc/mail/"+name] = fakeFile{text, mode, 0}
		f.files["/usr/local/etc/mail/"+name] = fakeFile{text, mode, 0}
	}
	bolt := make([]byte, 64)
	binary.LittleEndian.PutUint32(bolt[16:], 0xED0CDAED)
	for _, name := range []string{"aliases", "secrets", "virtual", "virtuals", "domains"} {
		f.files["/etc/mail/"+name+".db"] = fakeFile{string(bolt), 0o640, 0}
		f.files["/usr/local/etc/mail/"+name+".db"] = fakeFile{string(bolt), 0o640, 0}
	}
	for _, name := range []string{"table-sqlite", "filter-rspamd", "filter-dkimsign"} {
		f.files["/usr/local/libexec/smtpd/"+name] = fakeFile{"#!/bin/sh\n", 0o755, 0}
	}
	f.certificates(t)
	return f
}

func (f *fake) certificates(t testing.TB) {
	cert, key := makeCert(t, now().Add(-time.Hour), now().Add(90*24*time.Hour))
	const dir = "/etc/mail/certs/"
	for _, name := range []string{"example.org", "mail.example.org", "mx1.example.org", "smtp.example.com",
		"home.defcon.no", "mail.serversave.us", "rl0", "172.20.0.12", "127.0.0.1"} {
		f.files[dir+name+".crt"] = fakeFile{cert, 0o644, 0}
		f.files[dir+name+".key"] = fakeFile{key, 0o600, 0}
	}
	f.files[dir+"ca.crt"] = fakeFile{cert, 0o644, 0}
	f.files[dir+"junk.key"] = fakeFile{"this is no key\n", 0o600, 0}
	f.files[dir+"junk.crt"] = fakeFile{"this is no certificate\n", 0o644, 0}
	f.files[dir+"world.key"] = fakeFile{key, 0o644, 0}
	f.files[dir+"owned.key"] = fakeFile{key, 0o600, 1000}
	_, other := makeCert(t, now(), now().Add(time.Hour))
	f.files[dir+"other.key"] = fakeFile{other, 0o600, 0}
	soon, soonKey := makeCert(t, now().Add(-time.Hour), now().Add(5*24*time.Hour))
	f.files[dir+"soon.crt"] = fakeFile{soon, 0o644, 0}
	f.files[dir+"soon.key"] = fakeFile{soonKey, 0o600, 0}
	old, oldKey := makeCert(t, now().Add(-48*time.Hour), now().Add(-24*time.Hour))
	f.files[dir+"old.crt"] = fakeFile{old, 0o644, 0}
	f.files[dir+"old.key"] = fakeFile{oldKey, 0o600, 0}
}

func makeCert(t testing.TB, from, to time.Time) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: from, NotAfter: to,
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

// options are those of a test that reads text as the file x.
func (f *fake) options(text string) Options {
	return Options{File: "x", Text: []byte(text), System: f, Now: now, CheckOnly: true}
}
