package main

import (
	"crypto/tls"
	"net"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// manualWorld adds what the examples of the manual name and the seeds do not; $1
// is the folder that is /etc/mail.
const manualWorld = `set -e
n=64400
for u in vmail _rspamd; do
	n=$((n + 1))
	grep -q "^$u:" /etc/passwd || echo "$u:x:$n:$n::/var/empty:/bin/sh" >>/etc/passwd
	grep -q "^$u:" /etc/group || echo "$u:x:$n:" >>/etc/group
done
touch /etc/aliases
mount --bind "$1/aliases" /etc/aliases
for k in crt key; do cp -p "$1/certs/example.org.$k" "$1/certs/mx.example.org.$k"; done
ip link add eth0 type dummy 2>/dev/null || ip link add eth0 type veth peer name eth0p
ip link set eth0 up
ip addr add 192.0.2.7/24 dev eth0
ip addr add 2001:db8::7/64 dev eth0 nodad
mkdir -p /usr/local/libexec
mount -t tmpfs tmpfs /usr/local/libexec
mkdir /usr/local/libexec/smtpd
cat >/usr/local/libexec/smtpd/filter-rspamd <<'END'
#!/bin/sh
echo "register|report|smtp-in|link-connect"
echo "register|ready"
while read -r line; do :; done
END
chmod 755 /usr/local/libexec/smtpd/filter-rspamd
`

// manualFiles are the tables of the examples that the corpus does not have.
var manualFiles = map[string]string{
	"vips":    "alice@example.org\n",
	"domains": "example.org\nexample.net\n",
	"passwd":  "alice@example.org:$2b$10$hIJ4QfMcp.90nJwKqGbKM.MybArjHOTpEtoTV.DgLYAiThuoYmTSe:64203:64203::/home/alice:/bin/sh\n",
}

var (
	displayRE   = regexp.MustCompile(`(?s)\n\.Bd -literal[^\n]*\n(.*?)\n\.Ed`)
	indentedRE  = regexp.MustCompile(`(?m)^    .*\n(?:\n*    .*\n)*`)
	statementRE = regexp.MustCompile(`(?m)^(?:listen on|table \w+ |action "|match |accept |filter ")`)
	listeningRE = regexp.MustCompile(`(?m)^listen (\S+:\d+)(.*)$`)
)

// manualExamples are the configurations that the manual and the README show, and
// parts of such made whole; the programs of smtpd-filters(7) run in
// TestFilterExamples.
func manualExamples(t *testing.T) (list []string) {
	t.Helper()
	for _, page := range []string{"parser/smtpd.conf.5", "table/table.5", "README.md"} {
		b, err := os.ReadFile(filepath.Join("..", "..", page))
		if err != nil {
			t.Fatal(err)
		}
		var blocks []string
		for _, m := range displayRE.FindAllStringSubmatch(string(b), -1) {
			blocks = append(blocks, strings.NewReplacer(`\e`, `\`, `\&`, "").Replace(m[1])+"\n")
		}
		for _, block := range indentedRE.FindAllString(string(b), -1) {
			blocks = append(blocks, strings.ReplaceAll(block, "\n    ", "\n")[4:])
		}
		for _, text := range blocks {
			if statementRE.MatchString(text) {
				list = append(list, completed(text))
			}
		}
	}
	return list
}

// completed adds what the daemon cannot do without, or what the example is told
// by the text around it.
func completed(text string) string {
	if strings.Contains(text, "pki mx.example.org") && !strings.Contains(text, " cert ") {
		text = "pki mx.example.org cert \"/etc/mail/certs/mx.example.org.crt\"\n" +
			"pki mx.example.org key \"/etc/mail/certs/mx.example.org.key\"\n" + text
	}
	if !strings.Contains(text, "listen on ") {
		text = "listen on 127.0.0.1 port 2526\n" + text
	}
	if !strings.Contains(text, "\nmatch ") && !strings.Contains(text, "\naccept ") {
		text += "action \"rest\" maildir\nmatch from any for domain rest.example action \"rest\"\n"
	}
	return text
}

// TestRootManual starts the daemon with each configuration that the manual pages
// and the README show, is greeted on every address that it says to listen on, and
// ends it.
func TestRootManual(t *testing.T) {
	if !asRoot(t) {
		return
	}
	w, a := newConfWorld(t), newAuthority(t)
	for name, text := range manualFiles {
		w.write(t, name, text)
	}
	for _, step := range [][]string{{seedsWorld, "sh", w.dir, a.path("ca.crt")}, {manualWorld, "sh", w.dir}} {
		if out, err := exec.Command("sh", append([]string{"-c"}, step...)...).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	list := manualExamples(t)
	if len(list) < 15 {
		t.Errorf("%d examples", len(list))
	}
	for _, text := range list {
		first, _, _ := strings.Cut(text, "\n")
		t.Run(first, func(t *testing.T) {
			d := startRoot(t, text)
			defer func() {
				if t.Failed() {
					t.Logf("configuration:\n%s\nlog:\n%s", text, d.log())
				}
			}()
			out, err := exec.Command(filepath.Join(bins, "smtpd"), "-n", "-v", "-f", filepath.Join(d.dir, "smtpd.conf")).CombinedOutput()
			listeners := listeningRE.FindAllStringSubmatch(string(out), -1)
			if err != nil || len(listeners) == 0 {
				t.Fatalf("%v\n%s", err, out)
			}
			for _, m := range listeners {
				if got, err := greetingOf(m[1], m[2]); err != nil || !greetedRE.MatchString(got) {
					t.Errorf("%s: %q, %v", m[0], got, err)
				}
			}
			if err := d.stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// greetedRE is the greeting, or the answer of the example that wants clients to
// have a name.
var greetedRE = regexp.MustCompile(`^(220 \S+ ESMTP|550 no reverse name)`)

// greetingOf is the first line that the listener with these words says.
func greetingOf(addr, words string) (string, error) {
	addr = strings.NewReplacer("0.0.0.0:", "127.0.0.1:", "[::]:", "[::1]:").Replace(addr)
	var dialer net.Dialer
	proxied := strings.Contains(words, "proxy-v2")
	if proxied {
		from := "192.0.2.7"
		if strings.HasPrefix(addr, "[") {
			from = "2001:db8::7"
		}
		dialer.LocalAddr, addr = &net.TCPAddr{IP: net.ParseIP(from)}, net.JoinHostPort(from, addr[strings.LastIndex(addr, ":")+1:])
	}
	conn, err := dialer.Dial("tcp", addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(waitLimit)); err != nil {
		return "", err
	}
	if strings.Contains(words, "smtps") {
		conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
	}
	if proxied { // the proxy itself asks
		if _, err := conn.Write([]byte("\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00")); err != nil {
			return "", err
		}
	}
	return textproto.NewConn(conn).ReadLine()
}
