package main

import (
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestRootFlippedByte flips one byte of each file of a spool in turn, and of the
// database many: the daemon starts and lives, all mail but what was hit is
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
	if err := d.stop(); err != nil || len(ids) != 14 || len(l.acked) != 14 {
		t.Fatalf("%v, %d ids of %d mails", err, len(ids), len(l.acked))
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
		if filepath.Base(name) == "queue.db" {
			flips = 12
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
