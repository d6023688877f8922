package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// quotaScript puts the homes, the system mailboxes and the spool on a file
// system that knows quotas, each with one.
const quotaScript = `set -e
cd "$1"
truncate -s 256M disk
mkfs.btrfs -q disk
mkdir fs
mount -o loop disk fs
btrfs quota enable fs
for d in home mail spool; do btrfs subvolume create fs/$d >/dev/null; done
chown root:mail fs/mail; chmod 2775 fs/mail
mount --bind fs/home /home
mount --bind fs/mail /var/mail
mount --bind fs/spool /var/spool
for u in alice bob; do install -d -m 0700 -o $u -g $u /home/$u; done
btrfs qgroup limit 2M fs/home
btrfs qgroup limit 2M fs/mail
btrfs qgroup limit 96M fs/spool
`

// quotaWorld makes that file system below a folder of the test; false says that
// this machine cannot.
func quotaWorld(t *testing.T) (dir string, ok bool) {
	t.Helper()
	if _, err := exec.LookPath("mkfs.btrfs"); err != nil {
		t.Log("btrfs-progs is not installed: no quota is exceeded")
		return "", false
	}
	dir = t.TempDir()
	if out, err := exec.Command("sh", "-c", quotaScript, "sh", dir).CombinedOutput(); err != nil {
		t.Logf("no file system with quotas can be mounted here: %v\n%s", err, out)
		return "", false
	}
	t.Cleanup(func() {
		out, err := exec.Command("umount", "/home", "/var/mail", "/var/spool", dir+"/fs").CombinedOutput()
		if err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	return dir, true
}

// TestRootQuota goes over the quota of a Maildir's owner, of a mail spool, of a
// file and of our own spool: mail waits, or is told 452; nothing is left behind
// half written, and all arrives, whole and once, when there is more room.
func TestRootQuota(t *testing.T) {
	if !asRoot(t) {
		return
	}
	dir, ok := quotaWorld(t)
	if !ok {
		return
	}
	d := startRoot(t, `listen on 127.0.0.1 port 25
queue ttl 1h
action dir maildir
action box mbox
match from any for domain dir.test action dir
match from any for domain box.test action box
match from any for domain file.test action dir
`)
	t.Cleanup(d.kill) // before the file systems go
	if err := os.WriteFile("/home/bob/.forward", []byte("/home/bob/box\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	shell(t, "chown bob /home/bob/.forward")
	l := &ledger{acked: map[string]string{}}
	for range 12 {
		for _, to := range []string{"alice@dir.test", "alice@box.test", "bob@file.test"} {
			if code := l.one(to, 300<<10); code != 0 {
				t.Fatalf("refused: %d\n%s", code, tail([]byte(d.log()), 5))
			}
		}
	}
	for _, program := range []string{"mail.maildir: /home/alice/Maildir", "mail.local: /var/mail/alice", "mail.mboxfile"} {
		re := regexp.MustCompile(`result=TempFail stat=Error \(temporary failure: "` + program + `: Disk quota exceeded"\)`)
		if err := d.waitLog(re, 1); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"/var/mail/alice", "/home/bob/box"} {
		if b, err := os.ReadFile(f); err != nil || len(b) > 0 && !strings.HasSuffix(string(b), "0123456789\n\n") {
			t.Errorf("%s was not cut back: %v", f, err)
		}
	}
	if left, _ := filepath.Glob("/home/alice/Maildir/tmp/*"); left != nil {
		t.Errorf("left in tmp: %v", left)
	}
	overSpool(t, l)
	shell(t, "for q in 0/256 0/257 0/258; do btrfs qgroup limit none $q "+dir+"/fs; done")
	waitFor(t, "new mail to be taken", func() bool { return l.one("alice@dir.test", 1<<20) == 0 })
	waitFor(t, "all to arrive", func() bool {
		smtpctl(t, d, "schedule", "all")
		return smtpctl(t, d, "show", "queue") == ""
	})
	if err := d.stop(); err != nil {
		t.Error(err)
	}
	arrived := collect(t, "/home/alice/Maildir/new")
	for _, f := range []string{"/var/mail/alice", "/home/bob/box"} {
		addBox(t, arrived, f)
	}
	l.check(t, arrived, false)
}

// overSpool sends until the spool is at its quota: 452.
func overSpool(t *testing.T, l *ledger) {
	t.Helper()
	for n := 0; ; n++ {
		code := l.one("alice@dir.test", 1<<20)
		if code == 452 {
			return
		}
		if code != 0 || n > 150 {
			t.Fatalf("mail %d of 1 MB into a spool of 96: answered %d", n, code)
		}
	}
}

// addBox adds the mails of an mbox file to those that arrived.
func addBox(t *testing.T, arrived map[string][]string, name string) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, mail := range strings.Split("\n"+string(b), "\n\nFrom sender@example.org ") {
		_, text, ok := strings.Cut(mail, "X-Token: ")
		if !ok {
			continue
		}
		token, _, _ := strings.Cut(text, "\n")
		text = strings.ReplaceAll("X-Token: "+strings.TrimRight(text, "\n")+"\n", "\n>From ", "\nFrom ")
		arrived[token] = append(arrived[token], text)
	}
}
