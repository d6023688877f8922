package parser

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"smtpd/internal/config"
)

const end = "\naction \"zz\" relay\nmatch for any action \"zz\"\n"

// TestErrors are mistakes that the corpus has no file for. want is a part of
// the first error, with its line.
func TestErrors(t *testing.T) {
	tests := map[string]struct{ in, want string }{
		"near miss":             {"action a maidir", `1: syntax error: unknown option "maidir", did you mean "maildir"?`},
		"near directive":        {"tabel t { a }", `1: syntax error: unknown directive "tabel", did you mean "table"?`},
		"older word":            {"listen on lo mask-source", `1: syntax error: unknown option "mask-source", did you mean "mask-src"?`},
		"older option":          {"match sender x for any reject", `did you mean "mail-from"?`},
		"found, expected":       {"match for domain alias reject", `1: syntax error: found "alias", expected a domain or <table>`},
		"two statements":        {"listen on lo listen on lo", `1: syntax error: found "listen", expected`},
		"number as a name":      {"action 1 relay", "1: syntax error: found the number 1, expected a name"},
		"unclosed brace":        {"table t {\na\naction b relay\n", `3: syntax error`},
		"brace closed later":    {"table t { a = b\nc\nd = e\n}\nfoo", `2: syntax error`},
		"unclosed table":        {"match for domain <t action x", `1: syntax error: found "action", expected ">"`},
		"internal table":        {"table \"<x>\" { a }", "1: table \"<x>\": names that begin with <"},
		"empty name":            {"table \"\" { a }", "1: a table needs a name"},
		"long name":             {"table \"" + strings.Repeat("x", 1024) + "\" { a }", "1: table name too long"},
		"near table":            {"table domains { a }\nmatch for domain <domans> reject", `2: no such table: domans, did you mean "domains"?`},
		"table too late":        {"match for domain <t> reject\ntable t { a }", "it is declared in line 2 and must stand above"},
		"near backend":          {"table t fil:/etc/x", `backend "fil" does not exist, did you mean "file"?`},
		"makemap hint":          {"table t db:/etc/mail/senders.db", "1: cannot open map /etc/mail/senders.db: file does not exist, run makemap /etc/mail/senders"},
		"old db":                {"table t db:/bdb185", "1: /bdb185 was made by another makemap"},
		"passwd relative":       {"table t passwd:x", "1: invalid backend parameter for table: t"},
		"list with a value":     {"table t file:/mixed", `1: table "t": /mixed:2: invalid map entry`},
		"userbase list":         {"table t { a }\naction x mbox userbase <t>", `2: table "t" may not be used for userbase lookups`},
		"src regex mapping":     {"table t { a = b }\nmatch from src regex <t> reject", `2: table "t" may not be used for regex lookups`},
		"from auth mapping":     {"table t { a = b }\nmatch from auth <t> for any reject", `2: table "t" may not be used for auth lookups`},
		"senders list":          {"listen on lo senders { a }", `1: invalid use of table "<dynamic:0>" as SENDERS parameter`},
		"source":                {"action x relay src { 192.0.2.300 }", "1: invalid source address"},
		"network bits":          {"match from src 192.0.2.0/33 reject", "1: invalid address or network"},
		"domain route":          {"action x relay domain { a = \"ftp://b\" }", "1: invalid url: ftp://b: unknown scheme"},
		"label without auth":    {"action x relay host smtps://l@h", "1: invalid url: smtps://l@h: a label needs credentials"},
		"host and domain":       {"action x relay host a domain { b = c }", "1: host mapping already specified"},
		"host twice":            {"action x relay host a host b", "1: host already specified for this dispatcher"},
		"backup then host":      {"action x relay backup host a", "1: backup and host are mutually exclusive"},
		"backup and domain":     {"action x relay domain { a = b } backup", "1: backup and domain are mutually exclusive"},
		"auth before host":      {"table s { a = \"b:c\" }\naction x relay auth <s> host smtps://a@b", "2: auth may not be specified without host"},
		"forward-only user":     {"action x forward-only user vmail", "1: user may not be specified for forward-only"},
		"lmtp":                  {"action x lmtp \"localhost\"", "1: invalid lmtp destination: localhost"},
		"lmtp port":             {"action x lmtp \"localhost:99999\"", "1: invalid lmtp destination: localhost:99999"},
		"lmtp service":          {"action x lmtp \"localhost:nosuch\"", "1: invalid lmtp destination: localhost:nosuch"},
		"lmtp rcpt-to twice":    {"action x lmtp \"/s\" rcpt-to user nobody rcpt-to", "1: rcpt-to already specified for this dispatcher"},
		"verify-rcpt of mbox":   {"action x mbox verify-rcpt", "1: syntax error: found \"verify-rcpt\""},
		"mail-from":             {"action x relay mail-from \"@\"", "1: mail-from"},
		"modifier":              {"action x maildir \"%{rcpt:lowercas}\"", `1: unknown modifier "lowercas" in %{rcpt:lowercas}, did you mean "lowercase"?`},
		"range":                 {"action x maildir \"%{rcpt[a]}\"", "1: invalid range"},
		"no brace":              {"action x maildir \"%{rcpt\"", "1: no } after %{"},
		"mda outside":           {"action x mda \"/bin/x %{mda}\"", "1: %{mda} has a meaning in wrappers only"},
		"no cipher":             {"listen on lo ciphers \"DHE-RSA-AES256-SHA\"", `1: invalid ciphers: no cipher that there is here is left by "DHE-RSA-AES256-SHA"`},
		"near dhe":              {"pki a.org dhe atuo", `invalid DHE keyword: atuo, did you mean "auto"?`},
		"near scheme":           {"action o relay host smtp+tsl://h", `1: invalid url: smtp+tsl://h: unknown scheme "smtp+tsl", did you mean "smtp+tls"?`},
		"near on-failure":       {"proc p \"/bin/x\" on-failure tempfial", `invalid on-failure: tempfial, did you mean "tempfail"?`},
		"taken for a name":      {"match mail-from regx \"x\" for any reject", `; did you mean "regex" by "regx"?`},
		"near decision":         {"filter f phase connect match rdns jnuk", `; did you mean "junk" by "jnuk"?`},
		"near specifier":        {"action x maildir \"%{rcpt.usr}\"", `unknown format specifier %{rcpt.usr}, did you mean "rcpt.user"?`},
		"tag twice":             {"match tag a tag b for any reject", "1: tag already specified for this rule"},
		"auth and from auth":    {"match from auth auth for any reject", "1: auth already specified for this rule"},
		"rcpt-to twice":         {"match for rcpt-to a rcpt-to b reject", "1: rcpt-to already specified for this rule"},
		"address family":        {"listen on lo inet4 inet6", "1: address family already specified"},
		"wrong family":          {"listen on 127.0.0.1 inet6", "1: invalid virtual ip or interface: 127.0.0.1, it has no inet6 address"},
		"interface no address":  {"listen on dead0", "1: invalid virtual ip or interface: dead0, the interface has no address"},
		"near interface":        {"listen on vlan2", `1: invalid virtual ip or interface: vlan2, did you mean "vlan1"?`},
		"near egress":           {"listen on egres", `1: invalid virtual ip or interface: egres, did you mean "egress"?`},
		"near localhost":        {"listen on localhots", `1: invalid virtual ip or interface: localhots, did you mean "localhost"?`},
		"near group":            {"listen on wirelss", `1: invalid virtual ip or interface: wirelss, did you mean "wireless"?`},
		"protocols":             {"listen on lo protocols \"tlsv1.9\"", `1: invalid protocol: "tlsv1.9"`},
		"near service":          {"listen on lo port submision", `1: invalid port: submision is no service that is known here, did you mean "submission"?`},
		"verify after tls":      {"listen on lo tls verify", `1: syntax error: `},
		"ca name":               {"pki a cert \"/etc/mail/certs/rl0.crt\" key \"/etc/mail/certs/rl0.key\"\nlisten on lo tls pki a ca b", "2: ca name not found: b"},
		"relay pki":             {"action x relay pki nope", "1: pki name not found: nope"},
		"key does not fit":      {"pki a cert \"/etc/mail/certs/rl0.crt\" key \"/etc/mail/certs/other.key\"", "1: the key /etc/mail/certs/other.key does not fit"},
		"certificate for key":   {"pki a cert \"/etc/mail/certs/rl0.crt\" key \"/etc/mail/certs/rl0.crt\"", "1: cannot load key"},
		"cert mode":             {"ca a cert \"/writable\"", "1: cannot load CA file /writable: insecure permissions 0777"},
		"filter proc twice":     {"proc p \"x\"\nfilter a proc p\nfilter b proc p\nfilter c chain { a b }", "4: no proc allowed twice within a filter chain: p"},
		"filter in chain":       {"filter c chain { a }", "1: no filter exist with that name: a"},
		"chain in listener":     {"filter a phase connect match rdns junk\nfilter c chain { a }\nlisten on lo filter { a, c }", "3: no filter chain allowed"},
		"proc user twice":       {"proc p \"x\" user a user b", "1: user already specified for this processor"},
		"proc-exec name":        {"proc p \"x\"\nfilter p proc-exec \"y\"", "2: processor already exists with that name: p"},
		"decision text":         {"filter f phase connect match rdns reject", `1: syntax error: found the end of the line, expected a message such as "550 no"`},
		"decision no text":      {"filter f phase connect match rdns junk \"x\"", "1: syntax error"},
		"filter no builtin":     {"filter f phase quit match rdns junk", "1: syntax error: found \"quit\", expected"},
		"commit bypass":         {"filter f phase commit match rdns bypass", "1: syntax error: bypass is too late"},
		"rcpt-to at data":       {"filter f phase data match rcpt-to a junk", "1: syntax error: rcpt-to is not known at phase data"},
		"sender condition":      {"filter f phase mail-from match sender <x> reject", `it is written "mail-from"; write: filter f phase mail-from match mail-from <x> reject "550 ..."`},
		"admd":                  {"admd \"a\tb\"", "1: not a valid admd"},
		"srs ttl":               {"srs ttl 36h", "1: ttl delay \"36h\" is not a number of whole days"},
		"delay":                 {"queue ttl 1h30m", "1: invalid ttl delay: 1h30m"},
		"delay too long":        {"queue ttl 99999d", "1: invalid ttl delay: 99999d"},
		"size":                  {"smtp max-message-size 1.5.5M", "1: invalid size"},
		"negative size":         {"smtp max-message-size -1", "1: invalid size"},
		"limit too large":       {"smtp limit max-rcpt 9999999999", "too large"},
		"near limit":            {"mda limit max-sesion 1", `1: invalid mda limit keyword: max-sesion, did you mean "max-session"?`},
		"quoted family":         {"mta limit \"inet4\" 5", "1: invalid mta limit keyword: inet4"},
		"expire in new file":    {"expire 4d", `1: syntax error: "expire" is the language used before 6.4, this file uses "action" (line 2); write: queue ttl 4d`},
		"map in new file":       {"map a { source db \"/x\" }", `write: table a db:/x`},
		"limit in new file":     {"limit session max-rcpt 5", `write: smtp limit max-rcpt 5`},
		"secret not shown":      {"accept for any relay via tls+auth://l@h auth { l = \"u:pw\" }", `"accept" is the language used before 6.4, this file uses "action" (line 2)`},
		"macro name a key word": {"match = \"x\"", "1: syntax error: \"match\" is a reserved word and cannot be the name of a macro"},
		"macro a number":        {"x = 5", "1: syntax error: found the number 5"},
		"eight bit":             {"action \xe4 relay", `1: syntax error: "\xe4" must be quoted`},
	}
	sys := newFake(t)
	bdb := make([]byte, 64)
	bdb[0], bdb[1], bdb[2] = 0x61, 0x15, 0x06
	sys.files["/bdb185"] = fakeFile{string(bdb), 0o644, 0}
	sys.files["/mixed"] = fakeFile{"a\nb c\n", 0o644, 0}
	sys.files["/writable"] = fakeFile{sys.files["/etc/mail/certs/ca.crt"].data, 0o777, 0}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cfg, diags := Parse(t.Context(), sys.options(tt.in+end))
			if cfg != nil {
				t.Fatal("accepted")
			}
			i := slices.IndexFunc(diags, func(d Diagnostic) bool { return !d.Warning })
			if i < 0 {
				t.Fatal("no error among", diags)
			}
			if got := diags[i].String(); !strings.Contains(got, tt.want) {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if strings.Contains(report(diags, ""), "u:pw") {
				t.Error("a password is shown")
			}
		})
	}
}

