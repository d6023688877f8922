package parser

import (
	"maps"
	"strings"
	"testing"
)

// translation is what a statement of an older file is today. pre stands above
// it and is not shown.
type translation struct{ pre, in, want string }

// What stands above the statements.
const (
	oldRules   = "accept for any relay\n"                    // makes a file of 5.3 to 6.3
	olderMap   = "# x\nmap aliases2 \"/etc/mail/aliases\"\n" // of 4.6 to 5.2
	somePKI    = "pki p cert \"/etc/mail/certs/rl0.crt\" key \"/etc/mail/certs/rl0.key\"\n"
	someAuth   = somePKI + "listen on 127.0.0.1 tls pki p auth\n"
	olderAuth  = "# x\nmap aliases2 \"/etc/mail/aliases\"\nlisten on 127.0.0.1 port 587 tls enable auth\n"
	someTable  = "table t { 10.0.0.0/8 }\n"
	someLogin  = "table s { l = \"u:p\" }\n"
	olderLogin = "map secrets \"/etc/mail/secrets\"\naccept for any relay via x port 25\n"
)

// fromAccept is the table for files of 5.3 to 6.3.
func fromAccept() map[string]translation {
	return map[string]translation{
		"bounce-warn":              {oldRules, "bounce-warn 1h, 2d", "bounce warn-interval 1h, 2d"},
		"expire":                   {oldRules, "expire 4d", "queue ttl 4d"},
		"subaddressing-delimiter":  {oldRules, "subaddressing-delimiter \"-\"", "smtp sub-addr-delim \"-\""},
		"queue encryption":         {oldRules, "queue encryption key \"0123456789abcdef0123456789abcdef\"", "queue encryption \"0123456789abcdef0123456789abcdef\""},
		"max-message-size":         {oldRules, "max-message-size 10M", "smtp max-message-size 10M"},
		"ciphers":                  {oldRules, "ciphers HIGH", "smtp ciphers HIGH"},
		"max-mta-deferred":         {oldRules, "max-mta-deferred 5", "mta max-deferred 5"},
		"limit session":            {oldRules, "limit session max-rcpt 5", "smtp limit max-rcpt 5"},
		"limit mta":                {oldRules, "limit mta for domain a.b inet6 max-conn-per-host 5", "mta limit for domain a.b inet6 max-conn-per-host 5"},
		"pki certificate":          {oldRules, "pki p certificate \"/etc/mail/certs/rl0.crt\" key \"/etc/mail/certs/rl0.key\"", strings.TrimSuffix(somePKI, "\n")},
		"ca certificate":           {oldRules, "ca p certificate \"/etc/mail/certs/ca.crt\"", "ca p cert \"/etc/mail/certs/ca.crt\""},
		"mask-source":              {oldRules, "listen on lo mask-source", "listen on lo mask-src"},
		"enqueuer":                 {oldRules, "listen on enqueuer mask-source", "listen on socket mask-src"},
		"secure":                   {oldRules + somePKI, "listen on lo secure pki p tag X", "listen on lo smtps pki p tag X\nlisten on lo tls pki p tag X"},
		"macro of today's word":    {oldRules, "src = lo\nlisten on $src", "listen on lo"},
		"certificate by hostname":  {somePKI, "listen on lo hostname p tls\n" + oldRules, "listen on lo hostname p tls pki \"p\"\naction \"action_3\" relay\nmatch from local for any action \"action_3\""},
		"certificate by *":         {strings.ReplaceAll(somePKI, " p ", " \"*\" "), "listen on lo tls\n" + oldRules, "listen on lo tls pki \"*\"\naction \"action_3\" relay\nmatch from local for any action \"action_3\""},
		"certificate by file":      {oldRules, "listen on rl0 tls", "pki \"rl0\" cert \"/etc/mail/certs/rl0.crt\" key \"/etc/mail/certs/rl0.key\"\nlisten on rl0 tls pki \"rl0\""},
		"certificate on a relay":   {oldRules, "accept for any relay certificate rl0", "pki \"rl0\" cert \"/etc/mail/certs/rl0.crt\" key \"/etc/mail/certs/rl0.key\"\naction \"action_2\" relay pki \"rl0\"\nmatch from local for any action \"action_2\""},
		"from local, auth offered": {someAuth, "accept from local for any relay", rule(3, "relay", "from local for any", "from auth for any")},
		"from ! local":             {someAuth, "accept from ! local for local deliver to mbox", rule(3, "mbox", "!from local !auth for local")},
		"from any":                 {someAuth, "accept from any for local deliver to mbox", rule(3, "mbox", "from any for local")},
		"from source":              {someAuth + someTable, "accept from source <t> for any relay", rule(4, "relay", "from src <t> !auth for any")},
		"from bare table":          {someAuth + someTable, "accept from <t> for any relay", rule(4, "relay", "from src <t> !auth for any")},
		"from ! source":            {someAuth + someTable, "accept from ! source <t> for local deliver to mbox", rule(4, "mbox", "!from src <t> for local", "from auth for local")},
		"authenticated":            {someAuth, "accept authenticated for any relay", rule(3, "relay", "from auth for any")},
		"any authenticated":        {someAuth, "accept from any authenticated for any relay", rule(3, "relay", "from any auth for any")},
		"! authenticated":          {someAuth, "accept ! authenticated for any relay", rule(3, "relay", "from local !auth for any")},
		"any ! authenticated":      {someAuth, "accept from any ! authenticated for any relay", rule(3, "relay", "from any !auth for any")},
		"source authenticated":     {someAuth + oldRules + someTable, "accept from source <t> authenticated for any relay", ""},
		"tagged":                   {"", "accept tagged X for any relay", rule(1, "relay", "tag X from local for any")},
		"tagged !":                 {"", "accept tagged ! X for any relay", rule(1, "relay", "!tag X from local for any")},
		"sender, recipient":        {"", "accept sender ! \"@a\" recipient \"b@c\" for any relay", rule(1, "relay", "from local for any !mail-from \"@a\" rcpt-to \"b@c\"")},
		"for ! domain":             {"", "accept for ! domain a.b relay", rule(1, "relay", "from local !for domain a.b")},
		"nothing":                  {"", "accept deliver to mbox", rule(1, "mbox", "from local for local")},
		"reject":                   {someAuth, "reject from any sender \"@a\"", "match from any for local mail-from \"@a\" reject"},
		"as":                       {"", "accept for local deliver to mda \"x\" as vmail", rule(1, "mda \"x\" user vmail", "from local for local")},
		"lookups":                  {"table a { b = c }\n", "accept for local alias <a> deliver to mbox", rule(2, "mbox alias <a>", "from local for local")},
		"forward-only":             {"", "accept for local forward-only", rule(1, "forward-only", "from local for local")},
		"no action":                {"", "accept for local", rule(1, "expand-only", "from local for local")},
		"expire of a rule":         {"", "accept for any relay expire 2d", rule(1, "relay ttl 2d", "from local for any")},
		"relay backup":             {"", "accept for any relay backup", rule(1, "relay backup", "from local for any")},
		"relay backup mx":          {"", "accept for any relay backup m.x", rule(1, "relay backup mx m.x", "from local for any")},
		"relay tls":                {"", "accept for any relay tls", rule(1, "relay tls no-verify", "from local for any")},
		"relay tls verify":         {"", "accept for any relay tls verify", rule(1, "relay tls", "from local for any")},
		"relay as":                 {"", "accept for any relay as \"@x.y\"", rule(1, "relay mail-from \"@x.y\"", "from local for any")},
		"relay as user":            {"", "accept for any relay as u", rule(1, "relay mail-from \"u@mail.example.org\"", "from local for any")},
		"relay options":            {"table n { 192.0.2.1 = a.b }\n", "accept for any relay source 192.0.2.1 hostname h.i hostnames <n>", rule(2, "relay src 192.0.2.1 helo h.i helo-src <n>", "from local for any")},
		"relay helo 5.3":           {"table n { 192.0.2.1 = a.b }\n", "accept for any relay helo <n>", rule(2, "relay helo-src <n>", "from local for any")},
		"virtual with relay":       {"table v { \"a@b\" = c }\n", "accept for domain b virtual <v> relay", rule(2, "relay", "from local for domain b rcpt-to <v>")},
		"via none":                 {"", "accept for any relay via h:26", rule(1, "relay host \"smtp://h:26\"", "from local for any")},
		"via smtp+tls":             {"", "accept for any relay via smtp+tls://h", rule(1, "relay host \"smtp://h\"", "from local for any")},
		"via smtp":                 {"", "accept for any relay via smtp://h", rule(1, "relay host \"smtp+notls://h\"", "from local for any")},
		"via tls":                  {"", "accept for any relay via tls://h", rule(1, "relay host \"smtp+tls://h\" tls no-verify", "from local for any")},
		"via tls verify":           {"", "accept for any relay via tls://h verify", rule(1, "relay host \"smtp+tls://h\"", "from local for any")},
		"via tls+auth":             {someLogin, "accept for any relay via tls+auth://l@h auth <s>", rule(2, "relay host \"smtp+tls://l@h\" tls no-verify auth <s>", "from local for any")},
		"via smtps+auth":           {someLogin, "accept for any relay via smtps+auth://l@h auth <s>", rule(2, "relay host \"smtps://l@h\" tls no-verify auth <s>", "from local for any")},
		"via secure":               {"", "accept for any relay via secure://h", rule(1, "relay host \"smtps://h\" tls no-verify", "from local for any")},
		"via secure 587":           {"", "accept for any relay via secure://h:587", rule(1, "relay host \"smtp+tls://h:587\" tls no-verify", "from local for any")},
		"via lmtp":                 {"", "accept for any relay via lmtp://h:24", rule(1, "relay host \"lmtp://h:24\"", "from local for any")},
		"via backup":               {"", "accept for any relay via backup://h", rule(1, "relay backup mx \"h\"", "from local for any")},
		"via tls+backup":           {"", "accept for any relay via tls+backup://h", rule(1, "relay backup mx \"h\" tls no-verify", "from local for any")},
		"via in brackets":          {"", "accept for any relay via \"smtps://[::1]:465\"", rule(1, "relay host \"smtps://[::1]:465\" tls no-verify", "from local for any")},
	}
}

