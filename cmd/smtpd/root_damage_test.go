package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestRootFlippedByte flips one byte of each file of a spool in turn, of the
// database and the log many; the daemon that had it was killed, so that there is
// mail in the log: the daemon starts and lives, all mail but what was hit is
// delivered, what was hit is named, and new mail is taken.
func TestRootFlippedByte(t *testing.T) {
	if !asRoot(t) {
		return
	}
	const spool = "/var/spool/smtpd"
	l := &ledger{acked: map[string]string{}}
	d := startRoot(t, rootConf, "-P", "mta", "-P", "mda")
	for i := range 14 {
		to := []string{"alice@localhost", "someone@far.test"}[i%2]
		if code := l.one(to, []int{1 << 10, 20 << 10, 100 << 10}[i%3]); code != 0 {
			t.Fatalf("refused: %d", code)
		}
	}
	ids := map[string]string{} // token -> message id
	for _, id := range regexp.MustCompile(`(?m)^[0-9a-f]{8}`).FindAllString(smtpctl(t, d, "show", "queue"), -1) {
		_, after, _ := strings.Cut(smtpctl(t, d, "show", "message", id), "X-Token: ")
		token, _, _ := strings.Cut(after, "\n")
		ids[strings.TrimSpace(token)] = id
	}
	d.kill()
	waitFor(t, "all processes to end", func() bool { return len(workersAlive()) == 0 })
	if len(ids) != 14 || len(l.acked) != 14 {
		t.Fatalf("%d ids of %d mails", len(ids), len(l.acked))
	}
	whole := filepath.Join(t.TempDir(), "whole")
	shell(t, `cp -a `+spool+` `+whole)
	var files []string
	err := filepath.WalkDir(spool+"/queue", func(name string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			files = append(files, name)
		}
		return err
	})
	if err != nil || len(files) < 6 {
		t.Fatalf("%v, files %q", err, files)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	for _, name := range files {
		flips := 1
		switch filepath.Base(name) {
		case "queue.db":
			flips = 12
		case "queue.log":
			flips = 6
		}
		for range flips {
			shell(t, `rm -rf `+spool+` /home/alice/Maildir && cp -a `+whole+` `+spool)
			at := flip(t, name, r)
			lost := flowsOn(t, l, ids)
			t.Logf("%s, octet %d: %d of 14 lost", name, at, lost)
			if lost > 1 {
				t.Errorf("one byte cost %d mails", lost)
			}
		}
	}
}