// TestWarnings are lints and what else is allowed but told.
func TestWarnings(t *testing.T) {
	const cert = "\"/etc/mail/certs/"
	tests := map[string]struct {
		in, want string // want empty: no warning
	}{
		"none":               {"", ""},
		"unused table":       {"table t { a }", `x:1: warning: table "t" is never used`},
		"unused action":      {"action t mbox", `x:1: warning: action "t" is never used`},
		"never matches":      {"match from any reject\nmatch from socket for local tag x reject\nlisten on lo tag x", "x:2: warning: this rule can never match: line 1 is as wide"},
		"local covers":       {"match from local for any reject", "warning: this rule can never match: line 1 is as wide"},
		"local over socket":  {"match from local tag x reject\nmatch from socket tag x reject", "x:2: warning: this rule can never match"},
		"from any, auth":     {"match from any for any reject\nmatch auth from any for any reject", "x:2: warning: this rule can never match: line 1, with from any, stands before this auth"},
		"narrower first":     {"match from any tag x for any reject\nmatch from any for domain a reject\nlisten on lo tag x", ""},
		"open relay":         {"action o relay\nmatch from any for any action o", `x:2: warning: possible open relay`},
		"open relay by net":  {"action o relay\nmatch from src 0.0.0.0/0 for any action o", `x:2: warning: possible open relay`},
		"open relay, claims": {"action o relay\nmatch from any mail-from \"@a.b\" for any action o", `x:2: warning: possible open relay`},
		"near cipher":        {"smtp ciphers \"HIHG\"", `x:1: warning: unknown cipher "HIHG", did you mean "HIGH"?`},
		"no such tag":        {"action o relay\nlisten on lo tag DKIM_IN\nmatch tag DKMI_IN for any action o", `x:3: warning: this rule can never match: no listener has the tag "DKMI_IN", did you mean "DKIM_IN"?`},
		"some tag":           {"action o relay\nlisten on lo tag IN\nmatch tag { in, out } for any action o", ""},
		"nobody":             {"action o relay\nmatch !from any for any action o", "x:2: warning: this rule can never match: nobody is left by !from any"},
		"not open, auth":     {"action o relay\nmatch from any auth for any action o", ""},
		"not open, domain":   {"action o relay\nmatch from any for domain a.b action o", ""},
		"not open, tag":      {"action o relay\nmatch from any tag x for any action o\nlisten on lo tag x", ""},
		"secret table":       {"table s file:/etc/mail/users\naction o relay host smtps://alice@b auth <s>\nmatch for domain x action o", "x:1: warning: /etc/mail/users holds secrets and is readable by others (mode 0644), chmod 640 it"},
		"ends soon":          {"pki a cert " + cert + "soon.crt\" key " + cert + "soon.key\"", "ends on 2026-11-25, in 5 days"},
		"ended":              {"pki a cert " + cert + "old.crt\" key " + cert + "old.key\"", "ended on 2026-11-19"},
		"user":               {"action o maildir user nobody9\nmatch action o", `user "nobody9" is not known to this system`},
		"near user":          {"action o maildir user alcie\nmatch action o", `user "alcie" is not known to this system, did you mean "alice"?`},
		"limits of a host":   {"mta limit for domain \"[IPv6:2001:DB8::1]\" max-conn-per-domain 1\nmta limit for domain \"192.0.2.1\" inet4\nmta limit for domain mx_1.Example.org. inet4", ""},
		"limits of a URL":    {"mta limit for domain \"smtp+tls://label@mx.example.org:587\" inet4", `x:1: warning: no destination is called "smtp+tls://label@mx.example.org:587", so these limits hold for none; write mx.example.org`},
		"limits of a port":   {"mta limit for domain \"[2001:db8::1]:25\" inet4", `hold for none; write 2001:db8::1`},
		"limits of a net":    {"mta limit for domain \"192.0.2.0/24\" inet4", `hold for none; write one address for each line`},
		"limits of an *":     {"mta limit for domain \"*.example.org\" inet4", `hold for none; write example.org, which holds for relay hosts and mail exchangers below it too`},
		"limits of a person": {"mta limit for domain \"bob@example.org\" inet4", `hold for none; write example.org`},
		"limits of nonsense": {"mta limit for domain \"a b\" inet4", `hold for none; write the domain or host alone`},
		"five intervals":     {"bounce warn-interval 1h, 2h, 3h, 4h, 5h", "only 4 warn-intervals are used"},
		"bad line of file":   {"table s file:/nets\nmatch from src <s> reject", `x:2: warning: table "s": /nets:2: invalid address or network: "nonsense"`},
		"password form":      {"pki a cert " + cert + "rl0.crt\" key " + cert + "rl0.key\"\nlisten on lo tls pki a auth { a = b }", "password of \"a\" is not in an encrypted form"},
		"listened twice":     {"listen on lo\nlisten on 127.0.0.1", "x:2: warning: 127.0.0.1:25 is listened on by line 1 already"},
		"pki case":           {"pki A.b cert \"/etc/mail/certs/rl0.crt\" key \"/etc/mail/certs/rl0.key\"\nlisten on lo tls pki a.B pki a.b", "x:2: warning: pki a.b is given twice"},
		"absent address":     {"listen on 192.0.2.77", "x:1: warning: no interface has the address 192.0.2.77"},
		"old scheme":         {"action o relay host tls://h\nmatch for domain x action o", "tls://h is written as in an older release, read as smtp+tls://h"},
		"localhost":          {"match from src localhost reject", "localhost is no address"},
		"file is a map":      {"table a file:/etc/mail/aliases.db\naction o mbox alias <a>\nmatch action o", "opened as db:/etc/mail/aliases.db"},
		"relative include":   {"include aliases", "is relative"},
	}
	sys := newFake(t)
	sys.files["/nets"] = fakeFile{"# @list\nnonsense\n10.0.0.0/8\n", 0o644, 0}
	sys.files["aliases"] = fakeFile{"", 0o644, 0}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cfg, diags := Parse(t.Context(), sys.options(tt.in+end))
			text := report(diags, "")
			if cfg == nil || !strings.Contains(text, tt.want) || tt.want == "" && len(diags) > 0 {
				t.Errorf("got  %s\nwant %s", text, tt.want)
			}
		})
	}
}

