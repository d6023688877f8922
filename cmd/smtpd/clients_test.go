package main

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	gosmtp "github.com/emersion/go-smtp"

	"smtpd/internal/auth"
)

// secretOf are the logins of the tests with clients; every one of their
// passwords must stay out of logs and traces. They have capitals: those count.
var secretOf = map[string]string{
	"sha512":   "Sixth-Sesame-512",
	"sha256":   "Fifth-Sesame-256",
	"bcrypt":   "Blowfish-Sesame-2b",
	"yescrypt": "Yes-Sesame-y",
	"scram":    "Salted-Sesame-42",
}

// clientConf has a listener for each way in.
func clientConf(t *testing.T, a *authority) string {
	t.Helper()
	creds := ""
	for user, password := range secretOf {
		if user == "scram" {
			continue
		}
		hash, err := auth.Hash(password, auth.Algorithm(user))
		if err != nil {
			t.Fatal(err)
		}
		creds += fmt.Sprintf("\t%s = %q\n", user, hash)
		if user == "sha256" {
			creds += fmt.Sprintf("\tclient = %q\n", hash) // logs in by its certificate
		}
	}
	return a.pki("mx.test", "alt.test") + "table creds {\n" + creds + "}\n" +
		fmt.Sprintf("table scram { scram = %q }\n", scramEntry(t, secretOf["scram"])) +
		`listen on 127.0.0.1 port 25 tls pki mx.test pki alt.test hostname mx.test
listen on 127.0.0.1 port 587 tls-require pki mx.test pki alt.test ca clients auth <creds> hostname mx.test received-auth
listen on 127.0.0.1 port 465 smtps pki mx.test pki alt.test ca clients auth <creds> hostname mx.test
listen on 127.0.0.1 port 588 tls-require pki mx.test auth <scram> hostname mx.test
table logins { lbl = "sha256:` + secretOf["sha256"] + `" }
action "local" maildir
action "round" relay host "smtp+tls://lbl@mx.test:587" auth <logins> tls no-verify
match from any for local action "local"
match auth from any for domain "round.test" action "local"
match from any for domain "round.test" action "round"
`
}

// scramEntry is what a table keeps of a password for SCRAM-SHA-256.
func scramEntry(t *testing.T, password string) string {
	t.Helper()
	const rounds = 4096
	salt := []byte("sixteen octets..")
	salted, err := pbkdf2.Key(sha256.New, password, salt, rounds, sha256.Size)
	if err != nil {
		t.Fatal(err)
	}
	mac := func(text string) []byte {
		m := hmac.New(sha256.New, salted)
		m.Write([]byte(text))
		return m.Sum(nil)
	}
	stored := sha256.Sum256(mac("Client Key"))
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", rounds, b64(salt), b64(stored[:]), b64(mac("Server Key")))
}

// way is one way to hand in a mail.
type way struct {
	host     string // of the certificate, by SNI
	port     int
	tls      string // "", "starttls" or "implicit"
	mech     string // "" is no AUTH
	user     string
	proto    string // in our trace field
	programs string // that know this way; empty: all
}

var ways = map[string]way{
	"plain":                {"mx.test", 25, "", "", "", "ESMTP", ""},
	"starttls":             {"mx.test", 25, "starttls", "", "", "ESMTPS", ""},
	"starttls, other name": {"alt.test", 25, "starttls", "", "", "ESMTPS", ""},
	"PLAIN sha512":         {"mx.test", 587, "starttls", "PLAIN", "sha512", "ESMTPSA", ""},
	"PLAIN implicit":       {"mx.test", 465, "implicit", "PLAIN", "sha256", "ESMTPSA", ""},
	"LOGIN bcrypt":         {"mx.test", 587, "starttls", "LOGIN", "bcrypt", "ESMTPSA", ""},
	"LOGIN implicit":       {"alt.test", 465, "implicit", "LOGIN", "yescrypt", "ESMTPSA", ""},
	"PLAIN scram entry":    {"mx.test", 588, "starttls", "PLAIN", "scram", "ESMTPSA", ""},
	"LOGIN scram entry":    {"mx.test", 588, "starttls", "LOGIN", "scram", "ESMTPSA", ""},
	"SCRAM-SHA-256":        {"mx.test", 588, "starttls", "SCRAM-SHA-256", "scram", "ESMTPSA", "msmtp"},
	"EXTERNAL":             {"mx.test", 587, "starttls", "EXTERNAL", "client", "ESMTPSA", "msmtp curl s-nail go-smtp"},
	"EXTERNAL implicit":    {"mx.test", 465, "implicit", "EXTERNAL", "client", "ESMTPSA", "msmtp curl s-nail go-smtp"},
}