// fromMap is the table for files of 4.6 to 5.2.
func fromMap() map[string]translation {
	return map[string]translation{
		"size":              {olderMap, "size 1M", "smtp max-message-size 1M"},
		"map db":            {olderMap, "map m { source db \"/etc/mail/aliases.db\" }", "table m db:/etc/mail/aliases.db"},
		"map plain":         {olderMap, "map m { type hash, source plain \"/etc/mail/aliases\" }", "table m file:/etc/mail/aliases"},
		"map of a key word": {olderMap, "map virtual { source plain \"/etc/mail/virtual\" }\nmap list \"/etc/mail/aliases\"", "table \"virtual\" file:/etc/mail/virtual\ntable list file:/etc/mail/aliases"},
		"enable auth":       {olderMap, "listen on 127.0.0.1 port 587 smtps enable auth certificate rl0 tag X", "pki \"rl0\" cert \"/etc/mail/certs/rl0.crt\" key \"/etc/mail/certs/rl0.key\"\nlisten on 127.0.0.1 port 587 smtps auth-optional tag X pki \"rl0\""},
		"on an interface":   {olderMap, "listen on lo\naccept on lo for all relay", "listen on lo tag lo\n" + rule(4, "relay", "tag lo from local for any")},
		"from all":          {olderMap, "accept from all for local deliver to mbox", rule(3, "mbox", "from any for local")},
		"from address":      {olderAuth, "accept from 10.0.0.1 for all relay", rule(4, "relay", "from src 10.0.0.1 for any", "from auth for any")},
		"from list":         {olderMap, "accept from ( 10.0.0.1, 10.0.0.2 ) for all relay", rule(3, "relay", "from src { 10.0.0.1, 10.0.0.2 } for any")},
		"from local, auth":  {olderAuth, "accept for local deliver to mbox", rule(4, "mbox", "from local for local", "from auth for local")},
		"for conditions":    {olderMap, "accept for { local, domain a.b } deliver to mbox", "action \"action_3\" mbox\nmatch from local for local action \"action_3\"\nmatch from local for domain a.b action \"action_3\""},
		"for bare":          {olderMap, "accept for a.b deliver to mbox", rule(3, "mbox", "from local for domain a.b")},
		"for domain map":    {olderMap, "map d \"/etc/mail/domains\"\naccept for domain map d deliver to mbox", "table d file:/etc/mail/domains\n" + rule(4, "mbox", "from local for domain <d>")},
		"alias":             {olderMap, "accept for local alias aliases2 deliver to mbox", rule(3, "mbox alias <aliases2>", "from local for local")},
		"two aliases": {olderMap, "map b \"/etc/mail/virtual\"\naccept for { local alias aliases2, domain x alias b } deliver to mbox",
			"table b file:/etc/mail/virtual\naction \"action_4\" mbox alias <aliases2>\nmatch from local for local action \"action_4\"\n" +
				"action \"action_4_2\" mbox alias <b>\nmatch from local for domain x action \"action_4_2\""},
		"for virtual":      {olderMap, "map v \"/vmap\"\naccept for virtual v deliver to mbox", "table v file:/vmap\n" + rule(4, "mbox virtual <v>", "from local for domain { \"v.org\" }")},
		"implicit aliases": {"map aliases \"/etc/mail/aliases\"\n", "accept for local deliver to mbox", rule(2, "mbox alias <aliases>", "from local for local")},
		"implicit, later":  {"", "accept for local deliver to mbox\nmap aliases \"/etc/mail/aliases\"", "table aliases file:/etc/mail/aliases\n" + rule(1, "mbox alias <aliases>", "from local for local")},
		"implicit virtual": {"map virtual \"/etc/mail/virtual\"\n", "accept for local deliver to mbox", "action \"action_2_virtual\" mbox virtual <\"virtual\">\nmatch from local for local rcpt-to <\"virtual\"> action \"action_2_virtual\"\n" + rule(2, "mbox", "from local for local")},
		"user":             {olderMap, "accept for local deliver to maildir \"/m/%a\" user vmail", rule(3, "maildir \"/m/%{rcpt.user}\" user vmail", "from local for local")},
		"home of a user":   {olderMap, "accept for local deliver to maildir \"~vmail/%0d/%U\"", rule(3, "maildir \"/home/vmail/%{rcpt.domain[0]}/%{sender.user}\"", "from local for local")},
		"procmail":         {olderMap, "accept for local deliver to mda \"procmail -f -\"", rule(3, "mda \"procmail -f -\"", "from local for local")},
		"via host":         {olderMap, "accept for all relay via h", rule(3, "relay host \"smtp://h\"", "from local for any")},
		"via host tls":     {olderMap, "accept for all relay via h port 587 tls", rule(3, "relay host \"smtp+tls://h:587\" tls no-verify", "from local for any")},
		"via host smtps":   {olderMap, "accept for all relay via h smtps", rule(3, "relay host \"smtps://h\" tls no-verify", "from local for any")},
		"via host ssl":     {olderMap, "accept for all relay via h ssl", rule(3, "relay host \"smtps://h\" tls no-verify", "from local for any")},
		"via host ssl 25":  {olderMap, "accept for all relay via h port 25 ssl", rule(3, "relay host \"smtp+tls://h:25\" tls no-verify", "from local for any")},
		"via enable auth":  {olderLogin, "accept for all relay via h tls enable auth", rule(3, "relay host \"smtp+tls://h@h\" tls no-verify auth <secrets>", "from local for any")},
		"via auth map":     {olderLogin, "accept for all relay via h tls auth secrets as \"@x.y\"", rule(3, "relay host \"smtp+tls://h@h\" tls no-verify auth <secrets> mail-from \"@x.y\"", "from local for any")},
		"reject, action":   {olderMap, "reject for all relay", "match from local for any reject"},
		"hostname": {"map m \"/etc/mail/aliases\"\nlisten on lo\n", "hostname h.i\naccept for local deliver to mbox\naccept for all relay",
			"admd h.i\naction \"action_4\" mbox\nmatch from local for local action \"action_4\"\nmatch from local for domain h.i action \"action_4\"\n" +
				rule(5, "relay helo h.i", "from local for any")},
	}
}