// TestFollowing: a name whose declaration could not be read is no second mistake,
// and is suggested to whoever misspells it.
func TestFollowing(t *testing.T) {
	_, diags := Parse(t.Context(), newFake(t).options("action send realy\nmatch for domain a action send\nmatch for any action sned"+end))
	want := "x:1: syntax error: unknown option \"realy\", did you mean \"relay\"?\n" +
		"x:3: no such dispatcher: sned, did you mean \"send\"?\n"
	if got := report(diags, ""); !strings.HasPrefix(got, want) || strings.Contains(got, "x:2:") {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestVerbose(t *testing.T) {
	o := newFake(t).options("a = b\nc = d\nlisten on lo tag $c" + end)
	o.Verbose, o.Macros = true, map[string]string{"e": "f"}
	_, diags := Parse(t.Context(), o)
	want := "x:1: warning: macro 'a' not used\nwarning: macro 'e' of the command line not used\n--\n"
	if got := report(diags, ""); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestUnprivileged(t *testing.T) {
	tests := map[string]struct{ in, want string }{
		"other user":     {"action a maildir user vmail\nmatch action a", "an ordinary user (alice) cannot change identity"},
		"userbase":       {"action a maildir userbase { b = \"1000:7:/\", a = \"1:1:/\" }\nmatch action a", "a\" delivers to a as uid 1: an ordinary user (alice) cannot change identity"},
		"system mailbox": {"action a mbox\nmatch action a", "action \"a\": an ordinary user (alice) cannot deliver there: no room"},
		"low port":       {"listen on 127.0.0.1 port 25", "port 25: an ordinary user (alice) cannot open it"},
		"filter user":    {"filter f proc-exec \"filter-rspamd\" user _rspamd", "cannot change identity"},
		"filter chroot":  {"proc p \"filter-rspamd\" chroot \"/x\"", "cannot change identity"},
		"itself":         {"action a maildir user alice\nmatch action a", ""},
		"own virtual":    {"action a maildir userbase { b = \"1000:1000:/\" }\nmatch action a", ""},
		"high port":      {"listen on 127.0.0.1 port 2525", ""},
		"lmtp":           {"action a lmtp \"/s\" user vmail\nmatch action a", ""},
		"relay":          {"", ""},
	}
	sys := newFake(t)
	sys.mailbox = errors.New("no room")
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			o := sys.options(tt.in + end)
			o.Unprivileged = true
			if checked, diags := Parse(t.Context(), o); (checked == nil) != (tt.want != "") || !strings.Contains(report(diags, ""), tt.want) {
				t.Errorf("-n: %s", report(diags, ""))
			}
			o.Asking = true
			if checked, diags := Parse(t.Context(), o); checked == nil || !strings.Contains(report(diags, ""), tt.want) {
				t.Errorf("-n --explain: %s", report(diags, ""))
			}
			o.Asking = false
			o.CheckOnly = false
			cfg, diags := Parse(t.Context(), o)
			if got := report(diags, ""); (cfg == nil) != (tt.want != "") || !strings.Contains(got, tt.want) {
				t.Errorf("got %s\nwant %s", got, tt.want)
			}
		})
	}
	o := sys.options("pki a cert \"/etc/mail/certs/rl0.crt\" key \"/etc/mail/certs/owned.key\"" + end)
	sys.files["/etc/mail/certs/owned.key"] = fakeFile{sys.files["/etc/mail/certs/rl0.key"].data, 0o600, 1000}
	o.Unprivileged = true
	if cfg, diags := Parse(t.Context(), o); cfg == nil {
		t.Error("a key of its own is refused:", diags)
	}
}

