package main

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestRootRenew: tables that only root can read, certificates that change on
// disk, an address that comes later; all without a reload, and nothing else of
// the configuration is read again.
func TestRootRenew(t *testing.T) {
	if !asRoot(t) {
		return
	}
	closed := filepath.Join(t.TempDir(), "closed")
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	domains, live := filepath.Join(closed, "domains"), filepath.Join(closed, "live")
	secret(t, domains, "a.test\n")
	a := newAuthority(t)
	a.issue(t, "mx.test", true, false)
	archive(t, a, live, "one")
	conf := filepath.Join(t.TempDir(), "smtpd.conf")
	replace(t, conf, fmt.Sprintf(`pki mx.test cert "%s/cert.pem"
pki mx.test key "%s/key.pem"
table domains file:%s
listen on 127.0.0.1 port 25 tls pki mx.test hostname mx.test
listen on 192.0.2.55 port 25
listen on later0 port 26

action "l" maildir
match from any for domain <domains> action "l"
`, live, live, domains))
	text, err := os.ReadFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	d := startRoot(t, rootConf, "-f", conf)
	wait := func(re string) {
		t.Helper()
		if err := d.waitLog(regexp.MustCompile(re), 1); err != nil {
			t.Fatal(err, d.log())
		}
	}
	wait(`warn: listen on 192\.0\.2\.55:25: no interface has this address; waiting for it`)
	accepts(t, "127.0.0.1:25", "alice@a.test", true)
	accepts(t, "127.0.0.1:25", "alice@b.test", false)

	// The configuration text is broken from here on: nobody may read it.
	replace(t, conf, "nonsense\n")

	secret(t, domains, "b.test\n")
	wait("info: table domains updated")
	accepts(t, "127.0.0.1:25", "alice@b.test", true)
	secret(t, domains, "a.test\n")
	if out, err := exec.Command(filepath.Join(bins, "smtpctl"), "-s", d.socket, "update", "table", "domains").CombinedOutput(); err != nil {
		t.Errorf("update table: %v\n%s", err, out)
	}
	accepts(t, "127.0.0.1:25", "alice@a.test", true)
	secret(t, domains, "a.test\nkey = value\nx\n")
	wait("warn: table domains: .*keeping the old contents")
	accepts(t, "127.0.0.1:25", "alice@a.test", true)

	renewals(t, d, a, live)

	if out, err := exec.Command("ip", "addr", "add", "192.0.2.55/32", "dev", "lo").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	wait(`info: listening on 192\.0\.2\.55:25`)
	accepts(t, "192.0.2.55:25", "alice@a.test", true)
	wait("info: the addresses of this host are known again")
	wait("warn: listen on later0: no such interface")
	if out, err := exec.Command("sh", "-ec", "ip link add later0 type veth peer name later1 && ip addr add 192.0.2.66/32 dev later0 && ip link set later0 up && ip link set later1 up").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	wait(`info: listening on 192\.0\.2\.66:26`)
	accepts(t, "192.0.2.66:26", "alice@a.test", true)

	replace(t, conf, string(text))
	if out, err := exec.Command(filepath.Join(bins, "smtpctl"), "-s", d.socket, "reload").CombinedOutput(); err == nil || !strings.Contains(string(out), "domains:2: invalid map entry") {
		t.Errorf("reload with a broken table: %v\n%s", err, out)
	}
	secret(t, domains, "b.test\n")
	if out, err := exec.Command(filepath.Join(bins, "smtpctl"), "-s", d.socket, "reload").CombinedOutput(); err != nil {
		t.Errorf("reload: %v\n%s", err, out)
	}
	accepts(t, "192.0.2.55:25", "alice@b.test", true)
	if err := d.stop(); err != nil {
		t.Error(err)
	}
}

// renewals swaps a link, as certbot does, for another certificate, for one
// without its key, and for half a file.
func renewals(t *testing.T, d *daemon, a *authority, live string) {
	t.Helper()
	was := served(t)
	a.issue(t, "mx.test", true, true)
	archive(t, a, live, "two")
	if err := d.waitLog(regexp.MustCompile("info: certificates renewed: "), 1); err != nil {
		t.Fatal(err)
	}
	now := served(t)
	if now == was {
		t.Error("the old certificate is served")
	}
	a.issue(t, "mx.test", true, false)
	if err := os.Rename(a.path("mx.test.key"), a.path("kept.key")); err != nil {
		t.Fatal(err)
	}
	old, err := os.ReadFile(filepath.Join(live, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	secret(t, a.path("mx.test.key"), string(old))
	archive(t, a, live, "three")
	if err := d.waitLog(regexp.MustCompile("warn: certificates not renewed, the old ones stay in force: .*does not fit"), 1); err != nil {
		t.Fatal(err)
	}
	if served(t) != now {
		t.Error("a certificate without its key is served")
	}
	if err := os.Rename(a.path("kept.key"), a.path("mx.test.key")); err != nil {
		t.Fatal(err)
	}
	archive(t, a, live, "four")
	if err := d.waitLog(regexp.MustCompile("info: certificates renewed: "), 2); err != nil {
		t.Fatal(err)
	}
	if served(t) == now {
		t.Error("the certificate that was mended is not served")
	}
}

// secret writes a file that only root can read, in place of another.
func secret(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// archive puts the certificate of the authority into a folder of its own and has
// the link live lead to it.
func archive(t *testing.T, a *authority, live, name string) {
	t.Helper()
	dir := filepath.Join(filepath.Dir(live), name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{"mx.test.crt": "cert.pem", "mx.test.key": "key.pem"} {
		b, err := os.ReadFile(a.path(from))
		if err != nil {
			t.Fatal(err)
		}
		secret(t, filepath.Join(dir, to), string(b))
	}
	if err := os.Symlink(dir, live+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(live+".new", live); err != nil {
		t.Fatal(err)
	}
}

// served is the serial number of the certificate that a new session gets.
func served(t *testing.T) string {
	t.Helper()
	conn, err := net.DialTimeout("tcp4", "127.0.0.1:25", waitLimit)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if out, err := dialogue(conn, "S: 220 \nC: EHLO c.test\nR: 250\nC: STARTTLS\nS: 220"); err != nil {
		t.Fatal(out, err)
	}
	c := tls.Client(conn, &tls.Config{InsecureSkipVerify: true}) // which one it is is the question
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	return c.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

// accepts sends a RCPT.
func accepts(t *testing.T, addr, rcpt string, want bool) {
	t.Helper()
	conn, err := net.DialTimeout("tcp4", addr, waitLimit)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	code := "250"
	if !want {
		code = "550"
	}
	out, err := dialogue(conn, "S: 220 \nC: HELO c.test\nS: 250\nC: MAIL FROM:<s@c.test>\nS: 250\nC: RCPT TO:<"+rcpt+">\nS: "+code+"\nC: QUIT\nS: 221")
	if err != nil {
		t.Errorf("%s at %s: %v\n%s", rcpt, addr, err, strings.TrimSpace(out))
	}
}
