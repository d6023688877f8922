package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A filter program runs as the user and group that are asked for, the others
// as the daemon's; both answer.
func TestRootFilterIdentity(t *testing.T) {
	if !asRoot(t) {
		return
	}
	script := filepath.Join(t.TempDir(), "filter.sh")
	text := `echo "i am $(id -un) $(id -gn)" >&2
while IFS= read -r line && [ "$line" != "config|ready" ]; do :; done
echo "register|filter|smtp-in|mail-from"
echo "register|ready"
while IFS= read -r line; do
	rest=${line#*|*|*|*|*|}
	session=${rest%%|*}; rest=${rest#*|}
	echo "filter-result|$session|${rest%%|*}|proceed"
done
`
	if err := os.WriteFile(script, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	for up := filepath.Dir(script); up != "/" && up != os.TempDir(); up = filepath.Dir(up) {
		if err := os.Chmod(up, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	conf := `filter "a" proc-exec "/bin/sh ` + script + `" user "alice"
filter "b" proc-exec "/bin/sh ` + script + `"
` + strings.Replace(rootConf, "listen on 127.0.0.1", `listen on 127.0.0.1 filter { "a", "b" }`, 1)
	d := startRoot(t, conf)
	for _, re := range []string{`a: i am alice alice`, `b: i am _smtpd _smtpd`} {
		if err := d.waitLog(regexp.MustCompile(re), 1); err != nil {
			t.Fatalf("%v\n%s", err, d.log())
		}
	}
	reply, err := mailer("127.0.0.1:25", "a@b.org", "Subject: x\r\n\r\nx")
	if err != nil || !strings.Contains(reply, "<x@mx.test>") && !strings.HasPrefix(reply, "250") {
		t.Errorf("%q, %v", reply, err)
	}
	if strings.HasPrefix(reply, "421") {
		t.Errorf("%q\n%s", reply, d.log())
	}
	if err := d.stop(); err != nil {
		t.Error(err)
	}
}