// TestConfig is one of everything, and what becomes of it.
func TestConfig(t *testing.T) {
	const text = `pki Mail.example.ORG cert "/etc/mail/certs/rl0.crt" key "/etc/mail/certs/rl0.key" dhe AUTO
ca priv cert "/etc/mail/certs/ca.crt"
table snd file:/etc/mail/senders
filter f1 phase rcpt-to match !rcpt-to regex { "^a" } reject "550 no"
filter f2 proc-exec "filter-rspamd -x" user _rspamd
listen on rl0 inet4 port 587 tls-require verify ca priv pki mail.example.org auth tag SUB filter { f1, f2 } \
	hostname mx.example.org senders <snd> masquerade mask-src received-auth no-dsn proxy-v2 ciphers HIGH protocols "tlsv1.3"
listen on all port 2525
listen on socket tag LOC
srs key "one"
mta limit max-conn-per-source 7
mta limit for domain slow.test max-conn-per-source 100 max-conn-per-host 1
action "l" maildir "/m/%{dest.user:lowercase}" junk user vmail alias { Root = alice } ttl 2d
action "r" relay host { smtp+tls://x@a.org, smtps://b.org } tls no-verify auth { x = "u:p" } src 192.0.2.1 helo h.org \
	pki MAIL.example.org ca priv mail-from "@z.org" srs
match !from src <snd2> for domain regex "^x$" !auth helo "*.y" tls mail-from a rcpt-to b tag SUB action "l"
match from rdns for rcpt-to "c@d" action "r"
match from auth u for any reject
`
	sys := newFake(t)
	cfg, diags := Parse(t.Context(), sys.options("table snd2 { 10.0.0.0/8 }\n"+text))
	if cfg == nil {
		t.Fatal(report(diags, ""))
	}
	l := cfg.Listeners[0]
	if len(cfg.Listeners) != 4 || l.Addr != netip.MustParseAddrPort("172.20.0.12:587") || l.TLS != config.TLSRequired ||
		!l.VerifyPeer || l.CA != "priv" || !slices.Equal(l.PKI, []string{"mail.example.org"}) || !l.Auth || !l.AuthRequired ||
		l.Tag != "SUB" || !slices.Equal(l.Filter, []string{"f1", "f2"}) || l.Hostname != "mx.example.org" || l.Senders != "snd" ||
		!l.Masquerade || !l.MaskSource || !l.ReceivedAuth || l.DSN || !l.ProxyV2 || l.Ciphers != "HIGH" || l.Protocols != "tlsv1.3" {
		t.Errorf("%d listeners, the first %+v", len(cfg.Listeners), l)
	}
	if a := cfg.Listeners[3].Addr; a != netip.MustParseAddrPort("[::]:2525") {
		t.Errorf("all listens on %v", a)
	}
	if cfg.Socket.Tag != "LOC" || !cfg.Socket.IsSocket || !cfg.Socket.DSN {
		t.Errorf("socket %+v", cfg.Socket)
	}
	p := cfg.PKI["mail.example.org"]
	if p == nil || len(p.Cert) == 0 || p.Key == "" || p.DHE != "auto" || len(cfg.CA["priv"].Cert) == 0 {
		t.Errorf("pki %+v", p)
	}
	a := cfg.Actions["l"]
	if a.Method != config.MethodMaildir || a.Path != "/m/%{dest.user:lowercase}" || !a.Junk || a.User != "vmail" || a.TTL != 48*time.Hour {
		t.Errorf("action %+v", a)
	}
	if tab := cfg.Tables[a.Alias]; tab == nil || tab.Pairs[0] != [2]string{"root", "alice"} || tab.Type != config.TableMapping {
		t.Errorf("alias %+v", tab)
	}
	if d, o := config.DefaultMTALimits(), cfg.MTA.For("slow.test", ""); d.SourceLimitGiven || !cfg.MTA.Default.SourceLimitGiven ||
		cfg.MTA.Default.MaxConnPerSource != 7 || !o.SourceLimitGiven || o.MaxConnPerSource != 100 || o.MaxConnPerHost != 1 {
		t.Errorf("limits %+v, %+v", cfg.MTA.Default, o)
	}
	r := cfg.Actions["r"].Relay
	if !r.TLS || !r.NoVerify || r.Helo != "h.org" || r.PKI != "mail.example.org" || r.CA != "priv" || r.MailFrom != "@z.org" || !r.SRS ||
		len(cfg.Tables[r.Host].List) != 2 || cfg.Tables[r.Src].List[0] != "192.0.2.1" {
		t.Errorf("relay %+v", r)
	}
	if f := cfg.Filters["f1"]; f.Phase != "rcpt-to" || f.Cond != "rcpt-to" || !f.Match.Not || !f.Match.Regex || f.Decision != "reject" || f.Text != "550 no" {
		t.Errorf("filter %+v", f)
	}
	if f, q := cfg.Filters["f2"], cfg.Procs["f2"]; f.Proc != "f2" || q.Command != "filter-rspamd -x" || q.User != "_rspamd" {
		t.Errorf("filter %+v proc %+v", f, q)
	}
	m := cfg.Rules[0]
	if m.From.Kind != config.FromSrc || !m.From.Not || m.From.Table != "snd2" || m.For.Kind != config.ForDomain || !m.For.Regex ||
		!m.Auth.Not || m.HELO == nil || m.TLS == nil || m.MailFrom == nil || m.RcptTo == nil || m.Tag == nil || m.Action != "l" ||
		m.Number != 1 || m.Pos.Line != 17 || m.Pos.File != "x" {
		t.Errorf("rule %+v", m)
	}
	if m := cfg.Rules[1]; m.From.Kind != config.FromRDNS || m.From.Table != "" || m.For.Kind != config.ForAny || m.RcptTo == nil {
		t.Errorf("rule %+v", m)
	}
	if m := cfg.Rules[2]; m.From.Kind != config.FromAny || m.Auth == nil || !m.Reject {
		t.Errorf("rule %+v", m)
	}
	if cfg.ServerName != "mail.example.org" || !slices.Equal(cfg.LocalNames, []string{"localhost", "mail.example.org"}) || cfg.ADMD != cfg.ServerName {
		t.Errorf("identity %s %v", cfg.ServerName, cfg.LocalNames)
	}
	if _, err := json.Marshal(cfg); err != nil {
		t.Error(err)
	}
	var b bytes.Buffer
	Describe(&b, cfg)
	for _, want := range []string{"server name: mail.example.org\n", "3. x:19: match from any for any auth { u } reject\n", "listen 172.20.0.12:587 tls-require verify"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("described without %q:\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), "u:p") || strings.Contains(fmt.Sprintf("%+v", cfg.SRS), "one") {
		t.Error("a secret is shown")
	}
}

// TestListenWildcard: a wildcard and one address with the same port do not
// exclude each other.
func TestListenWildcard(t *testing.T) {
	cfg, diags := Parse(t.Context(), newFake(t).options("listen on all\nlisten on 127.0.0.1 tag X"+end))
	if cfg == nil {
		t.Fatal(diags)
	}
	seen := map[netip.AddrPort]bool{}
	tagged := 0
	for _, l := range cfg.Listeners {
		if seen[l.Addr] || l.Addr.Addr() == netip.IPv4Unspecified() {
			t.Errorf("%v again", l.Addr)
		}
		seen[l.Addr] = true
		if l.Tag == "X" {
			tagged++
		}
	}
	if tagged != 1 || !seen[netip.MustParseAddrPort("192.168.5.55:25")] || !seen[netip.MustParseAddrPort("[::]:25")] {
		t.Errorf("got %v", seen)
	}
}

func TestParseSize(t *testing.T) {
	tests := map[string]int64{"1": 1, "35M": 35 << 20, "35m": 35 << 20, "0.5G": 1 << 29, "1.5M": 3 << 19, "100k": 102400,
		"5B": 5, "": -1, "M": -1, "-1": -1, "1e3": -1, "9E": -1, "8191P": 8191 << 50, "1..2": -1, "lots": -1}
	for in, want := range tests {
		got, ok := parseSize(in)
		if ok != (want >= 0) || ok && got != want {
			t.Errorf("%q: got %d %t, want %d", in, got, ok, want)
		}
	}
}

func TestReadTable(t *testing.T) {
	tests := map[string]struct {
		in   string
		kind config.TableType
		want string
	}{
		"empty":         {"", config.TableMapping, ""},
		"list":          {"a\n\n# c\n b \n", config.TableList, "1a= 4b= "},
		"mapping":       {"a b\nc: d e\nf:g\n", config.TableMapping, "1a=b 2c=d e 3f=g "},
		"include":       {"a: :include:/x\n", config.TableMapping, "1a=:include:/x "},
		"bracket":       {"[::1] b\n", config.TableMapping, "1[::1]=b "},
		"forced":        {"#@list\na b\n", config.TableList, "2a b= "},
		"no value":      {"a b\nc\n", "", "2: invalid map entry: \"c\" has no value"},
		"value in list": {"a\nb c\n", "", "2: invalid map entry: a value in a list; \"# @list\" above it takes lines whole"},
		"no bracket":    {"[::1\n", "", "1: invalid map entry"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			kind, list, err := readTable(tt.in)
			got := ""
			for _, e := range list {
				got += fmt.Sprintf("%d%s=%s ", e.line, e.key, e.value)
			}
			if err != nil {
				got = err.Error()
			}
			if got != tt.want || kind != tt.kind {
				t.Errorf("got %q %s, want %q %s", got, kind, tt.want, tt.kind)
			}
		})
	}
}