// TestTranslate goes through the tables of the language's history.
func TestTranslate(t *testing.T) {
	tests := fromAccept()
	maps.Copy(tests, fromMap())
	sys := newFake(t)
	sys.files["/vmap"] = fakeFile{"v.org: x\ninfo@v.org: alice\ninfo@w.org: bob\n", 0o644, 0}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			text := tt.in + "\n"
			if tt.pre != "" {
				text = strings.TrimSuffix(tt.pre, "\n") + " # cut\n" + text
			}
			if !strings.Contains(text, "accept") && !strings.Contains(text, "reject") {
				text += strings.Repeat("\n", 90) + oldRules
			}
			shown := modernText(t, sys, text)
			if _, rest, ok := strings.Cut(shown, "# cut"); ok {
				shown = strings.TrimPrefix(rest, "\n")
			}
			shown, _, _ = strings.Cut(shown, "\naction \"action_9") // of old
			shown = strings.TrimSpace(shown)
			if shown != tt.want {
				t.Errorf("got\n%s\nwant\n%s", shown, tt.want)
			}
		})
	}
}

// rule is the lines of an action with its rules.
func rule(line int, action string, matches ...string) string {
	name := "\"action_" + string(rune('0'+line)) + "\""
	s := "action " + name + " " + action
	for _, m := range matches {
		s += "\nmatch " + m + " action " + name
	}
	return s
}

