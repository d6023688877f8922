package bounce

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"smtpd/internal/mail"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const original = "Received: from client.test (localhost [127.0.0.1])\r\n" +
	"\tby mx.example.org (OpenSMTPD) with ESMTP id a17ee6f0\r\n" +
	"\tfor <pipe@example.org>;\r\n" +
	"\tFri, 20 Nov 2026 23:23:13 +0000 (UTC)\r\n" +
	"Subject: pipe\r\n\r\nthe body\r\n"

// notice is one with everything usual, of one recipient.
func notice(kind mail.NoticeKind, e mail.Envelope) *Notice {
	if e.Dest == (mail.Address{}) {
		e.Dest = mail.Address{User: "pipe", Domain: "example.org"}
	}
	return &Notice{Kind: kind, Server: "mx.example.org", To: mail.Address{User: "alice", Domain: "mx.example.org"},
		Date: time.Date(2026, 11, 20, 23, 23, 14, 0, time.UTC), ID: 16237403807674231174,
		Recipients: []mail.Envelope{e}, Arrival: time.Date(2026, 11, 20, 23, 23, 13, 0, time.UTC),
		Delay: time.Minute, TTL: 4 * 24 * time.Hour,
		Original: strings.NewReader(original), Size: int64(len(original)), Max: 256 << 10}
}

func local(enh [3]uint8, line string) mail.Envelope {
	return mail.Envelope{LastStatus: *mail.NewStatus(int(enh[0])*100+50, enh, line), LastError: line}
}

func remote(line, host string, dsn mail.DSN) mail.Envelope {
	st, _ := mail.ParseStatus(line)
	return mail.Envelope{LastStatus: *st, LastError: line, RemoteMTA: host, DSN: dsn,
		LastTry: time.Date(2026, 11, 20, 23, 23, 14, 0, time.UTC)}
}

func notices() map[string]*Notice {
	asked := mail.DSN{Notify: mail.NotifySuccess | mail.NotifyFailure, Ret: mail.RetFull, EnvID: "QQ+2B314159",
		ORcpt: "rfc822;bob+40example.org"}
	m := map[string]*Notice{
		"failed-mda": notice(mail.NoticeFailed, local([3]uint8{5, 3, 0},
			`"/bin/sh: 1: cannot create /etc/test/home/pipe.out: Permission denied"`)),
		"failed-mta": notice(mail.NoticeFailed, remote("550 5.1.1 no such user", "mx1.remote.test", asked)),
		"expired-local": notice(mail.NoticeFailed, mail.Envelope{LastError: "Envelope expired", LastStatus: *mail.NewStatus(451, [3]uint8{4, 4, 1},
			"Network error on destination MXs: mx1.remote.test (192.0.2.1): IO Error: Connection refused")}),
		"never-tried": notice(mail.NoticeFailed, mail.Envelope{LastError: "Envelope expired"}),
		"expired":     notice(mail.NoticeFailed, remote("451 4.7.1 greylisted", "mx1.remote.test", mail.DSN{})),
		"delayed":     notice(mail.NoticeDelayed, local([3]uint8{4, 0, 0}, "No MX found for domain")),
		"delivered":   notice(mail.NoticeDelivered, mail.Envelope{DSN: asked, LastStatus: mail.Status{Code: 250, Enh: [3]uint8{2, 0, 0}}}),
		"relayed":     notice(mail.NoticeRelayed, remote("250 2.6.0 queued as 1", "mx1.remote.test", mail.DSN{})),
		"utf8":        notice(mail.NoticeFailed, remote("550 5.1.1 unbekannt: jürgen", "mx1.remote.test", mail.DSN{})),
		"long":        notice(mail.NoticeFailed, local([3]uint8{5, 3, 0}, strings.Repeat("long words ", 300))),
		"eight-bit":   notice(mail.NoticeFailed, local([3]uint8{5, 3, 0}, "größer")),
		"two-of-them": notice(mail.NoticeFailed, local([3]uint8{5, 0, 0}, "Domain does not exist")),
	}
	asked.ORcpt = `utf-8;j\x{FC}rgen@m\x{FC}nchen.test`
	for name, dsn := range map[string]mail.DSN{"full": {Ret: mail.RetFull}, "utf8-full": asked} {
		n := notice(mail.NoticeFailed, remote("550 5.1.1 no", "mx1.remote.test", dsn))
		text := "Subject: gr\u00f6\u00dfer\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\r\n" +
			strings.Repeat("a line without end \u00e9 ", 200) + "\x00\r\r\n--x\r\nContent-Type: message/rfc822\r\n\r\nSubject: inner\r\n\r\n.\r\n--x--\r\n"
		n.Original, n.Size = strings.NewReader(text), int64(len(text))
		m[name] = n
	}
	m["utf8-full"].Recipients[0].Flags = mail.FlagUTF8
	m["expired"].Recipients[0].LastError = "Envelope expired"
	m["utf8"].Recipients[0].Dest = mail.Address{User: "jürgen", Domain: "münchen.test"}
	m["eight-bit"].Original = strings.NewReader("Subject: gr\xf6\xdfer\n\nx\n")
	m["two-of-them"].Recipients = append(m["two-of-them"].Recipients,
		notice(mail.NoticeFailed, remote("553 sorry", "[192.0.2.1]", mail.DSN{})).Recipients...)
	return m
}

