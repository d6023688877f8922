package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// debianFilter finds a filter program of Debian's packages; empty: it is not
// installed, and the test has nothing to run.
func debianFilter(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join("/usr/libexec/opensmtpd", name)
	if _, err := os.Stat(path); err != nil {
		t.Logf("%s is not installed: not tested", name)
		return ""
	}
	return path
}

// delivered waits for one mail in the Maildir and gives its text.
func delivered(t *testing.T, d *daemon, dir string) string {
	t.Helper()
	if err := d.waitLog(regexp.MustCompile("mda delivery .*result=Ok"), 1); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "Maildir", "new", "*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func debianConf(command string) string {
	return "filter \"f\" proc-exec \"" + command + "\"\n" + strings.SplitN(oneFilterConf, "\n", 3)[2]
}

// Debian's filter-dkimsign signs, and the signature verifies.
func TestDebianDKIMSign(t *testing.T) {
	program := debianFilter(t, "filter-dkimsign")
	if program == "" {
		return
	}
	if exec.Command("/usr/bin/python3", "-c", "import dkim").Run() != nil {
		t.Log("python3-dkim is not installed: not tested")
		return
	}
	dir := t.TempDir()
	key := filepath.Join(dir, "key.pem")
	if out, err := exec.Command("openssl", "genrsa", "-out", key, "2048").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	public, err := exec.Command("openssl", "rsa", "-in", key, "-pubout", "-outform", "DER").Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "public.der"), public, 0o644); err != nil {
		t.Fatal(err)
	}
	d, addr := filterDaemon(t, dir, debianConf(program+" -d mx.test -s sel -k "+key))
	reply, err := mailer(addr, "a@mx.test", "From: a@mx.test\r\nTo: x@mx.test\r\nDate: Fri, 20 Nov 2026 23:21:02 +0000\r\n"+
		"Message-ID: <1@mx.test>\r\nSubject: signed\r\n\r\n..dot\r\ntext")
	if err != nil || !strings.HasPrefix(reply, "250") {
		t.Fatalf("%q, %v", reply, err)
	}
	mail := delivered(t, d, dir)
	verify := exec.Command("/usr/bin/python3", "-c", `import base64, dkim, sys
key = base64.b64encode(open(sys.argv[1], "rb").read())
text = sys.stdin.buffer.read().replace(b"\n", b"\r\n")
sys.exit(0 if dkim.verify(text, dnsfunc=lambda *a, **k: b"v=DKIM1; k=rsa; p=" + key) else 1)`,
		filepath.Join(dir, "public.der"))
	verify.Stdin = strings.NewReader(mail)
	if out, err := verify.CombinedOutput(); err != nil || !strings.Contains(mail, "DKIM-Signature:") {
		t.Errorf("does not verify: %v\n%s\n%s", err, out, mail)
	}
}

// Debian's filter-senderscore takes part; of a client on this host it has no
// score.
func TestDebianSenderscore(t *testing.T) {
	program := debianFilter(t, "filter-senderscore")
	if program == "" {
		return
	}
	dir := t.TempDir()
	d, addr := filterDaemon(t, dir, debianConf(program+" -scoreHeader"))
	reply, err := mailer(addr, "a@mx.test", "Subject: scored\r\n\r\ntext")
	if err != nil || !strings.HasPrefix(reply, "250") {
		t.Fatalf("%q, %v", reply, err)
	}
	if mail := delivered(t, d, dir); !strings.Contains(mail, "\nSubject: scored\n") {
		t.Errorf("got %s", mail)
	}
}

// rspamdLocal changes the configuration that comes with rspamd: it listens on a
// port of its own and asks nobody.
var rspamdLocal = map[string]string{
	"worker-normal.inc":     "bind_socket = \"127.0.0.1:%d\"; count = 1;",
	"worker-controller.inc": "enabled = false;",
	"worker-proxy.inc":      "enabled = false;",
	"options.inc":           "dns { timeout = 50ms; retransmits = 1; nameserver = [\"127.0.0.1:9\"]; }",
	"actions.conf":          "reject = 15; add_header = 2; greylist = null;",
	"milter_headers.conf": `use = ["authentication-results"];
skip_local = false; skip_authenticated = false;`,
	"logging.inc": "type = \"console\"; level = \"error\";",
}

