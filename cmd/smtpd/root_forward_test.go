package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// planted is what a .forward file must not show anybody.
const planted = "PLANTED-SECRET"

// TestRootForward is every kind of .forward file before the daemon as it is
// installed: what may not be followed is refused, at once, whatever it is, and
// nothing that it holds comes into the reply, the log or the queue. carol is a
// user of the system, system an account of it.
func TestRootForward(t *testing.T) {
	if !asRoot(t) {
		return
	}
	shell(t, "install -d -m 0755 -o 500 -g 500 /home/system; install -d -m 0755 -o 64300 -g 64300 /home/carol\n"+
		"printf 'carol:x:64300:64300::/home/carol:/bin/sh\\nsystem:x:500:500::/home/system:/bin/sh\\n' >>/etc/passwd\n"+
		"install -d -m 0700 /home/root; sed 's|^root:.*|root:x:0:0:root:/home/root:/bin/sh|' /etc/passwd >/run/passwd; cat /run/passwd >/etc/passwd\n"+
		"printf '"+planted+":x:1::::::\\n' >/home/shadow; chmod 600 /home/shadow")
	const text = `listen on 127.0.0.1 port 25 hostname mx.test
action "box" maildir
action "as bob" maildir user bob
action "forward" forward-only
action "expand" expand-only
match from any for domain "box.test" action "box"
match from any for domain "bob.test" action "as bob"
match from any for domain "forward.test" action "forward"
match from any for domain "expand.test" action "expand"
match from any for domain "refused.test" reject
`
	d := startRoot(t, text)
	conf := filepath.Join(t.TempDir(), "smtpd.conf")
	writeFile(t, conf, text)
	for _, tt := range forwardTests() {
		t.Run(tt.name, func(t *testing.T) {
			shell(t, "F=/home/carol/.forward; rm -rf $F /home/*/.forward; [ ! -d /home/away ] || mv /home/away /home/carol; chmod 755 /home/carol\n"+tt.script)
			start := time.Now()
			got := rcptCode(t, "127.0.0.1:25", tt.rcpt)
			if took := time.Since(start); !strings.Contains(tt.want, got) || took > 5*time.Second {
				t.Errorf("got %s after %v, want %s", got, took, tt.want)
			}
			// Without the daemon it is the same.
			out, _ := exec.Command(filepath.Join(bins, "smtpd"), "-n", "--explain", "-f", conf, "client=127.0.0.1", "rcpt="+tt.rcpt).Output()
			lines := strings.Split(strings.TrimSpace(string(out)), "\n")
			if last := lines[len(lines)-1]; !strings.HasPrefix(last, got) || strings.Contains(string(out), planted+":") {
				t.Errorf("the daemon says %s, --explain\n%s", got, out)
			}
		})
	}
	t.Run("growing", func(t *testing.T) {
		shell(t, "rm -rf /home/carol/.forward /home/*/.forward; [ ! -d /home/away ] || mv /home/away /home/carol; : >/home/carol/.forward; chown carol /home/carol/.forward")
		cmd := exec.Command("sh", "-c", "while :; do echo '# "+planted+"'; done >>/home/carol/.forward")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			if got := rcptCode(t, "127.0.0.1:25", "carol@box.test"); got != "451" && got != "250" {
				t.Errorf("got %s", got)
			}
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		shell(t, "rm /home/carol/.forward")
	})
	if log := d.log(); strings.Contains(log, planted) || strings.Contains(log, strings.ToLower(planted)) {
		t.Errorf("the log holds what the files do:\n%s", log)
	}
	if err := d.stop(); err != nil {
		t.Error(err)
	}
	if out, _ := exec.Command("grep", "-rlai", planted, "/var/spool").Output(); len(out) > 0 {
		t.Errorf("in the spool: %s", out)
	}
	if err := os.RemoveAll("/home/carol"); err != nil {
		t.Error(err)
	}
}

// forwardTest makes a file $F of carol and says what her sender hears.
type forwardTest struct{ name, script, rcpt, want string }