func TestMissingFile(t *testing.T) {
	o := newFake(t).options("")
	o.File, o.Text = "/nope.conf", nil
	_, diags := Parse(t.Context(), o)
	if got, want := report(diags, ""), "cannot open /nope.conf: file does not exist\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if text, diags := Modern(t.Context(), o); text != "" || !diags.Failed() {
		t.Errorf("got %q, %v", text, diags)
	}
}

// TestQueueKey: a key is taken, or asked for when the daemon starts.
func TestQueueKey(t *testing.T) {
	const key = "0123456789abcdef0123456789abcdef"
	tests := map[string]struct {
		arg, ask string
		key      config.Secret
	}{
		"given": {" " + key, "", key}, "stdin": {" stdin", "stdin", ""}, "dash": {" \"-\"", "stdin", ""}, "prompt": {"", "prompt", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cfg, diags := Parse(t.Context(), newFake(t).options("queue encryption"+tt.arg+end))
			if cfg == nil {
				t.Fatal(diags)
			}
			if q := cfg.Queue; q.AskKey != tt.ask || q.EncryptionKey != tt.key {
				t.Errorf("got %q, key matches: %t", q.AskKey, q.EncryptionKey == tt.key)
			}
		})
	}
	sys := newFake(t)
	sys.conf = t.TempDir()
	o := sys.options("")
	sys.files["/open.conf"] = fakeFile{"queue encryption " + key + end, fs.FileMode(0o644), 0}
	o.File, o.Text = "/open.conf", nil
	_, diags := Parse(t.Context(), o)
	if got := report(diags, ""); !strings.Contains(got, "/open.conf:1: warning: /open.conf holds a secret and is readable by others") {
		t.Error(got)
	}
}

