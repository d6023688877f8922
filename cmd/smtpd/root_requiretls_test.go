package main

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	gosmtp "github.com/emersion/go-smtp"
	"github.com/miekg/dns"
)

// TestRootRequireTLS sends mail that asks for REQUIRETLS to domains whose zones
// are signed, and to others, by the word of Debian's unbound, which validates.
func TestRootRequireTLS(t *testing.T) {
	if !asRoot(t) {
		return
	}
	ca := newAuthority(t)
	dirs := map[string]string{}
	for _, name := range []string{"mx.sec.test", "old.sec.test", "me.test"} {
		ca.issue(t, name, true, false)
	}
	for host, addr := range map[string]string{"mx.sec.test": "127.1.0.1", "old.sec.test": "127.1.0.2", "liar.sec.test": "127.1.0.3"} {
		cert := host
		if host == "liar.sec.test" {
			cert = "mx.sec.test"
		}
		dirs[host] = t.TempDir()
		s, err := startSink(addr+":25", dirs[host], func(srv *gosmtp.Server) {
			pair, err := tls.LoadX509KeyPair(ca.path(cert+".crt"), ca.path(cert+".key"))
			if err != nil {
				t.Fatal(err)
			}
			srv.TLSConfig = &tls.Config{Certificates: []tls.Certificate{pair}}
			srv.EnableREQUIRETLS = host != "old.sec.test"
		})
		if err != nil {
			t.Fatal(err)
		}
		defer s.close()
	}
	resolver := startValidator(t)
	if resolver == "" {
		return
	}
	d := startRoot(t, fmt.Sprintf("%slisten on 127.0.0.1 port 25 hostname me.test tls pki me.test\nresolver %s\nca hosts cert %q\n"+
		"action out relay ca hosts\nmatch from any for any action out\n", ca.pki("me.test"), resolver, ca.path("ca.crt")))
	for name, tt := range map[string]struct {
		domain, want, at string // at: who has it in the end
		unasked          bool
	}{
		"signed":                     {"sec.test", `relay="127.1.0.1 .* result="Ok"`, "mx.sec.test", false},
		"not signed":                 {"plain.test", `result="PermFail" stat="Mail exchangers are not secured as REQUIRETLS demands"`, "", false},
		"forged":                     {"forged.test", `result="TempFail" stat="Temporary failure in MX lookup"`, "", false},
		"no such domain":             {"gone.sec.test", `result="PermFail" stat="Domain does not exist"`, "", false},
		"host without it":            {"old.sec.test", `result="PermFail" stat="Remote host does not support REQUIRETLS"`, "", false},
		"certificate of another":     {"liar.sec.test", `result="TempFail" stat="Network error on destination MXs"`, "", false},
		"one of two hosts":           {"two.sec.test", `relay="127.1.0.1 .* result="Ok"`, "mx.sec.test", false},
		"not asked for, not signed":  {"plain.test", `result="Ok"`, "mx.sec.test", true},
		"not asked for, old":         {"old.sec.test", `result="Ok"`, "old.sec.test", true},
		"not asked for, forged zone": {"forged.test", `result="TempFail" stat="Temporary failure in MX lookup"`, "", true},
	} {
		t.Run(name, func(t *testing.T) {
			rcpt := strings.NewReplacer(" ", "-", ",", "").Replace(name) + "@" + tt.domain
			m := newLetter(rcpt, 100)
			submitTLS(t, ca, m, rcpt, !tt.unasked)
			if err := d.waitLog(regexp.MustCompile(`to=<`+regexp.QuoteMeta(rcpt)+`> .*`+tt.want), 1); err != nil {
				t.Errorf("want %s: %s", tt.want, grepLog(d, rcpt))
			}
			for host, dir := range dirs {
				if n := len(collect(t, dir)[m.token]); n > 1 || (n == 1) != (host == tt.at) {
					t.Errorf("%s has it %d times", host, n)
				}
			}
		})
	}
}

