package expand

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"smtpd/internal/config"
	"smtpd/internal/mail"
)

func TestParseQuery(t *testing.T) {
	c := config.Defaults()
	c.ServerName = "mx.example.org"
	c.Listeners = []*config.Listener{{Name: "lo", Tag: "LO", Addr: netip.MustParseAddrPort("127.0.0.1:25")}}
	q, err := ParseQuery(c, strings.Fields("client=192.0.2.7 rdns=h.test helo=x from=<a@b.org> rcpt=c@d.org auth=alice tag=T tls"))
	if err != nil {
		t.Fatal(err)
	}
	e := q.Envelope
	if e.Client != "192.0.2.7" || e.Host != "h.test" || e.Helo != "x" || e.Sender.String() != "a@b.org" || e.Rcpt.String() != "c@d.org" ||
		e.Username != "alice" || e.Tag != "T" || !q.TLS || q.Local || e.Flags&mail.FlagAuthenticated == 0 {
		t.Errorf("got %+v", q)
	}
	tests := map[string]struct{ words, client, host, tag string }{
		"socket":           {"rcpt=root", "local", "mx.example.org", ""},
		"loopback":         {"client=127.0.0.1 rcpt=root", "127.0.0.1", "localhost", ""},
		"v6":               {"client=2001:db8::1 rcpt=root", "[2001:db8::1]", "<unknown>", ""},
		"listener":         {"client=192.0.2.1 listener=lo rcpt=root", "192.0.2.1", "<unknown>", "LO"},
		"listener address": {"listener=127.0.0.1:25 client=192.0.2.1 rcpt=root", "192.0.2.1", "<unknown>", "LO"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			q, err := ParseQuery(c, strings.Fields(tt.words))
			if err != nil {
				t.Fatal(err)
			}
			if q.Envelope.Client != tt.client || q.Envelope.Host != tt.host || q.Envelope.Tag != tt.tag ||
				q.Envelope.Rcpt.String() != "root@mx.example.org" || q.Local != (tt.client == "local") {
				t.Errorf("got %+v", q)
			}
		})
	}
	for _, words := range []string{"", "client=1.2.3.4", "rcpt=a@b client=x", "rcpt=a@b frobnicate=1", "rcpt", "rcpt=a@b listener=eth9"} {
		if _, err := ParseQuery(c, strings.Fields(words)); err == nil {
			t.Errorf("%q: is taken", words)
		}
	}
}

func TestExplain(t *testing.T) {
	x, h := world(map[string]string{"all": "alice, |/bin/x, /var/f, x@remote.test"})
	x.Config.Actions["example.org"].Method = config.MethodMaildir
	x.Config.Actions["example.org"].Path = "~/Mail"
	h.forwards["alice"] = Forward{Present: true}
	q, err := ParseQuery(x.Config, strings.Fields("client=192.0.2.7 from=a@b.org rcpt=all@example.org"))
	if err != nil {
		t.Fatal(err)
	}
	ex := x.Explain(t.Context(), q)
	text := ex.String()
	for _, want := range []string{
		"accepted: 250 2.1.5 Destination address valid: Recipient ok (decided by c:5)\n",
		"  mda <all@example.org> action \"example.org\": maildir ~/Mail as alice\n",
		"  mda <all@example.org> action \"example.org\": command /bin/x as _smtpd\n",
		"  mda <all@example.org> action \"example.org\": file /var/f as _smtpd\n",
		"  mta <x@remote.test> action \"out\": relay to the mail exchangers of remote.test\n",
		"log: info: forward file is empty\n", "log: commands executed from aliases run with _smtpd privileges\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	b, err := json.Marshal(ex)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"accepted":true`, `"rule":"c:5"`, `"clause":"for domain \u003cis base.test\u003e"`, `"matched":true`, `"kind":"mta"`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %s in\n%s", want, b)
		}
	}
}

func TestCases(t *testing.T) {
	x, _ := world(map[string]string{"root": "alice"})
	text := `# comment

client=192.0.2.7 from=a@b.org rcpt=root@example.org -> action example.org
client=192.0.2.7 from=a@b.org rcpt=x@rejected.test -> reject
rcpt=nosuch@plain.test -> reject
rcpt=nosuch@plain.test -> action plain.test
rcpt=nosuch@plain.test -> 550
rcpt=x@dead.test -> tempfail
rcpt=alice@plain.test -> accept
rcpt=alice@plain.test -> action "plain.test"
`
	cases, err := ParseCases(strings.NewReader(text), "cases")
	if err != nil || len(cases) != 8 {
		t.Fatalf("got %d cases, %v", len(cases), err)
	}
	for _, c := range cases {
		q, err := ParseQuery(x.Config, c.Query)
		if err != nil {
			t.Fatal(err)
		}
		if ok, got := c.Met(x.Explain(t.Context(), q)); !ok {
			t.Errorf("line %d: got %s, want %s", c.Line, got, c.Want)
		}
	}
	for want, got := range map[string]string{"action out": "action plain.test", "reject": "action plain.test", "tempfail": "action plain.test", "451": "250 2.1.5 Destination address valid: Recipient ok"} {
		c := Case{Query: []string{"rcpt=alice@plain.test"}, Want: want}
		q, _ := ParseQuery(x.Config, c.Query)
		if ok, is := c.Met(x.Explain(t.Context(), q)); ok || is != got {
			t.Errorf("%s: got %v, %s", want, ok, is)
		}
	}
	for _, line := range []string{"rcpt=a@b", "rcpt=a@b -> maybe", "-> reject", "rcpt=a@b -> action ", "rcpt=a@b -> 250 x"} {
		if _, err := ParseCases(strings.NewReader("\n"+line), "cases"); err == nil || !strings.HasPrefix(err.Error(), "cases:2: ") {
			t.Errorf("%q: got %v", line, err)
		}
	}
}