// TestRelayFilter: programs are told of relaying; a filter of our own has
// nothing to decide there, which is said.
func TestRelayFilter(t *testing.T) {
	tests := map[string]struct{ text, want string }{
		"program":  {"filter p proc-exec \"/bin/sh\"\naction r relay filter p\n", ""},
		"of ours":  {"filter a phase connect match rdns junk\naction r relay filter a\n", "x:2: warning: filter a decides in sessions with clients, it has no effect on relaying"},
		"in chain": {"filter a phase connect match rdns junk\nfilter c chain { a }\naction r relay filter c\n", "x:3: warning: filter a decides"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			sys := newFake(t)
			sys.files["/bin/sh"] = fakeFile{"", fs.FileMode(0o755), 0}
			cfg, diags := Parse(t.Context(), sys.options(tt.text+"match for any action r\n"))
			if cfg == nil || len(cfg.Actions["r"].Relay.Filter) != 1 {
				t.Fatalf("%v, %s", cfg, report(diags, ""))
			}
			if got := report(diags, ""); tt.want == "" && strings.Contains(got, "warning") || !strings.Contains(got, tt.want) {
				t.Errorf("got %s", got)
			}
		})
	}
}

// TestStoreOptions writes the options of an lmtp action in each order.
func TestStoreOptions(t *testing.T) {
	for _, opts := range []string{"rcpt-to verify-rcpt x-original-to", "verify-rcpt rcpt-to x-original-to", "x-original-to verify-rcpt rcpt-to ttl 1h"} {
		cfg, diags := Parse(t.Context(), newFake(t).options("action a lmtp \"/s\" "+opts+"\nmatch for any action a\n"))
		if cfg == nil {
			t.Fatalf("%s: %v", opts, diags)
		}
		if a := cfg.Actions["a"]; !a.RcptTo || !a.VerifyRcpt || !a.OriginalTo || a.Dest != "/s" {
			t.Errorf("%s: %+v", opts, a)
		}
	}
}