// TestRootClients hands mail in with other people's programs, in every way that
// each of them knows. Certificates are verified by the clients that can.
func TestRootClients(t *testing.T) {
	if !asRoot(t) {
		return
	}
	hosts, err := os.OpenFile("/etc/hosts", os.O_APPEND|os.O_WRONLY, 0) // of this name space
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(hosts, "127.0.0.1 alt.test")
	hosts.Close()
	a := newAuthority(t)
	a.issue(t, "mx.test", true, false)
	a.issue(t, "alt.test", true, true)
	a.issue(t, "client", false, false)
	d := startRoot(t, clientConf(t, a), "-v", "-T", "all")

	clients := map[string]func(a *authority, w way, m letter) error{
		"swaks": swaks, "msmtp": msmtp, "s-nail": snail, "python3": python, "curl": curl, "go-smtp": goClient,
	}
	sent := map[string]string{} // token -> trace word
	for program, send := range clients {
		if _, err := exec.LookPath(program); err != nil && program != "go-smtp" {
			t.Logf("%s is not installed: not run", program)
			continue
		}
		for name, w := range ways {
			if w.programs != "" && !strings.Contains(" "+w.programs+" ", " "+program+" ") {
				continue
			}
			m := newLetter("alice@localhost", 2000)
			if err := send(a, w, m); err != nil {
				t.Errorf("%s: %s: %v\n%s", program, name, err, tail([]byte(d.log()), 12))
				continue
			}
			sent[m.token] = w.proto
		}
	}
	round := newLetter("alice@round.test", 2000) // our own client logs in as well
	if err := swaks(a, ways["plain"], round); err != nil {
		t.Error(err)
	}
	sent[round.token] = "ESMTPSA"
	n := smtpSource(t)
	waitEmpty(t, d, time.Minute)
	checkArrived(t, sent, n)
	for mech, least := range map[string]int{"PLAIN": 10, "LOGIN": 8, "SCRAM-SHA-256": 1, "EXTERNAL": 4} {
		if got := strings.Count(d.log(), `client="AUTH `+mech); got < least {
			t.Errorf("AUTH %s was seen %d times, want %d at least", mech, got, least)
		}
	}
	checkSecrets(t, d.log())
	if err := d.stop(); err != nil {
		t.Error(err)
	}
}

var traceWord = regexp.MustCompile(`with (\S+) id `)

// checkArrived looks for each mail in alice's Maildir, and for n more.
func checkArrived(t *testing.T, sent map[string]string, n int) {
	t.Helper()
	files, err := filepath.Glob("/home/alice/Maildir/new/*")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	others := 0
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		_, token, ok := strings.Cut(string(b), "X-Token: ")
		if !ok {
			others++
			continue
		}
		token, _, _ = strings.Cut(token, "\n")
		word := traceWord.FindStringSubmatch(string(b))
		want := sent[token]
		if len(word) == 2 && word[1] == strings.TrimPrefix(want, "E") {
			word[1] = want // s-nail says HELO when it need not log in
		}
		if len(word) != 2 || word[1] != want || found[token] {
			t.Errorf("want %s once, got:\n%.500s", want, b)
		}
		found[token] = true
	}
	t.Logf("%d mails arrived, and %d of smtp-source", len(found), others)
	if len(found) != len(sent) || others != n {
		t.Errorf("%d of %d mails arrived, and %d of %d", len(found), len(sent), others, n)
	}
}