func forwardTests() []forwardTest {
	const own = "chown 64300:64300 $F"
	return []forwardTest{
		{"none", "", "carol@box.test", "250"},
		{"empty", ": >$F; " + own, "carol@box.test", "250"},
		{"comments", "printf '# " + planted + "\\n\\n' >$F; " + own, "carol@box.test", "250"},
		{"plain", "echo bob >$F; " + own, "carol@box.test", "250"},
		{"mode 000", "echo bob >$F; " + own + "; chmod 000 $F", "carol@box.test", "250"},
		{"itself", `echo '\carol, bob' >$F; ` + own, "carol@box.test", "250"},
		{"loop", "echo bob@box.test >$F; " + own + "; echo carol@box.test >/home/bob/.forward; chown bob /home/bob/.forward", "carol@box.test", "550"},
		{"of another", "echo " + planted + " >$F; chown bob $F", "carol@box.test", "550"},
		{"of root", "echo " + planted + " >$F", "carol@box.test", "550"},
		{"group may write", "echo " + planted + " >$F; " + own + "; chmod 664 $F", "carol@box.test", "550"},
		{"all may write", "echo " + planted + " >$F; " + own + "; chmod 646 $F", "carol@box.test", "550"},
		{"home open", "echo " + planted + " >$F; " + own + "; chmod 777 /home/carol", "carol@box.test", "550"},
		{"home sticky", "echo " + planted + " >$F; " + own + "; chmod 1755 /home/carol", "carol@box.test", "451"},
		{"home away", "mv /home/carol /home/away", "carol@box.test", "250"},
		{"fifo", "mkfifo $F; " + own, "carol@box.test", "550"},
		{"socket", "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"'$F'\")'; " + own, "carol@box.test", "550"},
		{"zero", "mknod $F c 1 5; " + own, "carol@box.test", "550"},
		{"terminal", "mknod $F c 5 0; " + own, "carol@box.test", "550"},
		{"disk", "mknod $F b 7 0; " + own, "carol@box.test", "550"},
		{"folder", "mkdir $F; " + own, "carol@box.test", "550"},
		{"symlink to shadow", "ln -s /home/shadow $F", "carol@box.test", "550"},
		{"symlink to its own", "echo bob >/home/carol/real; chown carol /home/carol/real; ln -s real $F", "carol@box.test", "550"},
		{"symlink to nothing", "ln -s nothing $F", "carol@box.test", "550"},
		{"hard link to shadow", "ln /home/shadow $F", "carol@box.test", "550"},
		{"10 GB", "truncate -s 10G $F; " + own, "carol@box.test", "451"},
		{"4095 octets", "head -c 4095 /dev/zero | tr '\\0' '#' >$F; " + own, "carol@box.test", "250"},
		{"4096 octets", "head -c 4096 /dev/zero | tr '\\0' '#' >$F; " + own, "carol@box.test", "451"},
		{"100 items", "for i in $(seq 100); do echo bob+$i; done >$F; " + own, "carol@box.test", "250"},
		{"101 items", "for i in $(seq 101); do echo bob+$i; done >$F; " + own, "carol@box.test", "451"},
		{"no list", "echo " + planted + " and more >$F; " + own, "carol@box.test", "451"},
		{"control", "printf '" + planted + "\\001\\n' >$F; " + own, "carol@box.test", "451"},
		{"include", "echo :include:/home/shadow, bob >$F; " + own, "carol@box.test", "250"},
		{"include alone", "echo :include:/home/shadow >$F; " + own, "carol@box.test", "550"},
		{"its reply", "echo error:550 5.7.1 moved >$F; " + own, "carol@box.test", "550"},
		{"nobody", "echo nosuchuser >$F; " + own, "carol@box.test", "550"},
		{"refused", "echo x@refused.test >$F; " + own, "carol@box.test", "550"},
		{"command", `echo '"|/bin/true"' >$F; ` + own, "carol@box.test", "250"},
		{"forward-only, none", "", "carol@forward.test", "451"},
		{"forward-only, address", "echo bob@box.test >$F; " + own, "carol@forward.test", "250"},
		{"forward-only, command", `echo '"|/bin/true"' >$F; ` + own, "carol@forward.test", "451"},
		{"forward-only, reply", "echo error:550 no >$F; " + own, "carol@forward.test", "451"},
		{"expand-only", "", "carol@expand.test", "550"},
		{"expand-only, address", "echo bob@box.test >$F; " + own, "carol@expand.test", "250"},
		{"not looked at", "mkfifo $F; " + own, "carol@bob.test", "250"},
		{"system account, command", `echo '"|/bin/true"' >/home/system/.forward; chown 500 /home/system/.forward`, "system@box.test", "451"},
		{"system account, file", `echo /home/system/x >/home/system/.forward; chown 500 /home/system/.forward`, "system@box.test", "451"},
		{"system account, address", `echo bob >/home/system/.forward; chown 500 /home/system/.forward`, "system@box.test", "250"},
		{"root, command", `echo '"|/bin/true"' >/home/root/.forward`, "root@box.test", "451"},
		{"root, address", `echo bob >/home/root/.forward`, "root@box.test", "250"},
	}
}

// shell runs a script that sets the scene.
func shell(t *testing.T, script string) {
	t.Helper()
	if out, err := exec.Command("sh", "-ec", script).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
}
