package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// identityFilter says who and where it is, and lets everything pass.
const identityFilter = `echo "i am $(id -un) $(id -gn) groups $(id -G | wc -w) in $(pwd) $([ -e /etc/passwd ] && echo outside || echo inside)" >&2
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
	said := []string{`a: i am alice alice groups 1 in / outside`, `b: i am _smtpd _smtpd groups 1 in / outside`,
		`c: i am alice daemon groups 1 in / outside`, `d: -v,two words: / has bin lib`}
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