// submitTLS hands a letter from sender@example.org to the daemon inside TLS.
func submitTLS(t *testing.T, ca *authority, m letter, rcpt string, requireTLS bool) {
	t.Helper()
	conn, err := net.DialTimeout("tcp4", "127.0.0.1:25", 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(ca.path("ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	c, err := gosmtp.NewClientStartTLS(conn, &tls.Config{ServerName: "me.test", RootCAs: roots})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Mail("sender@example.org", &gosmtp.MailOptions{RequireTLS: requireTLS}); err != nil {
		t.Fatal(err)
	}
	if err := c.Rcpt(rcpt, nil); err != nil {
		t.Fatal(err)
	}
	w, err := c.Data()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(m.text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	_ = c.Quit()
}

// startValidator runs unbound with three zones: sec.test is signed, plain.test
// is not, and of forged.test a record was changed after it was signed.
func startValidator(t *testing.T) string {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	const addr = "127.0.0.1:5303"
	conf := "server:\n interface: 127.0.0.1@5303\n do-daemonize: no\n use-syslog: no\n username: \"\"\n chroot: \"\"\n pidfile: \"\"\n" +
		fmt.Sprintf(" directory: %q\n", dir) + " module-config: \"validator iterator\"\n do-not-query-localhost: no\n num-threads: 1\n" +
		" local-zone: \"test.\" nodefault\n local-zone: \"127.in-addr.arpa.\" static\n"
	zones := ""
	for origin, text := range map[string]string{
		"sec.test": "sec.test. MX 10 mx.sec.test.\nmx.sec.test. A 127.1.0.1\nold.sec.test. A 127.1.0.2\nold.sec.test. MX 10 old.sec.test.\n" +
			"liar.sec.test. A 127.1.0.3\nliar.sec.test. MX 10 liar.sec.test.\ntwo.sec.test. MX 10 old.sec.test.\ntwo.sec.test. MX 20 mx.sec.test.\n",
		"plain.test":  "plain.test. MX 10 mx.sec.test.\n",
		"forged.test": "forged.test. MX 10 old.sec.test.\n",
	} {
		zone, anchor := text, ""
		if origin != "plain.test" {
			zone, anchor = signZone(t, origin, text)
		} else {
			zone += "plain.test. SOA ns.plain.test. x.plain.test. 1 3600 600 86400 60\nplain.test. NS ns.plain.test.\n"
		}
		if origin == "forged.test" {
			zone = strings.Replace(zone, "10 old.sec.test.", "10 mx.sec.test.", 1)
		}
		file := filepath.Join(dir, origin)
		if err := os.WriteFile(file, []byte("$TTL 3600\n"+zone), 0o644); err != nil {
			t.Fatal(err)
		}
		if anchor != "" {
			conf += fmt.Sprintf(" trust-anchor: %q\n", anchor)
		}
		zones += fmt.Sprintf("auth-zone:\n name: %q\n zonefile: %q\n for-downstream: no\n for-upstream: yes\n fallback-enabled: no\n", origin+".", file)
	}
	conf += "remote-control:\n control-enable: no\n" + zones
	return startNames(t, addr, filepath.Join(dir, "conf"), conf, "unbound", "-d", "-c", filepath.Join(dir, "conf"))
}

// signZone signs the records of a zone (RFC 4034), with SOA, NS, NSEC and a key;
// anchor is the key as a resolver is told of it.
func signZone(t *testing.T, origin, text string) (zone, anchor string) {
	t.Helper()
	origin = dns.Fqdn(origin)
	key := &dns.DNSKEY{Hdr: dns.RR_Header{Name: origin, Rrtype: dns.TypeDNSKEY, Class: dns.ClassINET, Ttl: 3600},
		Flags: 257, Protocol: 3, Algorithm: dns.ECDSAP256SHA256}
	private, err := key.Generate(256)
	if err != nil {
		t.Fatal(err)
	}
	sets := map[string]map[uint16][]dns.RR{}
	add := func(rr dns.RR) {
		h := rr.Header()
		h.Ttl = 3600
		if sets[h.Name] == nil {
			sets[h.Name] = map[uint16][]dns.RR{}
		}
		sets[h.Name][h.Rrtype] = append(sets[h.Name][h.Rrtype], rr)
	}
	add(key)
	text += origin + " SOA ns." + origin + " x." + origin + " 1 3600 600 86400 60\n" + origin + " NS ns." + origin + "\n"
	for line := range strings.Lines(text) {
		rr, err := dns.NewRR(line)
		if err != nil {
			t.Fatal(err)
		}
		add(rr)
	}
	var names []string // in canonical order: all are the origin or just below it
	for name := range sets {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		return strings.Compare(strings.TrimSuffix(a, origin), strings.TrimSuffix(b, origin))
	})
	var out strings.Builder
	for i, name := range names {
		types := []uint16{dns.TypeRRSIG, dns.TypeNSEC}
		for kind := range sets[name] {
			types = append(types, kind)
		}
		slices.Sort(types)
		add(&dns.NSEC{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeNSEC, Class: dns.ClassINET}, NextDomain: names[(i+1)%len(names)], TypeBitMap: types})
		for _, set := range sets[name] {
			sig := &dns.RRSIG{Inception: uint32(time.Now().Add(-time.Hour).Unix()), Expiration: uint32(time.Now().Add(time.Hour).Unix()),
				KeyTag: key.KeyTag(), SignerName: origin, Algorithm: key.Algorithm}
			if err := sig.Sign(private.(crypto.Signer), set); err != nil {
				t.Fatal(err)
			}
			for _, rr := range append(set, sig) {
				out.WriteString(rr.String() + "\n")
			}
		}
	}
	return out.String(), strings.ReplaceAll(key.String(), "\t", " ")
}