// gtube is the text that every spam filter takes for spam. It stands between
// other lines, for filter-rspamd leaves out the end of the last one, and rspamd
// does not look at a text that is shorter than the pattern with its end.
const gtube = "hello\r\nXJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X\r\nbye"

// Debian's filter-rspamd with a running rspamd: spam is refused with rspamd's
// words, an odd mail gets the fields by which it is known, a clean one is not
// marked and gets the fields that rspamd was told to add. Of its own accord rspamd
// adds none, least of all for clients on this host.
func TestDebianRspamd(t *testing.T) {
	program := debianFilter(t, "filter-rspamd")
	if program == "" {
		return
	}
	if _, err := exec.LookPath("rspamd"); err != nil {
		t.Log("rspamd is not installed: not tested")
		return
	}
	dir := t.TempDir()
	ports, err := freePorts(1, t.Cleanup)
	if err != nil {
		t.Fatal(err)
	}
	local := filepath.Join(dir, "local.d")
	if err := os.Mkdir(local, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range rspamdLocal {
		if strings.Contains(text, "%d") {
			text = fmt.Sprintf(text, ports[0])
		}
		if err := os.WriteFile(filepath.Join(local, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	args := []string{"-f", "-c", "/etc/rspamd/rspamd.conf", "--var", "LOCAL_CONFDIR=" + dir,
		"--var", "DBDIR=" + dir, "--var", "RUNDIR=" + dir, "--var", "LOGDIR=" + dir}
	if os.Getuid() == 0 {
		args = append(args, "-i") // in this place it is as good as nobody
	}
	rspamd := exec.Command("rspamd", args...)
	var said strings.Builder
	rspamd.Stdout, rspamd.Stderr = &said, &said
	if err := rspamd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		rspamd.Process.Signal(os.Interrupt) // its workers end with it
		rspamd.Wait()
		if t.Failed() {
			t.Logf("rspamd: %s", said.String())
		}
	}()
	waitPort(t, fmt.Sprintf("127.0.0.1:%d", ports[0]))
	d, addr := filterDaemon(t, dir, debianConf(fmt.Sprintf("%s -url http://127.0.0.1:%d", program, ports[0])))
	const head = "From: a@b.org\r\nTo: x@mx.test\r\nDate: Fri, 20 Nov 2026 23:21:02 +0000\r\nMessage-ID: <1@b.org>\r\n"
	reply, err := mailer(addr, "a@b.org", head+"Subject: spam\r\n\r\n"+gtube)
	if err != nil || !strings.HasPrefix(reply, "550 Gtube pattern") {
		t.Errorf("spam: %q, %v", reply, err)
	}
	reply, err = mailer(addr, "a@b.org", head+"Subject: clean\r\n\r\nx")
	if err != nil || !strings.HasPrefix(reply, "250") {
		t.Fatalf("clean: %q, %v", reply, err)
	}
	if mail := delivered(t, d, dir); !strings.Contains(mail, "\nSubject: clean\n") || strings.Contains(strings.ToLower(mail), "x-spam: yes") ||
		!strings.Contains(mail, "\nAuthentication-Results: ") {
		t.Errorf("clean: got %s", mail)
	}
	reply, err = mailer(addr, "a@b.org", "Subject: odd\r\n\r\nx") // without From, To, Date and Message-ID
	if err != nil || !strings.HasPrefix(reply, "250") {
		t.Fatalf("odd: %q, %v", reply, err)
	}
	if err := d.waitLog(regexp.MustCompile("mda delivery .*result=Ok"), 2); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "Maildir", "new", "*"))
	all := ""
	for _, f := range files {
		b, _ := os.ReadFile(f)
		all += string(b)
	}
	for _, field := range []string{"\nX-Spam: yes\n", "\nX-Spam-Score: ", "\nX-Spam-Status: Yes, score="} {
		if strings.Count(all, field) != 1 {
			t.Errorf("odd: %q is there %d times in\n%s", field, strings.Count(all, field), all)
		}
	}
}

// waitPort waits until a server accepts connections.
func waitPort(t *testing.T, addr string) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(3 * waitLimit); time.Now().Before(end); <-tick.C {
		if conn, err := net.Dial("tcp", addr); err == nil {
			conn.Close()
			return
		}
	}
	t.Fatalf("nobody listens on %s", addr)
}
