package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	gosmtp "github.com/emersion/go-smtp"
)

// identityFilter says who and where it is, and lets everything pass.
const identityFilter = `echo "i am $(id -un) $(id -gn) groups $(id -G | wc -w) in $(pwd) $([ -e /etc/passwd ] && echo outside || echo inside), $(cat /proc/self/timerslack_ns)" >&2
while IFS= read -r line && [ "$line" != "config|ready" ]; do :; done
echo "register|filter|smtp-in|mail-from"
echo "register|ready"
while IFS= read -r line; do
	rest=${line#*|*|*|*|*|}
	session=${rest%%|*}; rest=${rest#*|}
	echo "filter-result|$session|${rest%%|*}|proceed"
done
`

// A filter program runs as the user and group that are asked for, and below the
// folder; the others run as the daemon's user. All answer, and when they are
// killed they come back as the same.
func TestRootFilterIdentity(t *testing.T) {
	if !asRoot(t) {
		return
	}
	dir := t.TempDir()
	script := filepath.Join(dir, "filter.sh")
	if err := os.WriteFile(script, []byte(identityFilter), 0o644); err != nil {
		t.Fatal(err)
	}
	for up := dir; up != "/" && up != os.TempDir(); up = filepath.Dir(up) {
		if err := os.Chmod(up, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root := chrootWith(t, filepath.Join(dir, "root"))
	conf := fmt.Sprintf(`filter "a" proc-exec "/bin/sh %[1]s" user "alice"
filter "b" proc-exec "/bin/sh %[1]s"
filter "c" proc-exec "/bin/sh %[1]s" user "alice" group "daemon"
filter "d" proc-exec "inside -v 'two words'" user "alice" chroot "%[2]s"
`, script, root) + strings.Replace(rootConf, "listen on 127.0.0.1", `listen on 127.0.0.1 filter { "a", "b", "c", "d" }`, 1)
	d := startRoot(t, conf)
	said := []string{`a: i am alice alice groups 1 in / outside, 50000`, `b: i am _smtpd _smtpd groups 1 in / outside, 50000`,
		`c: i am alice daemon groups 1 in / outside, 50000`, `d: -v,two words: / has bin lib`}
	for _, re := range said {
		if err := d.waitLog(regexp.MustCompile(regexp.QuoteMeta(re)), 1); err != nil {
			t.Errorf("%v\n%s", err, d.log())
		}
	}
	for range 2 {
		reply, err := mailer("127.0.0.1:25", "a@b.org", "Subject: x\r\n\r\nx")
		if err != nil || strings.HasPrefix(reply, "4") {
			t.Errorf("%q, %v\n%s", reply, err, d.log())
		}
		killPrograms(t, script)
		for _, re := range said[:1] {
			if err := d.waitLog(regexp.MustCompile(regexp.QuoteMeta(re)), 2); err != nil {
				t.Errorf("after a kill: %v\n%s", err, d.log())
			}
		}
	}
	if err := d.stop(); err != nil {
		t.Error(err)
	}
}

// chrootWith makes a folder with a shell and a filter in its libexec folder.
func chrootWith(t *testing.T, root string) string {
	t.Helper()
	const inside = "#!/bin/sh\necho \"$1,$2: / has $(echo /* | tr -d /)\" >&2\n"
	out, err := exec.Command("/bin/sh", "-c", `set -e; root=$1
mkdir -p "$root/bin" "$root/usr/libexec/smtpd"
cp /bin/sh "$root/bin/sh"
for t in tr pwd id wc; do cp "$(command -v $t)" "$root/bin/$t" 2>/dev/null || true; done
for f in /bin/sh "$(command -v tr)" "$(command -v id)"; do
	for l in $(ldd "$f" | grep -o '/[^ )]*'); do mkdir -p "$root$(dirname "$l")"; cp -n "$l" "$root$l" || true; done
done`, "sh", root).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	program := inside + identityFilter[strings.Index(identityFilter, "\n")+1:]
	if err := os.WriteFile(filepath.Join(root, "usr/libexec/smtpd/inside"), []byte(program), 0o755); err != nil {
		t.Fatal(err)
	}
	return root
}

// killPrograms kills the programs whose arguments name the script.
func killPrograms(t *testing.T, script string) {
	t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, p := range procs {
		b, err := os.ReadFile(p)
		if err != nil || !strings.Contains(string(b), script) {
			continue
		}
		if out, err := exec.Command("kill", "-9", strings.Split(p, "/")[2]).CombinedOutput(); err != nil {
			t.Errorf("kill: %v %s", err, out)
		}
		n++
	}
	if n < 3 {
		t.Errorf("%d programs run", n)
	}
}

// junkProgram marks mail of one sender in its transaction, and the sessions of
// one name from before there is one.
const junkProgram = `while IFS= read -r line && [ "$line" != "config|ready" ]; do :; done
echo "register|filter|smtp-in|ehlo"
echo "register|filter|smtp-in|mail-from"
echo "register|ready"
while IFS= read -r line; do
	rest=${line#*|*|*|*|*|}
	session=${rest%%|*}; rest=${rest#*|}
	case ${rest#*|} in
	program@*|junk.test) echo "filter-result|$session|${rest%%|*}|junk" ;;
	*) echo "filter-result|$session|${rest%%|*}|proceed" ;;
	esac
done
`

// What a filter calls junk, one built in or a program, for a mail or for a
// session, ends in the folder .Junk of a Maildir that wants it; the other
// methods of delivery see the field that says so. All else is as it was.
func TestRootFilterJunk(t *testing.T) {
	if !asRoot(t) {
		return
	}
	dir := t.TempDir()
	for up := dir; up != "/" && up != os.TempDir(); up = filepath.Dir(up) {
		if err := os.Chmod(up, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command("sh", "-c", "mkdir -p /var/mail && mount -t tmpfs tmpfs /var/mail && chown root:mail /var/mail && chmod 2775 /var/mail").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	script := filepath.Join(dir, "filter.sh")
	if err := os.WriteFile(script, []byte(junkProgram), 0o644); err != nil {
		t.Fatal(err)
	}
	lmtp := filepath.Join(dir, "lmtp")
	s, err := startSink("127.0.0.1:2424", lmtp, func(s *gosmtp.Server) { s.LMTP = true })
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	d := startRoot(t, fmt.Sprintf(`filter "built" phase mail-from match mail-from { "built@x.org" } junk
filter "program" proc-exec "/bin/sh %s"
listen on 127.0.0.1 port 25 hostname mx.test filter { "built", "program" }
action "md" maildir junk
action "flat" maildir "~/Flat"
action "mb" mbox
action "lm" lmtp "127.0.0.1:2424" rcpt-to
action "pipe" mda "/bin/cat >~/pipe.$(date +%%N)"
match from any for domain "md.test" action "md"
match from any for domain "flat.test" action "flat"
match from any for domain "mb.test" action "mb"
match from any for domain "lm.test" action "lm"
match from any for domain "pipe.test" action "pipe"
`, script))
	to := []string{"alice@md.test", "alice@flat.test", "alice@mb.test", "alice@lm.test", "alice@pipe.test"}
	want := map[string]bool{} // by subject: junk
	send := func(helo string, senders ...string) {
		c, err := gosmtp.Dial("127.0.0.1:25")
		if err == nil {
			defer c.Close()
			err = c.Hello(helo)
		}
		for _, from := range senders {
			subject := fmt.Sprintf("mail %d", len(want))
			want[subject] = helo == "junk.test" || !strings.HasPrefix(from, "clean@")
			if err == nil {
				err = c.SendMail(from, to, strings.NewReader("Subject: "+subject+"\r\n\r\nx\r\n"))
			}
		}
		if err != nil {
			t.Errorf("%s: %v", helo, err)
		}
	}
	send("c.test", "clean@x.org", "built@x.org", "clean@x.org", "program@x.org", "clean@x.org")
	send("junk.test", "clean@x.org", "clean@x.org")
	waitEmpty(t, d, waitLimit)
	where := map[string]string{".Junk": "/home/alice/Maildir/.Junk/new/*", "Maildir": "/home/alice/Maildir/new/*", "flat": "/home/alice/Flat/new/*",
		"mbox": "/var/mail/alice", "lmtp": lmtp + "/*", "mda": "/home/alice/pipe.*"}
	for name, pattern := range where {
		t.Run(name, func(t *testing.T) { checkJunk(t, pattern, name, want) })
	}
	if t.Failed() {
		t.Log(tail([]byte(d.log()), 60))
	}
	if err := d.stop(); err != nil {
		t.Error(err)
	}
}

// checkJunk compares the mails in a place with what should be there.
func checkJunk(t *testing.T, pattern, name string, want map[string]bool) {
	files, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range strings.Split("\n"+string(b), "\nFrom ") {
			_, subject, ok := strings.Cut(m, "\nSubject: ")
			if !ok {
				continue
			}
			subject, _, _ = strings.Cut(subject, "\n")
			if _, twice := got[subject]; twice {
				t.Errorf("%s is there twice", subject)
			}
			got[subject] = strings.Count(m, "\nX-Spam: Yes\n") == 1
		}
	}
	for subject, junk := range want {
		is, there := got[subject]
		wanted := name != ".Junk" && name != "Maildir" || junk == (name == ".Junk")
		if there != wanted || there && is != junk {
			t.Errorf("%s: there %v, marked %v; want %v, %v", subject, there, is, wanted, junk)
		}
	}
	if len(got) == 0 {
		t.Error("nothing is there")
	}
}
