package bounce

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// maildir writes every notice of the suite into a Maildir, in the order of their
// names.
func maildir(t *testing.T) (dir string, names []string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "Maildir")
	for _, sub := range []string{"cur", "new", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	all := notices()
	names = slices.Sorted(maps.Keys(all))
	for i, name := range names {
		data, _, _ := all[name].Compose()
		file := filepath.Join(dir, "cur", fmt.Sprintf("%d.%d.host:2,", 1795216993+i, i))
		if err := os.WriteFile(file, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir, names
}

// TestDovecot asks an IMAP server for the structure of each notice.
func TestDovecot(t *testing.T) {
	doveadm, err := exec.LookPath("doveadm")
	if err != nil {
		t.Log("doveadm is not installed: not run")
		return
	}
	dir, names := maildir(t)
	work := filepath.Dir(dir)
	conf := filepath.Join(work, "dovecot.conf")
	user := strings.TrimSpace(run(t, exec.Command("id", "-un")))
	text := "base_dir = " + work + "\nstate_dir = " + work + "\nlog_path = /dev/stderr\nssl = no\nfirst_valid_uid = 1\n" +
		"mail_location = maildir:" + dir + "\nmail_home = " + work + "\n"
	if os.Getuid() == 0 { // it does not touch mail as root
		user = "nobody"
		run(t, exec.Command("chown", "-R", user, work))
		for up := work; up != os.TempDir() && up != "/"; up = filepath.Dir(up) {
			if err := os.Chmod(up, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	text += "mail_uid = " + user + "\nmail_gid = " + strings.TrimSpace(run(t, exec.Command("id", "-gn", user))) + "\n" +
		"default_internal_user = " + user + "\ndefault_login_user = " + user + "\n"
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), doveadm, "-c", conf, "fetch", "imap.bodystructure", "all")
	cmd.Env, cmd.Dir = append(os.Environ(), "USER="+user, "HOME="+work), work
	out := run(t, cmd)
	lines := strings.Split(out, "imap.bodystructure")[1:] // one may hold a literal, with a line end
	if len(lines) != len(names) {
		t.Fatalf("%d structures of %d\n%s", len(lines), len(names), out)
	}
	for i, line := range lines {
		status, kinds := `"message" "delivery-status"`, `"text" "rfc822-headers"`
		switch {
		case names[i] == "utf8":
			status, kinds = `"message" "global-delivery-status"`, `"message" "global-headers"`
		case names[i] == "utf8-full":
			status, kinds = `"message" "global-delivery-status"`, `"message" "global"`
		case names[i] == "full" || names[i] == "failed-mta":
			kinds = `"message" "rfc822"`
		}
		for _, want := range []string{`: ("text" "plain" (`, `)(` + status + ` `, `)(` + kinds + ` `, `) "report" ("report-type" `} {
			if !strings.Contains(line, want) {
				t.Errorf("%s: no %s in %s", names[i], want, line)
			}
		}
	}
}

// TestMutt has a mail reader show each notice.
func TestMutt(t *testing.T) {
	mutt, err := exec.LookPath("mutt")
	script, err2 := exec.LookPath("script")
	if err != nil || err2 != nil {
		t.Log("mutt or script is not installed: not run")
		return
	}
	dir, names := maildir(t)
	work := filepath.Dir(dir)
	shown := filepath.Join(work, "shown")
	rc := "set pager=\"sh -c 'cat \\\"$0\\\" >>" + shown + "'\"\nset wait_key=no prompt_after=no mbox_type=Maildir quit=yes sort=mailbox-order\n" +
		"set folder=" + work + "\nset header_cache=\nset charset=utf-8\n"
	if err := os.WriteFile(filepath.Join(work, "rc"), []byte(rc), 0o644); err != nil {
		t.Fatal(err)
	}
	keys := "<first-entry>" + strings.Repeat("<display-message><next-entry>", len(names)) + "<quit>"
	cmd := exec.CommandContext(t.Context(), script, "-qec",
		mutt+" -n -R -F "+work+"/rc -f "+dir+" -e 'push "+keys+"'", "/dev/null")
	cmd.Env = append(os.Environ(), "TERM=xterm", "HOME="+work, "LC_ALL=C.UTF-8")
	run(t, cmd)
	data, err := os.ReadFile(shown)
	if err != nil {
		t.Fatal(err)
	}
	for what, want := range map[string]int{
		"This is the MAILER-DAEMON, please DO NOT REPLY": len(names),
		"[-- Attachment #2: Delivery Report --]":         len(names),
		"[-- Attachment #3: Message":                     len(names),
		"Subject: Delivery status notification: failed":  len(names) - 3,
	} {
		if got := strings.Count(string(data), what); got != want {
			t.Errorf("%q is shown %d times; want %d\n%s", what, got, want, data)
		}
	}
}

func run(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return string(out)
}