func modernText(t *testing.T, sys *fake, text string) string {
	t.Helper()
	o := sys.options(text)
	out, diags := Modern(t.Context(), o)
	if diags.Failed() {
		t.Fatalf("%s\n%s", report(diags, ""), text)
	}
	cfg, _ := Parse(t.Context(), o)
	sameMeaning(t, o, cfg, out)
	return strings.TrimSuffix(out, "\n")
}

// TestTranslateErrors are refusals that only older files can meet.
func TestTranslateErrors(t *testing.T) {
	tests := map[string]struct{ in, want string }{
		"from twice":         {"accept from any from local for any relay", "1: from specified multiple times"},
		"for twice":          {"accept for any for local relay", "1: for specified multiple times"},
		"alias twice":        {"table a { b = c }\naccept for any alias <a> alias <a> deliver to mbox", "2: alias specified multiple times"},
		"alias and virtual":  {"table a { b = c }\naccept for any alias <a> virtual <a> deliver to mbox", "2: alias and virtual"},
		"expire twice":       {"accept for any relay expire 1d expire 2d", "1: expire specified multiple times"},
		"expire wrong":       {"accept for any relay expire never", "1: invalid expire delay: never"},
		"as twice":           {"accept for any relay as \"@a\" as \"@b\"", "1: as specified multiple times"},
		"secure with port":   {"pki p cert \"/etc/mail/certs/rl0.crt\" key \"/etc/mail/certs/rl0.key\"\nlisten on lo secure pki p port 587\naccept for any relay", "2: tls/smtps on same port"},
		"no certificate":     {"table a { b }\nlisten on lo tls\naccept for any relay", "2: cannot load certificate: no pki fits and there is no /etc/mail/certs/lo.crt"},
		"verify, no tls":     {"accept for any relay via h verify", "1: cannot \"verify\" with insecure protocol"},
		"near scheme":        {"accept for any relay via tsl://h", `1: invalid url: tsl://h: unknown scheme "tsl", did you mean "tls"?`},
		"bad port":           {"accept for any relay via h:0", "1: invalid url: h:0"},
		"near word":          {"accept for local delivr to mbox", `1: syntax error: unknown option "delivr", did you mean "deliver"?`},
		"order":              {"accept for local deliver to mbox alias <a>", "expected decisions (from, for"},
		"tag too long":       {"accept tagged " + strings.Repeat("x", 33) + " for any relay", "1: tag name too long"},
		"no such map":        {"map virtuals \"/etc/mail/virtuals\"\naccept for virtual virtual2 deliver to mbox", `2: no such map: virtual2, did you mean "virtuals"?`},
		"no such map, 5.3":   {"accept for local alias nomap deliver to mbox", "1: no such map: nomap"},
		"no such table":      {"accept for domain <nomap> deliver to mbox", "1: no such table: nomap"},
		"ssl listener":       {"map m \"/etc/mail/aliases\"\nlisten on lo ssl\naccept for all relay", "2: ssl is not a listener mode"},
		"auth in clear":      {"map m \"/etc/mail/aliases\"\nlisten on lo enable auth\naccept for all relay", "2: must specify tls or smtps"},
		"map without path":   {"map m { source db }\naccept for all relay", "1: map m: source db needs a path"},
		"interval":           {"queue interval soon\naccept for all relay", "1: invalid interval: soon"},
		"port of relay":      {"accept for all relay via h port 0 tls", "1: invalid port: 0"},
		"user":               {"accept for local deliver to maildir user nobody9", "1: user 'nobody9' does not exist"},
		"old filter":         {"filter a b\naccept for any relay", "1: syntax error: filter programs of 5.x"},
		"macro named accept": {"accept = \"x\"\naccept for any relay", "1: syntax error"},
	}
	sys := newFake(t)
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, diags := Parse(t.Context(), sys.options(tt.in+"\n"))
			for _, d := range diags {
				if !d.Warning {
					if !strings.Contains(d.String(), tt.want) {
						t.Errorf("got  %s\nwant %s", d, tt.want)
					}
					return
				}
			}
			t.Error("accepted")
		})
	}
}