// A message that asked for REQUIRETLS comes back as its header only, whatever
// else was asked.
func TestRequireTLSHeaderOnly(t *testing.T) {
	for _, flags := range []mail.Flags{0, mail.FlagRequireTLS} {
		n := notices()["failed-mta"]
		n.Recipients[0].Flags = flags
		text, _, _ := n.Compose()
		if whole := strings.Contains(string(text), "Content-Type: message/rfc822"); whole != (flags == 0) {
			t.Errorf("flags %d: the whole message is in it: %v", flags, whole)
		}
	}
}

func TestGolden(t *testing.T) {
	for name, n := range notices() {
		t.Run(name, func(t *testing.T) {
			got, used, utf8 := n.Compose()
			if used != len(n.Recipients) || utf8 != strings.HasPrefix(name, "utf8") {
				t.Errorf("used %d, utf8 %v", used, utf8)
			}
			file := filepath.Join("testdata", name+".want")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// TestPython has another program read the notices.
func TestPython(t *testing.T) {
	python, err := exec.LookPath("python3")
	switch {
	case err != nil && os.Geteuid() == 0: // testdata/setup.sh installs it then
		t.Fatal(err)
	case err != nil:
		t.Skip("no python3: notices are not read by another program")
	}
	for name, n := range notices() {
		t.Run(name, func(t *testing.T) {
			data, _, _ := n.Compose()
			cmd := exec.CommandContext(t.Context(), python, "-c", reader, words[n.Kind].action)
			cmd.Stdin = bytes.NewReader(data)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s\n%s", err, out, data)
			}
		})
	}
}

// reader checks the structure of RFC 6522 and the fields of RFC 3464.
const reader = `
import sys, email, email.policy, re
data = sys.stdin.buffer.read()
m = email.message_from_bytes(data, policy=email.policy.SMTPUTF8)
def must(ok, what):
    if not ok: sys.exit(what)
must(not m.defects, m.defects)
must(m.get_content_type() == "multipart/report", m.get_content_type())
must(m.get_param("report-type").endswith("delivery-status"), "report-type")
must(m["Auto-Submitted"] == "auto-replied" and m["From"] and m["To"] and m["Date"].datetime and m["Message-ID"], "header")
parts = m.get_payload()
must(len(parts) == 3, len(parts))
for p in parts: must(not p.defects, p.defects)
text, status, original = parts
must(text.get_content_type() == "text/plain" and "MAILER-DAEMON" in text.get_content(), "text")
kind = status.get_content_type()
if kind == "message/delivery-status":
    groups = status.get_payload()
else:
    must(kind == "message/global-delivery-status", kind)
    body = data.split(b"Content-Type: message/global-delivery-status\n")[1].split(b"\n\n--")[0].split(b"\n\n", 1)[1]
    groups = [email.message_from_bytes(g, policy=email.policy.SMTPUTF8) for g in re.split(rb"\n\n", body)]
must(len(groups) >= 2 and groups[0]["Reporting-MTA"].startswith("dns;"), "per-message fields")
for g in groups[1:]:
    must(re.match(r"(rfc822|utf-8);", g["Final-Recipient"]), g.items())
    must(g["Action"] == sys.argv[1], g["Action"])
    must(re.match(r"^[245]\.\d{1,3}\.\d{1,3}$", g["Status"]), g["Status"])
    must(g["Status"][0] == {"failed": "5", "delayed": "4"}.get(g["Action"], "2"), g["Status"])
must(original.get_content_type() in ("text/rfc822-headers", "message/rfc822", "message/global-headers", "message/global"), "original")
`

func TestFits(t *testing.T) {
	n := notice(mail.NoticeFailed, local([3]uint8{5, 0, 0}, strings.Repeat("x", 2000)))
	for range 999 {
		n.Recipients = append(n.Recipients, n.Recipients[0])
	}
	n.Original = strings.NewReader(strings.Repeat("X-Header: "+strings.Repeat("y", 3000)+"\n", 500))
	n.Size, n.Max = 500*3012, MinSize
	data, used, _ := n.Compose()
	if used < 1 || used >= 1000 || len(data) > MinSize {
		t.Errorf("used %d, %d octets", used, len(data))
	}
}

func TestDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0 seconds", time.Second: "1 second", 20 * time.Second: "20 seconds", time.Minute: "1 minute",
		90 * time.Second: "1 minute", 4 * time.Hour: "4 hours", 24 * time.Hour: "1 day", 7 * 24 * time.Hour: "7 days",
	} {
		if got := duration(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}

func TestXtext(t *testing.T) {
	for in, want := range map[string]string{"": "", "a+2Bb": "a+b", "a+40b.c": "a@b.c", "a+0Ab": "a+0Ab", "a+": "a+", "a+zz": "a+zz"} {
		if got := unxtext(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func FuzzCompose(f *testing.F) {
	f.Add(original, "550 5.1.1 no", "bob", "example.org", "rfc822;a+40b", uint8(1), uint64(7))
	f.Add("X: "+strings.Repeat("\xff", 5000)+"\r\r\n\x00", "451 x\ny", "ü", "\r\n", "x", uint8(2), uint64(1)<<63)
	f.Fuzz(func(t *testing.T, orig, line, user, domain, orcpt string, kind uint8, id uint64) {
		e := local([3]uint8{5, 1, 1}, line)
		e.Dest = mail.Address{User: user, Domain: domain}
		e.DSN = mail.DSN{Ret: mail.Ret(kind % 3), ORcpt: orcpt, EnvID: line}
		e.RemoteMTA, e.LastStatus.Text = domain, line
		n := notice(mail.NoticeKind(kind%4+1), e)
		n.To, n.ID, n.Original, n.Size, n.Max = e.Dest, id, strings.NewReader(orig), int64(len(orig)), MinSize
		data, used, _ := n.Compose()
		if used != 1 || len(data) > MinSize {
			t.Fatalf("used %d, %d octets", used, len(data))
		}
		if bytes.ContainsAny(data, "\r\x00") {
			t.Fatal("a CR or NUL")
		}
		for line := range bytes.Lines(data) {
			if len(line) > MaxLine+1 {
				t.Fatalf("a line of %d octets", len(line))
			}
		}
		_, after, ok := bytes.Cut(data, []byte("boundary=\""))
		if !ok {
			t.Fatal("no boundary")
		}
		boundary, _, _ := bytes.Cut(after, []byte("\""))
		if got := bytes.Count(data, append([]byte("\n--"), boundary...)); got != 4 {
			t.Fatalf("%d boundaries in\n%s", got, data)
		}
	})
}