// checkSecrets looks for the passwords in a log or trace, in the clear and as
// AUTH carries them.
func checkSecrets(t *testing.T, text string) {
	t.Helper()
	for user, password := range secretOf {
		for _, form := range []string{password, strings.ToLower(password), base64.StdEncoding.EncodeToString([]byte(password)),
			base64.StdEncoding.EncodeToString([]byte("\x00" + user + "\x00" + password))} {
			if i := strings.Index(text, form); i >= 0 {
				t.Errorf("a secret of %s was written down: %q", user, text[max(0, i-80):min(len(text), i+80)])
			}
		}
	}
}

func runClient(stdin, program string, args ...string) error {
	cmd := exec.Command(program, args...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = append(os.Environ(), "HOME=/nonexistent")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, tail(out, 12))
	}
	return nil
}

func swaks(a *authority, w way, m letter) error {
	args := []string{"--server", w.host, "--port", strconv.Itoa(w.port), "--from", "sender@example.org", "--to", m.to,
		"--data", "-", "--no-data-fixup", "--silent", "2"}
	switch w.tls {
	case "starttls":
		args = append(args, "--tls", "--tls-verify", "--tls-ca-path", a.path("ca.crt"), "--tls-sni", w.host)
	case "implicit":
		args = append(args, "--tls-on-connect", "--tls-verify", "--tls-ca-path", a.path("ca.crt"), "--tls-sni", w.host)
	}
	if w.mech != "" {
		args = append(args, "--auth", w.mech, "--auth-user", w.user, "--auth-password", secretOf[w.user])
	}
	return runClient(strings.ReplaceAll(m.text, "\r\n.", "\r\n..")+".\r\n", "swaks", args...)
}

func msmtp(a *authority, w way, m letter) error {
	args := []string{"--file=/dev/null", "--host=" + w.host, "--port=" + strconv.Itoa(w.port), "--from=sender@example.org"}
	if w.tls != "" {
		args = append(args, "--tls=on", "--tls-trust-file="+a.path("ca.crt"))
		args = append(args, "--tls-starttls="+map[bool]string{true: "on", false: "off"}[w.tls == "starttls"])
	}
	switch w.mech {
	case "":
	case "EXTERNAL":
		args = append(args, "--auth=external", "--user="+w.user, "--tls-cert-file="+a.path("client.crt"), "--tls-key-file="+a.path("client.key"))
	default:
		args = append(args, "--auth="+strings.ToLower(w.mech), "--user="+w.user, "--passwordeval=echo "+secretOf[w.user])
	}
	return runClient(strings.ReplaceAll(m.text, "\r\n", "\n"), "msmtp", append(args, "--", "alice@localhost")...)
}

// snail writes the mail itself; the token goes into a field.
func snail(a *authority, w way, m letter) error {
	url := "smtp://"
	if w.tls == "implicit" {
		url = "smtps://"
	}
	args := []string{"-n", "-S", "v15-compat", "-S", "tls-verify=strict", "-S", "tls-ca-file=" + a.path("ca.crt"), "-S", "tls-ca-no-defaults",
		"-S", "from=sender@example.org", "-S", "hostname=client.test", "-S", "sendwait", "-S", "ttycharset=utf-8", "-C", "X-Token: " + m.token, "-s", "test"}
	if w.tls == "starttls" {
		args = append(args, "-S", "smtp-use-starttls")
	}
	switch w.mech {
	case "":
		args = append(args, "-S", "smtp-auth=none")
	case "EXTERNAL":
		args = append(args, "-S", "smtp-auth=external", "-S", "tls-config-pairs=Certificate="+a.path("client.crt")+",PrivateKey="+a.path("client.key"))
		url += w.user + "@"
	default:
		args = append(args, "-S", "smtp-auth="+strings.ToLower(w.mech))
		url += w.user + ":" + secretOf[w.user] + "@"
	}
	args = append(args, "-S", "mta="+url+w.host+":"+strconv.Itoa(w.port), "alice@localhost")
	return runClient("hello\n.dot\n\n8-bit \xc3\xa9\n", "s-nail", args...)
}