func TestDetect(t *testing.T) {
	tests := map[string]struct {
		in   string
		kind generation
	}{
		"nothing":             {"", modern},
		"action":              {"accept for any relay\naction a relay", modern},
		"accept":              {"table a { b }\naccept for any relay", acceptForm},
		"reject":              {"reject for any", acceptForm},
		"map":                 {"map a \"/b\"\naccept for any relay", mapForm},
		"enable auth":         {"listen on lo tls enable auth\naccept for any relay", mapForm},
		"via port":            {"accept for any relay via a port 25", mapForm},
		"via url":             {"accept for any relay via tls://a verify", acceptForm},
		"from all":            {"accept from all for any relay", mapForm},
		"for all":             {"accept for all relay", acceptForm},
		"hostname":            {"hostname a\naccept for any relay", mapForm},
		"hostname, listener":  {"listen on lo hostname a\naccept for any relay", acceptForm},
		"on":                  {"accept on lo for any relay", mapForm},
		"virtual":             {"accept for virtual v relay", mapForm},
		"virtual in braces":   {"accept for { virtual v } relay", mapForm},
		"in a table":          {"table t {\nmatch\naction\n}\naccept for any relay", acceptForm},
		"brace never closed":  {"table t {\nmatch any\n", modern},
		"macro named match":   {"match = \"a\"\naccept for any relay", acceptForm},
		"quoted is no word":   {"\"action\" a\naccept for any relay", acceptForm},
		"queue interval":      {"queue interval 900\naccept for any relay", mapForm},
		"queue compression":   {"queue compression\naccept for any relay", acceptForm},
		"only hostname, size": {"size 1M", modern},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			d := &diagList{sources: []source{{name: "x", parent: -1}}}
			l := newLexer(&fake{}, d, nil)
			l.sources = d.sources
			l.file(0, tt.in)
			if got := detect(l.tokens).kind; got != tt.kind {
				t.Errorf("got %d, want %d", got, tt.kind)
			}
		})
	}
}