// flip changes one octet of what a file holds; of a database, of its first
// pages, where what is not zero is.
func flip(t *testing.T, name string, r *rand.Rand) int {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil || len(b) == 0 {
		t.Fatalf("%s: %d octets, %v", name, len(b), err)
	}
	at := r.IntN(len(b))
	for tries := 0; b[at] == 0 && tries < 1000; tries++ {
		at = r.IntN(len(b))
	}
	b[at] ^= 1 << r.IntN(8)
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(b[at:at+1], int64(at))
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// flowsOn starts the daemon on a damaged spool and counts what does not arrive
// of what it holds.
func flowsOn(t *testing.T, l *ledger, ids map[string]string) (lost int) {
	t.Helper()
	sinkDir := filepath.Join(t.TempDir(), "sink")
	s, err := startSink("127.0.0.1:2525", sinkDir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	d := startRoot(t, rootConf)
	fresh := &ledger{acked: map[string]string{}}
	if code := fresh.one("alice@localhost", 1<<10); code != 0 || len(fresh.acked) != 1 {
		t.Errorf("new mail is not taken: %d", code)
	}
	waitEmpty(t, d, time.Minute)
	named := d.log() + smtpctl(t, d, "show", "corrupt")
	arrived := collect(t, "/home/alice/Maildir/new", sinkDir)
	for token, want := range l.acked {
		switch got := arrived[token]; {
		case len(got) == 0:
			if lost++; !strings.Contains(named, ids[token]) {
				t.Errorf("message %s is lost and not named\n%s", ids[token], named)
			}
		case len(got) > 1 || got[0] != want:
			t.Errorf("message %s came %d times, or not whole", ids[token], len(got))
		}
	}
	fresh.check(t, arrived, false)
	if err := d.stop(); err != nil {
		t.Error(err)
	}
	return lost
}

// TestRootAside damages an envelope, a body in the database, and body files in
// three ways: smtpctl names each, shows what can be read, puts back what can be
// sent, and throws away the rest; everything else is delivered.
func TestRootAside(t *testing.T) {
	if !asRoot(t) {
		return
	}
	sinkDir := relaySink(t)
	d := startRoot(t, rootConf, "-P", "mta")
	l := &ledger{acked: map[string]string{}}
	for i := range 6 {
		if code := l.one(fmt.Sprintf("rcpt%d@far.test", i), []int{1 << 10, 200 << 10}[i%2]); code != 0 {
			t.Fatalf("refused: %d", code)
		}
	}
	ids := regexp.MustCompile(`(?m)^[0-9a-f]{8}`).FindAllString(smtpctl(t, d, "show", "queue"), -1)
	if err := d.stop(); err != nil || len(ids) != 6 {
		t.Fatalf("%v, ids %q", err, ids)
	}
	const spool = "/var/spool/smtpd/queue/"
	body := func(i int) string { return spool + "body/" + ids[i][6:] + "/" + ids[i] }
	edit(t, spool+"queue.db", func(b []byte) []byte {
		b = bytes.ReplaceAll(b, []byte("rcpt0"), []byte("rcptO")) // envelope of the first
		at := bytes.Index(b, []byte("id "+ids[2]))                // body of the third
		if at < 0 {
			t.Fatal("no body in the database")
		}
		b[bytes.Index(b[at:], []byte("quick"))+at] = 'Q'
		return b
	})
	edit(t, body(1), func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
	edit(t, body(3), func(b []byte) []byte { return b[:len(b)/2] })
	if err := os.Remove(body(5)); err != nil {
		t.Fatal(err)
	}
	d = startRoot(t, rootConf, "-P", "mta")
	if out := smtpctl(t, d, "queue", "verify"); !strings.HasSuffix(out, " 4 damaged\n") { // the envelope was found at the start
		t.Errorf("verify: %q", out)
	}
	items := map[string]string{"env-" + ids[0] + "00000001": "checksum mismatch", "msg-" + ids[1]: "body: checksum mismatch",
		"msg-" + ids[2]: "checksum mismatch", "msg-" + ids[3]: "body has the wrong size", "msg-" + ids[5]: "no such file or directory"}
	shown := smtpctl(t, d, "show", "corrupt")
	for name, reason := range items {
		if !regexp.MustCompile(`(?m)^` + name + `\|\d+\|1\|.*` + reason).MatchString(shown) {
			t.Errorf("%s is not shown with %q:\n%s", name, reason, shown)
		}
		out := smtpctl(t, d, "corrupt", "inspect", name)
		hasText := name != "msg-"+ids[5] // the first goes with its only envelope
		if strings.Count(out, "\nenvelope: ") != 1 || hasText != strings.Contains(out, "\nSubject: test\n") {
			t.Errorf("inspect %s: %q", name, tail([]byte(out), 12))
		}
		if name != "msg-"+ids[5] {
			if out := smtpctl(t, d, "corrupt", "return", name); out != "1 envelope returned\n" {
				t.Errorf("return %s: %q", name, out)
			}
		}
	}
	if out, err := exec.Command(filepath.Join(bins, "smtpctl"), "-s", d.socket, "corrupt", "return", "msg-"+ids[5]).CombinedOutput(); err == nil {
		t.Errorf("a message without its body was returned: %s", out)
	}
	smtpctl(t, d, "corrupt", "remove", "msg-"+ids[5])
	if out := smtpctl(t, d, "show", "corrupt"); out != "" {
		t.Errorf("left: %q", out)
	}
	smtpctl(t, d, "resume", "mta")
	waitEmpty(t, d, time.Minute)
	if err := d.stop(); err != nil {
		t.Error(err)
	}
	if n := len(collect(t, sinkDir)); n != 5 {
		t.Errorf("%d of 5 arrived", n)
	}
}

// edit changes what a file holds.
func edit(t *testing.T, name string, change func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err == nil {
		err = os.WriteFile(name, change(b), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}
