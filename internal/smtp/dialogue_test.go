package smtp

import (
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"smtpd/internal/config"
)

// dialogue is one case of a dialogue file.
type dialogue struct {
	name  string
	lines []string
}

func readDialogues(t *testing.T, file string) []dialogue {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var all []dialogue
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSuffix(line, "\n")
		if name, ok := strings.CutPrefix(line, "### "); ok {
			all = append(all, dialogue{name: name})
			continue
		}
		if line == "" || line[0] == '#' || len(all) == 0 {
			continue
		}
		d := &all[len(all)-1]
		d.lines = append(d.lines, line)
	}
	return all
}

// configure applies one word of an "@" line before the session begins, or to
// the backend at any time.
func (u *setup) configure(t *testing.T, word string) {
	t.Helper()
	key, value, _ := strings.Cut(word, "=")
	n, _ := strconv.Atoi(value)
	switch key {
	case "tls":
		u.withTLS(t, config.TLSOffered)
	case "tls-require":
		u.withTLS(t, config.TLSRequired)
	case "smtps":
		u.withTLS(t, config.TLSImplicit)
	case "auth":
		u.l.Auth = true
	case "auth-required":
		u.l.Auth, u.l.AuthRequired = true, true
	case "senders":
		u.l.Senders, u.b.sender = "t", value
	case "masquerade":
		u.l.Masquerade = true
	case "mask-src":
		u.l.MaskSource = true
	case "received-auth":
		u.l.ReceivedAuth = true
	case "no-dsn":
		u.l.DSN = false
	case "without":
		u.l.Without = strings.Split(value, ",")
	case "hostname":
		u.l.Hostname = value
	case "local":
		u.client = netip.AddrPort{}
	case "client":
		u.client = netip.MustParseAddrPort(value)
	case "port":
		u.l.Addr = netip.AddrPortFrom(netip.MustParseAddr("192.0.2.9"), uint16(n))
	case "repair":
		u.l.Repair = true
	case "hostnames":
		u.l.Hostnames, u.b.hostname = "t", value
	case "max-line":
		u.c.SMTP.MaxLine = n
	case "max-size":
		u.c.SMTP.MaxMessageSize = int64(n)
	case "max-rcpt":
		u.c.SMTP.MaxRcpt = n
	case "max-mails":
		u.c.SMTP.MaxMails = n
	case "max-errors":
		u.c.SMTP.MaxErrors = n
	case "max-commands":
		u.c.SMTP.MaxCommands = n
	case "down":
		u.b.mu.Lock()
		u.b.down = true
		u.b.mu.Unlock()
	case "deaf":
		u.b.deaf = true
	case "banner", "helo", "mail", "rcpt": // how far the session is before the dialogue
	default:
		t.Fatalf("unknown word %q", word)
	}
}

// begin brings a session to where a word of the "@" line says.
func (c *client) begin(words []string) {
	c.t.Helper()
	for _, w := range words {
		steps := map[string][]string{
			"banner": {}, "helo": {"HELO c"}, "mail": {"HELO c", "MAIL FROM:<a@b.org>"},
			"rcpt": {"HELO c", "MAIL FROM:<a@b.org>", "RCPT TO:<alice@md.test>"},
		}[w]
		if steps != nil {
			c.reply()
			c.must(steps...)
		}
	}
}

var anID = regexp.MustCompile(`^250 2\.0\.0 [0-9a-f]{8} Message`)

func normal(reply string) string { return anID.ReplaceAllString(reply, "250 2.0.0 IDID Message") }

// expect compares one line of the table with what the server says. "..." is
// the rest of the present reply.
func (c *client) expect(want string) {
	c.t.Helper()
	got, err := c.r.ReadString('\n')
	got = normal(strings.TrimSuffix(got, "\r\n"))
	if want == "..." {
		for err == nil && len(got) > 3 && got[3] == '-' {
			got, err = c.r.ReadString('\n')
		}
		return
	}
	if got != want || err != nil {
		c.t.Fatalf("got  %q, %v\nwant %q", got, err, want)
	}
}

func TestDialogue(t *testing.T) {
	for _, d := range readDialogues(t, "testdata/dialogue.txt") {
		t.Run(d.name, func(t *testing.T) {
			u := newSetup()
			var words []string
			if rest, ok := strings.CutPrefix(d.lines[0], "@ "); ok {
				words = strings.Fields(rest)
				d.lines = d.lines[1:]
			}
			for _, w := range words {
				u.configure(t, w)
			}
			c := u.dial(t)
			c.begin(words)
			for _, line := range d.lines {
				u.play(t, c, line)
			}
		})
	}
}

func (u *setup) play(t *testing.T, c *client, line string) {
	t.Helper()
	if text, ok := strings.CutPrefix(line, "C: "); ok {
		c.send(text + "\r\n")
		return
	}
	if text, ok := strings.CutPrefix(line, "C(raw): "); ok {
		s, err := strconv.Unquote(text)
		if err != nil {
			t.Fatal(err)
		}
		c.send(s)
		return
	}
	if text, ok := strings.CutPrefix(line, "S: "); ok {
		c.expect(text)
		return
	}
	if text, ok := strings.CutPrefix(line, "@ "); ok {
		u.configure(t, text)
		return
	}
	switch line {
	case "-- TLS":
		c.startTLS()
	case "-- closed":
		if got := c.reply(); got != "" {
			t.Fatalf("got %q; want the end", got)
		}
	default:
		t.Fatalf("unknown line %q", line)
	}
}
