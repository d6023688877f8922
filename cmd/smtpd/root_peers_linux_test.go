package main

import (
	"bufio"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestRootPeers relays to Postfix, Exim and OpenSMTPD as Debian has them: each
// mail arrives once and as it was. With the first two there is TLS, verified;
// Debian's build of the third answers handshakes with an internal error.
func TestRootPeers(t *testing.T) {
	if !asRoot(t) {
		return
	}
	for i, name := range []string{"postfix", "exim", "opensmtpd-6.8"} {
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "smtpd-peer") // peers keep long paths out of their sockets
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			mode := os.FileMode(0o600)
			if name == "exim" {
				mode = 0o644 // read by its own user
			}
			peerCertificate(t, dir, mode)
			port := fmt.Sprint(2600 + i)
			stop, ok := startPeer(t, name, port, dir)
			if !ok {
				t.Logf("%s is not installed: nothing is sent to it", name)
				return
			}
			defer stop()
			scheme := "smtp+tls"
			if strings.HasPrefix(name, "opensmtpd") {
				scheme = "smtp"
			}
			d := startRoot(t, fmt.Sprintf("listen on 127.0.0.1 port 2525 hostname mx.test\nca peer cert %q\n"+
				"action out relay host \"%s://localhost:%s\" ca peer\n"+
				"mta limit max-conn-per-host 1\nmatch from any for domain example.org reject\nmatch from any for any action out\n", // notices would hold the tokens
				filepath.Join(dir, "rsa.crt"), scheme, port))
			defer d.kill()
			const mails = 40
			letters := map[string]letter{}
			for n := range mails {
				m := newLetter("u@far.test", 1000<<(n%9)) // up to 256 KB: with BDAT and with DATA
				letters[m.token] = m
				submitAt(t, "127.0.0.1:2525", "sender@example.org", m, fmt.Sprintf("u%d@far.test", n), fmt.Sprintf("v%d@far.test", n))
			}
			if err := waitLines(d, regexp.MustCompile(`mta delivery .* result="Ok" stat="250`), 2*mails, 2*waitLimit); err != nil {
				t.Fatalf("%v\n%s", err, peerErrors(d.log()))
			}
			if scheme == "smtp+tls" && !strings.Contains(d.log(), `mta cert-check result="valid"`) {
				t.Error("the certificate was not verified")
			}
			if name == "exim" {
				refusedMail(t, d, letters)
			}
			texts := peerTexts(t, name, dir)
			for token, m := range letters {
				head := "X-Token: " + token + "\n"
				_, text, _ := strings.Cut(strings.ReplaceAll(m.text, "\r\n", "\n"), "\n\n")
				if strings.Count(texts, head) != 1 {
					t.Errorf("%s arrived %d times", token, strings.Count(texts, head))
					continue
				}
				_, rest, _ := strings.Cut(texts, head)
				if _, rest, _ = strings.Cut(rest, "\n\n"); !strings.HasPrefix(rest, text) {
					t.Errorf("%s: the text begins %.200q", token, rest)
				}
			}
		})
	}
}

// refusedMail sends Exim mail that it refuses, whole or for some recipients, each
// followed on the same connection by some that it takes: every recipient ends as
// Exim said, and no mail gets the sender of another. Those taken join letters.
func refusedMail(t *testing.T, d *daemon, letters map[string]letter) {
	const gone, late = `result="PermFail" stat="550 no such person here"`, `result="TempFail" stat="451 come back later"`
	tests := []struct {
		subject string
		rcpts   map[string]string // local part -> end of its delivery line
	}{
		{"one of two", map[string]string{"5a": gone, "ok-a": `result="Ok"`}},
		{"all of them", map[string]string{"5b": gone, "5c": gone, "4b": late}},
		{"after that", map[string]string{"ok-b": `result="Ok"`}},
		{"refuse", map[string]string{"ok-c": `result="PermFail" stat="550 not this text"`}},
		{"after the text", map[string]string{"ok-d": `result="Ok"`, "4d": late}},
		{"defer", map[string]string{"ok-e": `result="TempFail" stat="451 not now"`}},
		{"the last", map[string]string{"ok-f": `result="Ok"`}},
	}
	type ending struct{ line, mail string }
	var want []ending
	smtpctl(t, d, "pause", "mta")                 // so that the next mail goes right behind the last
	for size := 100; size < 100_000; size *= 30 { // to 90 KB: in one chunk, and in several
		for i, tt := range tests {
			m := newLetter("u@far.test", size)
			m.text = strings.Replace(m.text, "Subject: test", "Subject: "+tt.subject, 1)
			from := fmt.Sprintf("from-%d-%d@example.org", size, i)
			var rcpts []string
			for user, end := range tt.rcpts {
				rcpts = append(rcpts, fmt.Sprintf("%s-%d@far.test", user, size))
				want = append(want, ending{fmt.Sprintf(`mta delivery .* from=<%s> to=<%s-%d@far\.test> .* %s`, from, user, size, end), from})
				if strings.HasPrefix(end, `result="Ok"`) {
					letters[m.token] = m
				}
			}
			submitAt(t, "127.0.0.1:2525", from, m, rcpts...)
		}
	}
	smtpctl(t, d, "resume", "mta")
	for _, w := range want {
		if err := d.waitLog(regexp.MustCompile(w.line), 1); err != nil {
			t.Errorf("want %s\n%s", w.line, grepLog(d, w.mail))
		}
	}
}

// startPeer runs one, and gives how to end it.
func startPeer(t *testing.T, name, port, dir string) (stop func(), ok bool) {
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", "testdata/peer.sh", name, port, dir)
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	stop = func() {
		_ = cmd.Process.Signal(os.Interrupt)
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(waitLimit); time.Now().Before(end); {
		select {
		case <-ended:
			if cmd.ProcessState.ExitCode() != 3 {
				text, _ := os.ReadFile(log.Name())
				t.Fatalf("%s ended: %s", name, text)
			}
			return stop, false
		case <-tick.C:
		}
		if c, err := net.DialTimeout("tcp4", "127.0.0.1:"+port, time.Second); err == nil {
			_ = c.SetDeadline(time.Now().Add(waitLimit))
			line, _ := bufio.NewReader(c).ReadString('\n')
			c.Close()
			if strings.HasPrefix(line, "220") {
				return stop, true
			}
		}
	}
	stop()
	text, _ := os.ReadFile(log.Name())
	t.Fatalf("%s does not come up: %s", name, text)
	return nil, false
}

func peerTexts(t *testing.T, name, dir string) string {
	out, err := exec.Command("testdata/peer.sh", name, "list", dir).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, tail(out, 5))
	}
	return string(out)
}

// peerCertificate makes rsa.crt and rsa.key for localhost in dir.
func peerCertificate(t *testing.T, dir string, keyMode os.FileMode) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []struct {
		name, kind string
		der        []byte
		mode       os.FileMode
	}{{"rsa.crt", "CERTIFICATE", cert, 0o644}, {"rsa.key", "PRIVATE KEY", der, keyMode}} {
		b := pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: f.der})
		if err := os.WriteFile(filepath.Join(dir, f.name), b, f.mode); err != nil {
			t.Fatal(err)
		}
	}
}

// peerErrors is what a log says of sessions that failed.
func peerErrors(log string) string {
	var b strings.Builder
	for line := range strings.Lines(log) {
		if strings.Contains(line, "mta error") || strings.Contains(line, "smtp-out: Error") {
			b.WriteString(line)
		}
	}
	return b.String()
}
