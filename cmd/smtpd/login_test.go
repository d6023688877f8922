package main

import (
	"crypto/tls"
	"encoding/base64"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"smtpd/internal/auth"
)

// TestRootSystemLogin: accounts of the system log in by shadow(5); the fifth
// wrong password ends the connection, and the log says who guessed. A client of
// another protocol gets no handshake.
func TestRootSystemLogin(t *testing.T) {
	if !asRoot(t) {
		return
	}
	const user = "sha512"
	hash, err := auth.Hash(secretOf[user], auth.SHA512)
	if err != nil {
		t.Fatal(err)
	}
	shadow := filepath.Join(t.TempDir(), "shadow")
	if err := os.WriteFile(shadow, []byte("alice:"+hash+":20000:0:99999:7:::\nbob:!:20000:0:99999:7:::\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "--bind", shadow, "/etc/shadow").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	a := newAuthority(t)
	a.issue(t, "mx.test", true, false)
	d := startRoot(t, a.pki("mx.test")+"listen on 127.0.0.1 port 465 smtps pki mx.test auth hostname mx.test\n"+
		"smtp limit auth-delay 1\naction \"local\" maildir\nmatch auth from any for local action \"local\"\n", "-v")
	session := func(protocols ...string) (*tls.Conn, error) {
		c, err := tls.Dial("tcp4", "127.0.0.1:465", &tls.Config{RootCAs: a.pool, ServerName: "mx.test", NextProtos: protocols})
		if err == nil {
			t.Cleanup(func() { c.Close() })
			_ = c.SetDeadline(time.Now().Add(waitLimit))
		}
		return c, err
	}
	plain := func(user, password string) string {
		return "C: AUTH PLAIN " + base64.StdEncoding.EncodeToString([]byte("\x00"+user+"\x00"+password)) + "\n"
	}
	const hello = "S: 220\nC: EHLO client.test\nR: 250\n"
	tests := map[string]string{
		"right":  hello + "C: MAIL FROM:<alice@b.org>\nS: 530 5.7.0\n" + plain("alice", secretOf[user]) + "S: 235 2.7.0\nC: MAIL FROM:<alice@b.org>\nS: 250 2.0.0\nC: RCPT TO:<bob@localhost>\nS: 250 2.1.5\nC: QUIT\nS: 221",
		"locked": hello + plain("bob", "!") + "S: 535 5.7.8\nC: QUIT\nS: 221",
		"guessing": hello + plain("alice", "1") + "S: 535 5.7.8\n" + plain("alice", "2") + "S: 535 5.7.8\n" + plain("nobody-here", "3") +
			"S: 535 5.7.8\n" + plain("alice", "4") + "S: 535 5.7.8\n" + plain("alice", "5") + "S: 535 5.7.8\nS: 421 4.7.0 Too many authentication failures\nS.EOF",
	}
	for name, script := range tests {
		t.Run(name, func(t *testing.T) {
			c, err := session("smtp")
			if err != nil {
				t.Fatal(err)
			}
			if out, err := dialogue(c, script); err != nil {
				t.Errorf("%v\n%s\n%s", err, out, tail([]byte(d.log()), 8))
			}
		})
	}
	if _, err := session("http/1.1"); err == nil {
		t.Error("a client of HTTP was greeted")
	}
	if err := d.waitLog(regexp.MustCompile(` smtp authentication user=alice result=permfail address=127\.0\.0\.1$`), 4); err != nil {
		t.Error(err)
	}
	checkSecrets(t, d.log())
	if err := d.stop(); err != nil {
		t.Error(err)
	}
}
