package main

import (
	"context"
	"net/smtp"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// aliceUID is that of alice in the private world.
const aliceUID = 64203

// TestRootOrdinary has an ordinary user check and start configurations: what is
// not refused, by -n and at the start, is delivered, and what is refused says why
// and in which line.
func TestRootOrdinary(t *testing.T) {
	if !asRoot(t) {
		return
	}
	const spool = `mkdir -p /var/mail; mount -t tmpfs tmpfs /var/mail; chown root:mail /var/mail; chmod 2775 /var/mail`
	if out, err := exec.Command("sh", "-c", spool).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	const cannot = "an ordinary user (alice) cannot "
	tests := []struct {
		name, before string // before: what root does
		conf         string
		want         string // where the mail lies, or how it is refused
	}{
		{"Maildir", "", `action "a" maildir`, "/home/alice/Maildir/new/*"},
		{"command", "", `action "a" mda "cat >/home/alice/out"`, "/home/alice/out"},
		{"wrapper", "", "mda wrapper w \"tee /home/alice/wrapped | %{mda}\"\naction \"a\" maildir \"/home/alice/w\" wrapper w", "/home/alice/wrapped"},
		{"itself by name", "", `action "a" maildir "/home/alice/u" user alice`, "/home/alice/u/new/*"},
		{"others' mail to itself", "", "table v { alice = bob }\naction \"a\" maildir \"/home/alice/v\" virtual <v> user alice", "/home/alice/v/new/*"},
		{"own virtual users", "", "table ub { alice = \"64203:64203:/home/alice/box\" }\naction \"a\" maildir userbase <ub>", "/home/alice/box/Maildir/new/*"},
		{"virtual users of another", "", "table ub { alice = \"5000:5000:/home/alice/box\" }\naction \"a\" maildir userbase <ub>", `:3: action "a" delivers to alice as uid 5000: ` + cannot + "change identity"},
		{"as another", "", `action "a" maildir user bob`, `:2: action "a" delivers as user bob: ` + cannot + "change identity"},
		{"system mailbox, not there", "", `action "a" mbox`, `:2: action "a": ` + cannot + "deliver there: /var/mail/alice is not there and cannot be made (as root: install -m 600 -o alice /dev/null /var/mail/alice)"},
		{"system mailbox", "install -m 600 -o alice /dev/null /var/mail/alice", `action "a" mbox`, "/var/mail/alice"},
		{"system mailbox of another", "chown bob /var/mail/alice", `action "a" mbox`, ":2: action \"a\": " + cannot + "deliver there: /var/mail/alice: mailbox belongs to another user"},
		{"open spool", "chmod 1777 /var/mail", `action "a" mbox`, "deliver there: /var/mail is writable by every user"},
		{"root folder of a filter", "", "filter f proc-exec \"/bin/cat\" chroot \"/tmp\"\naction \"a\" maildir", ":2: processor f asks for chroot /tmp: " + cannot + "change identity"},
		{"port", "", "listen on 127.0.0.1 port 25\naction \"a\" maildir", ":2: port 25: " + cannot + "open it"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if out, err := exec.Command("sh", "-c", tt.before).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			ordinary(t, "listen on 127.0.0.1 port 2025\n"+tt.conf+"\nmatch from any for any action \"a\"\n", tt.want)
		})
	}
	t.Run("mail.local", mailLocal)
	t.Run("spool", noSpool)
}

// noSpool has alice check and start a configuration without a spool of her own: -n
// says why the start fails.
func noSpool(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "smtpd.conf")
	if err := os.WriteFile(file, []byte("listen on 127.0.0.1 port 2025\naction a maildir\nmatch from any for any action a\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for up := dir; up != os.TempDir(); up = filepath.Dir(up) {
		if err := os.Chmod(up, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	const want = "spool /var/spool/smtpd: an ordinary user cannot write there, -q names another: /var/spool: permission denied"
	for _, mode := range []string{"-n", "-d"} {
		cmd := exec.Command(filepath.Join(bins, "smtpd"), mode, "-s", "/home/alice/s", "-f", file)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: aliceUID, Gid: aliceUID}}
		out, err := cmd.CombinedOutput()
		if (err == nil) != (mode == "-n") || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v: %s; want %s", mode, err, out, want)
		}
	}
}

// mailLocal has alice call mail.local, as her .forward would, where she may not
// make a mailbox: it needs the group of the spool, and then serves her alone.
func mailLocal(t *testing.T) {
	program := filepath.Join(bins, "mail.local")
	script := func(uid uint32, line string) (string, error) {
		cmd := exec.Command("sh", "-c", line)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := script(0, "rm -f /var/mail/*; chmod 2775 /var/mail"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := script(aliceUID, "echo | "+program+" alice"); err == nil || !strings.Contains(out, "/var/mail/alice: Permission denied") {
		t.Errorf("without the group: %v: %s", err, out)
	}
	if out, err := script(0, "chgrp mail "+program+"; chmod 2755 "+program); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := script(aliceUID, "echo | MAIL_LOCAL_SPOOL=/tmp "+program+" alice"); err != nil {
		t.Errorf("with it: %v: %s", err, out)
	}
	if st, err := os.Stat("/var/mail/alice"); err != nil || st.Mode() != 0o600 || st.Sys().(*syscall.Stat_t).Uid != aliceUID {
		t.Errorf("the mailbox: %v, %v", st, err)
	}
	if out, err := script(aliceUID, "echo | "+program+" bob"); err == nil || !strings.Contains(out, "only root delivers to others") {
		t.Errorf("to another: %v: %s", err, out)
	}
	if left, _ := filepath.Glob("/var/mail/*"); len(left) != 1 {
		t.Errorf("in the spool: %v", left)
	}
}

// ordinary checks and starts a configuration as alice, and has a mail for her
// delivered to the file of that name, or the configuration refused.
func ordinary(t *testing.T, conf, want string) {
	t.Helper()
	dir, err := os.MkdirTemp("/home/alice", "run")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "smtpd.conf")
	if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, aliceUID, aliceUID); err != nil {
		t.Fatal(err)
	}
	args := []string{"-f", file, "-q", dir + "/spool"}
	check := exec.Command(filepath.Join(bins, "smtpd"), append([]string{"-n"}, args...)...)
	check.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: aliceUID, Gid: aliceUID}}
	out, err := check.CombinedOutput()
	refused := want[0] != '/'
	if refused && (err == nil || !strings.Contains(string(out), want)) || !refused && err != nil {
		t.Fatalf("-n: %v: %s; want %s", err, out, want)
	}
	d, err := startDaemon(context.Background(), dir, dir+"/sock", aliceUID, args...)
	if refused {
		if err == nil {
			d.kill()
			t.Error("it starts")
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("at the start: %v; want %s", err, want)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer d.kill()
	if err := smtp.SendMail("127.0.0.1:2025", nil, "x@y.test", []string{"alice@mx.test"}, []byte("Subject: x\r\n\r\nhi\r\n")); err != nil {
		t.Errorf("%v\n%s", err, d.log())
	}
	waitEmpty(t, d, waitLimit)
	files, _ := filepath.Glob(want)
	if len(files) != 1 {
		t.Fatalf("%s: %v\n%s", want, files, d.log())
	}
	st, err := os.Stat(files[0])
	if err != nil || st.Size() == 0 || st.Sys().(*syscall.Stat_t).Uid != aliceUID {
		t.Errorf("%v, %v\n%s", st, err, d.log())
	}
}