// TestPrintKeeps: comments, order and blank lines survive; macros and includes
// are carried out.
func TestPrintKeeps(t *testing.T) {
	sys := newFake(t)
	sys.files["/part"] = fakeFile{"# part\naction b relay\n", 0o600, 0}
	const in = "# head\n\n\n\nx = \"a relay\" # gone\n# kept\naction $x # tail\ninclude \"/part\"\n\nmatch \\\n for any action b # c\n" +
		"table t {\n # inside\n k = v # pair\n}\n" +
		"match for domain { aaaaaaaaaaaaaaaaaaaaaaaaaa.org bbbbbbbbbbbbbbbbbbbbbbbbbbbbb.org cccccccccccccccccc.org } reject\n# end\n\n"
	const want = "# head\n\n# kept\naction a relay # tail\n# include /part\n# part\naction b relay\n\nmatch for any action b # c\n" +
		"# inside\n# pair\ntable t { k = v }\n" +
		"match for domain {\n\taaaaaaaaaaaaaaaaaaaaaaaaaa.org,\n\tbbbbbbbbbbbbbbbbbbbbbbbbbbbbb.org,\n\tcccccccccccccccccc.org\n} reject\n# end\n"
	if got := modernText(t, sys, in); got+"\n" != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got, want := modernText(t, sys, "action a relay host secure://h\nmatch for any action a"),
		"action a relay host smtps://h tls no-verify\nmatch for any action a"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