const pythonScript = `import smtplib, ssl, sys
host, port, tls, mech, user, password, ca = sys.argv[1:]
ctx = ssl.create_default_context(cafile=ca)
s = smtplib.SMTP_SSL(host, int(port), context=ctx) if tls == 'implicit' else smtplib.SMTP(host, int(port))
s.ehlo('client.test')
if tls == 'starttls':
    s.starttls(context=ctx)
    s.ehlo('client.test')
if mech:
    s.user, s.password = user, password
    s.auth(mech, getattr(s, 'auth_' + mech.lower()), initial_response_ok=mech == 'PLAIN')
s.sendmail('sender@example.org', ['alice@localhost'], sys.stdin.buffer.read(), mail_options=['BODY=8BITMIME'])
s.quit()
`

func python(a *authority, w way, m letter) error {
	return runClient(m.text, "python3", "-c", pythonScript, w.host, strconv.Itoa(w.port), w.tls, w.mech, w.user, secretOf[w.user], a.path("ca.crt"))
}

func curl(a *authority, w way, m letter) error {
	url := "smtp://"
	if w.tls == "implicit" {
		url = "smtps://"
	}
	args := []string{"--silent", "--show-error", "--cacert", a.path("ca.crt"), "--mail-from", "sender@example.org", "--mail-rcpt", "alice@localhost",
		"--upload-file", "-"}
	if w.tls == "starttls" {
		args = append(args, "--ssl-reqd")
	}
	switch w.mech {
	case "":
	case "EXTERNAL":
		args = append(args, "--user", w.user+":", "--login-options", "AUTH=EXTERNAL", "--cert", a.path("client.crt"), "--key", a.path("client.key"))
	default:
		args = append(args, "--user", w.user+":"+secretOf[w.user], "--login-options", "AUTH="+w.mech)
	}
	return runClient(m.text, "curl", append(args, url+w.host+":"+strconv.Itoa(w.port)+"/client.test")...)
}

func goClient(a *authority, w way, m letter) error {
	addr := w.host + ":" + strconv.Itoa(w.port)
	conf := &tls.Config{RootCAs: a.pool, ServerName: w.host, Rand: rand.Reader}
	if w.mech == "EXTERNAL" {
		pair, err := tls.LoadX509KeyPair(a.path("client.crt"), a.path("client.key"))
		if err != nil {
			return err
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	var c *gosmtp.Client
	var err error
	switch w.tls {
	case "starttls":
		c, err = gosmtp.DialStartTLS(addr, conf)
	case "implicit":
		c, err = gosmtp.DialTLS(addr, conf)
	default:
		c, err = gosmtp.Dial(addr)
	}
	if err != nil {
		return err
	}
	defer c.Close()
	mechs := map[string]sasl.Client{
		"PLAIN": sasl.NewPlainClient("", w.user, secretOf[w.user]), "LOGIN": sasl.NewLoginClient(w.user, secretOf[w.user]),
		"EXTERNAL": sasl.NewExternalClient(""),
	}
	if w.mech != "" {
		if err := c.Auth(mechs[w.mech]); err != nil {
			return err
		}
	}
	if err := c.SendMail("sender@example.org", []string{"alice@localhost"}, strings.NewReader(m.text)); err != nil {
		return err
	}
	return c.Quit()
}

// smtpSource floods the server with Postfix's generator, and gives the number
// of its mails.
func smtpSource(t *testing.T) int {
	t.Helper()
	program, err := exec.LookPath("smtp-source")
	lib := ""
	if err != nil {
		if program, lib = "/opt/peers/postfix/usr/sbin/smtp-source", "/opt/peers/postfix/usr/lib/postfix"; exec.Command("test", "-x", program).Run() != nil {
			t.Log("smtp-source of Postfix is not installed: not run")
			return 0
		}
	}
	const mails = 200
	for _, extra := range [][]string{{}, {"-d"}} { // -d: many mails in one session
		args := append(extra, "-s", "10", "-m", strconv.Itoa(mails), "-l", "4096", "-M", "client.test",
			"-f", "sender@example.org", "-t", "alice@localhost", "127.0.0.1:25")
		cmd := exec.Command(program, args...)
		cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+lib)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("smtp-source: %v\n%s", err, out)
		}
	}
	return 2 * mails
}
