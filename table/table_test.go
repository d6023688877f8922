package table

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"smtpd/internal/config"
)

func TestMatchDomain(t *testing.T) {
	tests := map[string]struct {
		domain, pattern string
		want            bool
	}{
		"equal":                {"example.org", "example.org", true},
		"case":                 {"Example.ORG", "eXample.org", true},
		"other":                {"example.com", "example.org", false},
		"prefix":               {"example.org.evil.test", "example.org", false},
		"star":                 {"a.example.org", "*.example.org", true},
		"star, not itself":     {"example.org", "*.example.org", false},
		"star, no look back":   {"a.b.example.org", "*.example.org", false},
		"star without dot":     {"a.b.example.org", "*example.org", true},
		"star to first letter": {"a.b.example.org", "*b.example.org", true},
		"star, nothing before": {".example.org", "*.example.org", true},
		"star at the end":      {"mail.example.org", "mail.*", true},
		"star, end, nothing":   {"mail.", "mail.*", false},
		"star in the middle":   {"mx1.example.org", "mx*.example.org", true},
		"star alone":           {"example.org", "*", true},
		"two stars":            {"a.b.c", "*.*.c", true},
		"stars in a row":       {"a.example.org", "**.example.org", true},
		"dot":                  {"a.b.example.org", ".example.org", true},
		"dot, one below":       {"a.example.org", ".example.org", true},
		"dot, not itself":      {"example.org", ".example.org", false},
		"dot, part of a label": {"badexample.org", ".example.org", false},
		"empty pattern":        {"example.org", "", false},
		"both empty":           {"", "", true},
		"empty domain":         {"", "*", false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := matchDomain(tt.domain, tt.pattern); got != tt.want {
				t.Errorf("%s against %s: got %v", tt.domain, tt.pattern, got)
			}
		})
	}
}

func TestMatchMailaddr(t *testing.T) {
	tests := map[string]struct {
		addr, entry string
		want        bool
	}{
		"address":           {"a@b.org", "a@b.org", true},
		"case":              {"A@B.org", "a@b.ORG", true},
		"other user":        {"x@b.org", "a@b.org", false},
		"other domain":      {"a@c.org", "a@b.org", false},
		"domain":            {"a@b.org", "@b.org", true},
		"domain, wild":      {"a@x.b.org", "@*.b.org", true},
		"domain, dot":       {"a@x.y.b.org", "@.b.org", true},
		"user":              {"a@b.org", "a", true},
		"user, open domain": {"a@b.org", "a@", true},
		"user and wild":     {"a@x.b.org", "a@*.b.org", true},
		"tag is cut":        {"a+tag@b.org", "a@b.org", true},
		"tag is cut, user":  {"a+tag@b.org", "a", true},
		"entry with tag":    {"a+tag@b.org", "a+tag@b.org", true},
		"entry, other tag":  {"a+x@b.org", "a+tag@b.org", false},
		"entry, no tag":     {"a@b.org", "a+tag@b.org", false},
		"any":               {"a@b.org", "@", true},
		"any, null":         {"", "@", true},
		"null":              {"", "", true},
		"null only":         {"a@b.org", "", false},
		"null, other":       {"", "a@b.org", false},
		"null, domain":      {"", "@b.org", false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := MatchMailaddr(tt.addr, tt.entry, "+"); got != tt.want {
				t.Errorf("%q against %q: got %v", tt.addr, tt.entry, got)
			}
			// A list of many finds the same.
			b := NewList("zz@zz.zz", "@*.zz.zz", tt.entry)
			if got, err := New("t", "static", b).Check(t.Context(), Mailaddr, tt.addr); got != tt.want || err != nil {
				t.Errorf("%q in a list with %q: got %v, %v", tt.addr, tt.entry, got, err)
			}
		})
	}
}

func TestCheck(t *testing.T) {
	tests := map[string]struct {
		s       Service
		entries []string
		yes, no []string
	}{
		"netaddr": {Netaddr, []string{"192.0.2.0/24", "198.51.100.7", "2001:DB8::/32", "[2001:db9::1]", "[2001:dba::]/48", "IPv6:2001:dbb::1", "::ffff:10.0.0.1", "nonsense", "1.2.3.4/99"},
			[]string{"192.0.2.255", "198.51.100.7", "2001:db8::7", "[2001:db8::7]", "2001:db9::1", "[IPv6:2001:dba::5]", "2001:dbb::1", "10.0.0.1", "::ffff:192.0.2.1"},
			[]string{"192.0.3.0", "198.51.100.8", "2001:db7::1", "2001:dba:1::1", "local", "nonsense", "", "1.2.3.4", "fe80::1%eth0"}},
		"netaddr local": {Netaddr, []string{"local"}, []string{"local"}, []string{"127.0.0.1", "[::1]"}},
		"netaddr any":   {Netaddr, []string{"0.0.0.0/0"}, []string{"1.2.3.4"}, []string{"::1"}},
		"domain": {Domain, []string{"example.org", "*.one.test", ".all.test", "mx*.two.test", "*"[:0] + "x.*"},
			[]string{"EXAMPLE.org", "a.one.test", "a.b.all.test", "mx1.two.test", "x.y.z"}, []string{"a.example.org", "one.test", "a.b.one.test", "all.test", "two.test", "x", "*.one.test"[1:2]}},
		"mailaddr": {Mailaddr, []string{"a@b.org", "@c.org", "postmaster", "t+t@d.org", "@*.e.org", "u@*.f.org"},
			[]string{"a@b.org", "a+x@b.org", "x@c.org", "Postmaster@any.where", "postmaster+x@any.where", "t+t@d.org", "x@1.e.org", "u+y@1.f.org"},
			[]string{"b@b.org", "t@d.org", "t+u@d.org", "x@e.org", "v@1.f.org", ""}},
		"string": {String, []string{"Alice", "b*"}, []string{"alice", "ALICE", "b*"}, []string{"bob", "alic", "b"}},
		"regex": {Regex, []string{"^a.*z$", `(?i)B\.org`, "[[:digit:]]{3}", `[\.]x`, "c|d$", `(`, `\<word\>`},
			[]string{"abcz", "x@b.org", "tel 123", "a.x", `a\x`, "icd", "a word here", "ABCZ"}, []string{"za", "bxorg", "12", "swords", ""}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tab := New("t", "static", NewList(tt.entries...))
			for _, key := range tt.yes {
				if ok, err := tab.Check(t.Context(), tt.s, key); !ok || err != nil {
					t.Errorf("%q: got %v, %v", key, ok, err)
				}
			}
			for _, key := range tt.no {
				if ok, err := tab.Check(t.Context(), tt.s, key); ok || err != nil {
					t.Errorf("%q: got %v, %v, want no", key, ok, err)
				}
			}
		})
	}
}

func TestComplaints(t *testing.T) {
	var said []string
	path := filepath.Join(t.TempDir(), "t")
	os.WriteFile(path, []byte("# @list\nlocal\n1.2.3.4\nnonsense\n(\n"), 0o644)
	b, err := NewFile(path, "+", func(text string) { said = append(said, text) })
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		b.Check(t.Context(), Netaddr, "192.0.2.1")
		b.Check(t.Context(), Regex, "x")
	}
	if len(said) != 3 { // "nonsense" and "(" as addresses, "(" as an expression
		t.Errorf("got %q", said)
	}
}

func TestRegexTranslation(t *testing.T) {
	tests := map[string]struct{ in, want string }{
		"plain":          {"^a.b+(c|d)?$", "^a.b+(c|d)?$"},
		"escaped":        {`\.\*\[`, `\.\*\[`},
		"letters":        {`\w\d\b\q\n`, `\w\d\bqn`},
		"class":          {"[[:alpha:]_-]", "[[:alpha:]_-]"},
		"backslash":      {`[\d]`, `[\\d]`},
		"bracket first":  {"[]a]", `[\]a]`},
		"not bracket":    {"[^]a]", `[^\]a]`},
		"open bracket":   {"[[a]", `[\[a]`},
		"collating":      {"[[.-.]x]", "[-x]"},
		"equivalence":    {"[[=e=]]", "[e]"},
		"words":          {`[[:<:]]a[[:>:]]`, `\ba\b`},
		"words escaped":  {`\<a\>`, `\ba\b`},
		"group":          {"(?:x)", "!"},
		"back reference": {`(a)\1`, "!"},
		"not closed":     {"[abc", "!"},
		"class open":     {"[[:alpha", "!"},
		"too many":       {"a{1001}", "!"},
		"parenthesis":    {"(a", "!"},
		"nothing":        {"*a", "!"},
		"end":            {`a\`, "!"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := translateERE(tt.in)
			if _, cerr := compileRegex(tt.in); tt.want == "!" {
				if cerr == nil {
					t.Errorf("compiles, as %s", got)
				}
				return
			} else if cerr != nil {
				t.Error(cerr)
			}
			if got != tt.want || err != nil {
				t.Errorf("got %s, %v, want %s", got, err, tt.want)
			}
		})
	}
}

func TestParseText(t *testing.T) {
	tests := map[string]struct {
		text string
		typ  config.TableType
		want string
	}{
		"empty":             {"", config.TableMapping, ""},
		"comments":          {"# x\n\n   # y\n", config.TableMapping, ""},
		"list":              {"a\n b \n\nC\n", config.TableList, "a b C"},
		"mapping":           {"a b\nc: d\ne\tf  g\nh:i\nj : k\n", config.TableMapping, "a=b c=d e=f  g h=i j=k"},
		"mixed":             {"a\nb c\n", "", "f:2: invalid map entry"},
		"mixed, other way":  {"b c\n# x\na\n", "", "f:3: invalid map entry"},
		"forced list":       {"# @list\na b\n2001:db8::1\n", config.TableList, "a b 2001:db8::1"},
		"forced too late":   {"a b\n# @list\nc d\n", config.TableMapping, "a=b c=d"},
		"bracket list":      {"[2001:db8::/32]\n192.0.2.1\n", config.TableList, "[2001:db8::/32] 192.0.2.1"},
		"IPv6":              {"2001:db8::1\n2001:DB8::/32\n192.0.2.0/24\nIPv6:::1\n", config.TableList, "2001:db8::1 2001:DB8::/32 192.0.2.0/24 IPv6:::1"},
		"IPv6, later":       {"192.0.2.1\n::/0\n[2001:db8::]/32\n", config.TableList, "192.0.2.1 ::/0 [2001:db8::]/32"},
		"IPv6 with a value": {"2001:db8::1 x\n", config.TableMapping, "2001=db8::1 x"},
		"IPv6 in a mapping": {"a b\n2001:db8::1\n", config.TableMapping, "a=b 2001=db8::1"},
		"not IPv6":          {"a:b:c\n", config.TableMapping, "a=b:c"},
		"bracket mapping":   {"[::1] localhost\n", config.TableMapping, "[::1]=localhost"},
		"bracket open":      {"[::1\n", "", "f:1: invalid map entry"},
		"bracket then text": {"[::1]x\n", "", "f:1: invalid map entry"},
		"key and colon":     {"a:\nb\n", config.TableList, "a b"},
		"colon first":       {":a\n", "", "f:1: invalid map entry"},
		"include":           {"l: :include:/x\nm::include:/y\nn :include:/z\n", config.TableMapping, "l=:include:/x m=:include:/y n=:include:/z"},
		"old line ends":     {"a\r\nb\r\n", config.TableList, "a b"},
		"no last line feed": {"a\nb", config.TableList, "a b"},
		"control":           {"a\x00b\n", "", "f:1: the entry holds a control character"},
		"tab in a value":    {"a b\tc\n", config.TableMapping, "a=b\tc"},
		"too long":          {"a\n" + strings.Repeat("k", MaxKey+1) + "\n", "", "f:2: the entry is too long"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var got []string
			typ, err := parseText("f", tt.text, func(k, v string) {
				if v != "" {
					k += "=" + v
				}
				got = append(got, k)
			})
			text := strings.Join(got, " ")
			if err != nil {
				text = err.Error()
			}
			if text != tt.want || typ != tt.typ {
				t.Errorf("got %s %q, want %s %q", typ, text, tt.typ, tt.want)
			}
		})
	}
}

func TestParseItems(t *testing.T) {
	tests := map[string]struct{ in, want string }{
		"user":              {"Alice", "user:alice"},
		"users":             {" a ,b,, c ,", "user:a user:b user:c"},
		"address":           {"A.b+c@Example.org", "address:A.b+c@Example.org"},
		"odd address":       {"!#$%*/?|^{}`~&'+-=_.@d.org", "address:!#$%*/?|^{}`~&'+-=_.@d.org"},
		"international":     {"J\u00fcrgen@b\u00fccher.example", "address:J\u00fcrgen@b\u00fccher.example"},
		"not utf-8":         {"a\xff@b.org", "!"},
		"c1 control":        {"a\u0085@b.org", "!"},
		"command":           {"|/bin/cat -n", "command:/bin/cat -n"},
		"quoted command":    {`"|a, \"b\" # c"`, `command:a, "b" # c`},
		"bar, quoted":       {`|"/bin/a b"`, `command:"/bin/a b"`},
		"file":              {"/var/mail/x", "file:/var/mail/x"},
		"include":           {":include:/etc/list", "include:/etc/list"},
		"include, bare":     {"include:/etc/list", "include:/etc/list"},
		"error":             {"error:550 5.7.1 go away", "error:550 5.7.1 go away"},
		"error, colon":      {":ERROR:451 later", "error:451 later"},
		"escape":            {`\alice`, "user:alice"},
		"escaped comma":     {`"|a\,b"`, `command:a\,b`},
		"comment":           {"a # b, c", "user:a"},
		"number sign":       {"a#b@c.d", "address:a#b@c.d"},
		"number sign, user": {"a#b", "!"},
		"comment at once":   {"# a", ""},
		"empty":             {"", ""},
		"two words":         {"a b", "!"},
		"no domain":         {"bob@", "!"},
		"no user":           {"@b.org", "!"},
		"name":              {"B <a@b>", "!"},
		"semicolon":         {"a;b", "!"},
		"quoted user":       {`"carol"`, "!"},
		"quoted file":       {`"/a b"`, "!"},
		"tab in a command":  {"|a\tb", "command:a\tb"},
		"long file":         {"/" + strings.Repeat("x", maxCommand), "!"},
		"quote not closed":  {`"|a`, "!"},
		"no command":        {"|", "!"},
		"quoted nothing":    {`"|"`, "!"},
		"error code":        {"error:250 fine", "!"},
		"error, no text":    {"error:550", "!"},
		"error, two blanks": {"error:550  x", "!"},
		"error, sign":       {"error:550 <x>", "!"},
		"error in quotes":   {`"error:550 no"`, "!"},
		"include relative":  {":include:list", "!"},
		"escaped bar":       {`\|sh`, "!"},
		"escaped slash":     {`\/x`, "!"},
		"control":           {"a\x01b", "!"},
		"long command":      {"|" + strings.Repeat("x", maxCommand+1), "!"},
		"long user":         {strings.Repeat("u", 256), "!"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			items, err := ParseItems(tt.in)
			var got []string
			for _, it := range items {
				got = append(got, it.Kind.String()+":"+it.Text)
			}
			text := strings.Join(got, " ")
			if err != nil {
				text = "!"
			}
			if text != tt.want {
				t.Errorf("got %q, %v, want %q", text, err, tt.want)
			}
		})
	}
	if _, err := ParseItems(strings.Repeat("a,", MaxItems+1)); !errors.Is(err, errItems) {
		t.Errorf("got %v, want %v", err, errItems)
	}
}

func TestValues(t *testing.T) {
	tests := map[string]struct {
		s          Service
		key, value string
		want       string // "!": refused
	}{
		"credentials":           {Credentials, "label", "user:pass:word", "user:pass:word"},
		"credentials, key":      {Credentials, "label", "password", "label:password"},
		"credentials, scram":    {Credentials, "u", "SCRAM-SHA-256$4096:c2E=$YQ==:Yg==", "u:SCRAM-SHA-256$4096:c2E=$YQ==:Yg=="},
		"credentials, first":    {Credentials, "label", ":password", "!"},
		"credentials, last":     {Credentials, "label", "user:", "!"},
		"userinfo":              {Userinfo, "u", "1001:100:/home/u", "1001:100:/home/u"},
		"userinfo, no home":     {Userinfo, "u", "1001:100", "!"},
		"userinfo, home":        {Userinfo, "u", "1001:100:home", "!"},
		"userinfo, uid":         {Userinfo, "u", "root:100:/home/u", "!"},
		"userinfo, negative":    {Userinfo, "u", "-1:100:/home/u", "!"},
		"userinfo, large":       {Userinfo, "u", "4294967296:100:/home/u", "!"},
		"source":                {Source, "", "[IPv6:2001:DB8::1]", "2001:db8::1"},
		"source, name":          {Source, "", "localhost", "!"},
		"addrname":              {Addrname, "127.0.0.1", "mx.example.org", "mx.example.org"},
		"addrname, blank":       {Addrname, "127.0.0.1", "mx example", "!"},
		"mailaddrmap":           {Mailaddrmap, "u", "a@b.org, @c.org, d", "a@b.org, @c.org, d"},
		"mailaddrmap, wild":     {Mailaddrmap, "u", "*@c.org", "!"},
		"mailaddrmap, bad":      {Mailaddrmap, "u", "a b", "!"},
		"relayhost":             {Relayhost, "", "smtp+tls://label@mx:587", "smtp+tls://label@mx:587"},
		"relayhost, bad":        {Relayhost, "", "gopher://mx", "!"},
		"line feed":             {Alias, "a", "b\nc", "!"},
		"nul":                   {String, "a", "b\x00c", "!"},
		"too long":              {Alias, "a", strings.Repeat("x", MaxValue+1), "!"},
		"tab":                   {Alias, "a", "b,\tc", "b,\tc"},
		"anything for a string": {String, "a", "!§$", "!§$"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := normalize(tt.s, tt.key, tt.value)
			if err != nil {
				got = "!"
			}
			if got != tt.want {
				t.Errorf("got %q, %v, want %q", got, err, tt.want)
			}
		})
	}
}

func TestCheckEntry(t *testing.T) {
	good := map[Service][][2]string{
		Netaddr: {{"192.0.2.0/24"}, {"local"}, {"[::1]"}}, Mailaddr: {{"a@b"}, {"@*.b"}, {"a"}, {"@"}, {""}}, Regex: {{"^a$"}},
		Alias: {{"a", "b, c@d"}}, Source: {{"192.0.2.1"}, {"k", "192.0.2.1"}}, Relayhost: {{"smtp://x"}, {"d", "mx"}},
		Userinfo: {{"u", "1:1:/"}}, Domain: {{"*.x"}}, String: {{"any"}},
	}
	bad := map[Service][][2]string{
		Netaddr: {{"x"}, {"1.2.3.4/33"}}, Mailaddr: {{"a b@c"}, {"*@c d"}}, Regex: {{"("}}, Alias: {{"a", "b c"}},
		Source: {{"x"}}, Relayhost: {{"x://y"}}, Userinfo: {{"u", "x"}},
	}
	for s, entries := range good {
		for _, e := range entries {
			if err := CheckEntry(s, e[0], e[1]); err != nil {
				t.Errorf("%s %q: %v", s, e, err)
			}
		}
	}
	for s, entries := range bad {
		for _, e := range entries {
			if err := CheckEntry(s, e[0], e[1]); err == nil {
				t.Errorf("%s %q: is taken", s, e)
			}
		}
	}
}

func TestKeys(t *testing.T) {
	tests := map[string]struct {
		s         Service
		key, want string // "!": refused
	}{
		"folded":           {Alias, "AbÄ", "abÄ"},
		"password is not":  {Auth, "User:PassWord:X", "user:PassWord:X"},
		"no password":      {Auth, "user", "!"},
		"line feed":        {Alias, "a\nb", "!"},
		"carriage return":  {Alias, "a\rb", "!"},
		"nul":              {Alias, "a\x00", "!"},
		"long":             {Alias, strings.Repeat("a", MaxKey), strings.Repeat("a", MaxKey)},
		"too long":         {Alias, strings.Repeat("a", MaxKey+1), "!"},
		"not utf-8":        {Alias, "A\xffB", "a\xffb"},
		"bars and percent": {Alias, "A|b%s", "a|b%s"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := foldKey(tt.s, tt.key)
			if err != nil {
				got = "!"
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestFileUpdate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t")
	old := time.Now().Add(-time.Hour)
	write := func(text string, when time.Time) {
		os.WriteFile(path, []byte(text), 0o644)
		os.Chtimes(path, when, when)
	}
	write("a b\n", old)
	b, err := NewFile(path, "+", nil)
	if err != nil {
		t.Fatal(err)
	}
	tab := New("t", "file", b)
	expect := func(step, want string, changed bool) {
		t.Helper()
		if got := tab.Stale(); got != changed {
			t.Errorf("%s: stale is %v", step, got)
		}
		tab.Changed()
		if got := tab.Changed(); got != changed {
			t.Errorf("%s: changed is %v", step, got)
		}
		if v, err := tab.Lookup(t.Context(), Alias, "a"); v != want {
			t.Errorf("%s: got %q, %v, want %q", step, v, err, want)
		}
	}
	expect("at first", "b", false)
	write("a c\n", old.Add(time.Second))
	expect("written", "b", true)
	tab.Update(t.Context())
	expect("updated", "c", false)
	write("a\nb c\n", old.Add(2*time.Second))
	if err := tab.Update(t.Context()); err == nil || !strings.Contains(err.Error(), "t:2: invalid map entry") {
		t.Errorf("got %v", err)
	}
	expect("broken", "c", false) // told once
	os.Remove(path)
	expect("gone", "c", true)
	tab.Update(t.Context())
	expect("still gone", "c", false)
	if st := tab.Stats(); st.Errors != 2 || !strings.Contains(st.LastError, "no such file") || st.Entries != 1 {
		t.Errorf("got %+v", st)
	}
	write("a d\n", time.Now()) // just now: it may change again within the same moment
	tab.Update(t.Context())
	expect("just now", "d", false)
}

func TestFetch(t *testing.T) {
	tab := New("t", "static", NewList("192.0.2.3", "192.0.2.1", "192.0.2.2"))
	var got []string
	for range 4 {
		v, err := tab.Fetch(t.Context(), Source)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, v)
	}
	if want := "192.0.2.1 192.0.2.2 192.0.2.3 192.0.2.1"; strings.Join(got, " ") != want {
		t.Errorf("got %v, want %s", got, want)
	}
	if _, err := New("t", "static", NewList()).Fetch(t.Context(), Source); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
	if _, err := New("t", "static", NewList("nonsense")).Fetch(t.Context(), Source); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

func TestServiceNames(t *testing.T) {
	for i, name := range serviceNames {
		s, ok := ParseService(name)
		if !ok || s != 1<<i || s.String() != name {
			t.Errorf("%s gives %v, %v", name, s, ok)
		}
	}
	if _, ok := ParseService("frobnicate"); ok || (Alias|Auth).String() != "alias,auth" {
		t.Error("services have wrong names")
	}
}

// TestLarge has the million domains and hundred thousand aliases that a table
// must bear.
func TestLarge(t *testing.T) {
	if testing.Short() {
		t.Skip("large")
	}
	const domains, aliases = 1_000_000, 100_000
	dir := t.TempDir()
	list, mapping := filepath.Join(dir, "domains"), filepath.Join(dir, "aliases")
	writeLines(t, list, domains, func(i int) string { return fmt.Sprintf("domain%d.example.org", i) })
	writeLines(t, mapping, aliases, func(i int) string { return fmt.Sprintf("alias%d: user%d@example.org", i, i) })
	for path, n := range map[string]int{list: domains, mapping: aliases} {
		before, start := heap(), processorTime()
		b, err := NewFile(path, "+", nil)
		if err != nil {
			t.Fatal(err)
		}
		took := processorTime() - start
		fi, _ := os.Stat(path)
		over := (int64(heap()) - int64(before) - fi.Size()) / int64(n)
		t.Logf("%s: %d entries in %v of the processor, %d octets each over the text", filepath.Base(path), n, took, over)
		if took > 2*time.Second || over > 100 || b.(counted).Len() != n {
			t.Errorf("%s: %d entries in %v, %d octets each over the text", path, b.(counted).Len(), took, over)
		}
		rates(t, New("t", "file", b), path == list)
		runtime.KeepAlive(b)
	}
}

// rates: over 200,000 questions in a second, without an allocation, and as many
// when the answer is no. The best of many short runs is what counts: others may
// have the processor.
func rates(t *testing.T, tab *Table, list bool) {
	t.Helper()
	const questions = 2000
	ask := func(word string) func() {
		return func() {
			if list {
				tab.Check(t.Context(), Domain, word+"777.example.org")
			} else {
				tab.Lookup(t.Context(), Alias, word+"777")
			}
		}
	}
	hit, miss := ask(map[bool]string{true: "domain", false: "alias"}[list]), ask("nosuch")
	best := map[string]time.Duration{"hit": time.Hour, "miss": time.Hour}
	for range 50 {
		for name, f := range map[string]func(){"hit": hit, "miss": miss} {
			start := time.Now()
			for range questions {
				f()
			}
			best[name] = min(best[name], time.Since(start))
		}
	}
	t.Logf("hit %v, miss %v", best["hit"]/questions, best["miss"]/questions)
	for name, d := range best {
		if d > questions*time.Second/200_000 || d > 3*best["hit"] {
			t.Errorf("%s: %v a question", name, d/questions)
		}
	}
	if a, b := testing.AllocsPerRun(100, hit), testing.AllocsPerRun(100, miss); a > 1 || b > 1 { // one: the key of the test
		t.Errorf("hit %v, miss %v allocations", a, b)
	}
}

// processorTime is what this process has used.
func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func writeLines(t testing.TB, path string, n int, line func(int) string) {
	t.Helper()
	var b strings.Builder
	for i := range n {
		b.WriteString(line(i) + "\n")
	}
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func BenchmarkDomains(b *testing.B) {
	path := filepath.Join(b.TempDir(), "domains")
	writeLines(b, path, 1_000_000, func(i int) string { return fmt.Sprintf("domain%d.example.org", i) })
	back, err := NewFile(path, "+", nil)
	if err != nil {
		b.Fatal(err)
	}
	tab := New("t", "file", back)
	for name, key := range map[string]string{"hit": "domain777777.example.org", "miss": "nosuch.example.org"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				tab.Check(b.Context(), Domain, key)
			}
		})
	}
}

func FuzzParseText(f *testing.F) {
	f.Add("a b\nc: d\n")
	f.Add("# @list\n[::1]\n")
	f.Fuzz(func(t *testing.T, text string) {
		var out strings.Builder
		var n int
		typ, err := parseText("f", text, func(k, v string) {
			n++
			if strings.ContainsAny(k+v, "\n\r\x00") || k == "" {
				t.Errorf("%q gives %q, %q", text, k, v)
			}
			if v == "" {
				out.WriteString(k + "\n")
			} else {
				out.WriteString(k + "\t" + v + "\n")
			}
		})
		if err != nil || typ == config.TableList {
			return
		}
		again := 0
		typ2, err := parseText("f", out.String(), func(k, v string) { again++ })
		if err != nil || typ2 != typ || again != n {
			t.Errorf("%q gives %d entries, then %d, %v", text, n, again, err)
		}
	})
}

func FuzzParseItems(f *testing.F) {
	for _, s := range []string{"a, b@c", `"|x, y"`, "error:550 no", ":include:/x", `\a # b`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, list string) {
		items, err := ParseItems(list)
		if err != nil {
			return
		}
		for _, it := range items {
			if it.Text == "" || strings.ContainsAny(it.Text, "\n\r\x00") || len(it.Text) > len(list) {
				t.Errorf("%q gives %+v", list, it)
			}
		}
	})
}

// FuzzQuestion: what is read as a question asks for the same when it is written
// again.
func FuzzQuestion(f *testing.F) {
	f.Add("table|0.1|1795217242.635127|t1|lookup|alias|5bbdfb78|vu@tbl.test")
	f.Add("table|0.1|1.2|t|fetch|source|5a95a8d1")
	f.Add("table|0.1|1.2|t|update|16ef8b7b")
	f.Add("table|0.1|1.2|t|check|auth|ba946f24|dora:p|w")
	f.Fuzz(func(t *testing.T, line string) {
		q, err := parseQuestion(line)
		if err != nil || strings.Contains(q.id, "|") {
			return
		}
		again, err := parseQuestion(strings.TrimSuffix(string((&lines{name: "t"}).encode(q.op, q.service, q.id, q.key)), "\n"))
		if err != nil || again != q {
			t.Errorf("%q: got %+v, %v, want %+v", line, again, err, q)
		}
	})
}

func FuzzRegex(f *testing.F) {
	for _, s := range []string{"^a[[:alpha:]]$", `[\]]`, "[^]x]", `a{2}\<`} {
		f.Add(s, "abc")
	}
	f.Fuzz(func(t *testing.T, pattern, key string) {
		if len(pattern) > 200 {
			return
		}
		re, err := compileRegex(pattern)
		if err != nil {
			return
		}
		re.MatchString(key)
		// Where both read a pattern the same way, they agree.
		if posix, err := regexp.CompilePOSIX(pattern); err == nil && !strings.ContainsAny(pattern, `\[^$.`) && pattern == strings.ToLower(pattern) && key == strings.ToLower(key) {
			if posix.MatchString(key) != re.MatchString(key) {
				t.Errorf("%q against %q: got %v", key, pattern, re.MatchString(key))
			}
		}
	})
}

func FuzzMatchDomain(f *testing.F) {
	f.Add("a.example.org", "*.example.org")
	f.Fuzz(func(t *testing.T, domain, pattern string) {
		if hasControl(pattern) || isPattern(domain) {
			return
		}
		want := matchDomain(domain, pattern)
		ix := newIndex(config.TableList, 1, options{})
		ix.add(pattern, "")
		if got := ix.check(Domain, Fold(domain)); got != want {
			t.Errorf("%q against %q: got %v alone, %v in a list", domain, pattern, want, got)
		}
	})
}

func FuzzReply(f *testing.F) {
	f.Add("lookup-result", "found|x")
	f.Add("check-result", "not-found")
	f.Fuzz(func(t *testing.T, word, rest string) {
		for op := opCheck; op <= opUpdate; op++ {
			r, ok := decodeReply(op, word, rest)
			if !ok && r.err == nil || r.err != nil && r.found || r.value != "" && !r.found {
				t.Errorf("got %+v, %v", r, ok)
			}
		}
		if q, err := parseQuestion(word + "|" + rest); err == nil && strings.Contains(q.id, "|") {
			t.Errorf("got %+v", q)
		}
		decodeAnswer(opLookup, []byte(rest))
		readFrame(strings.NewReader(rest))
	})
}

// TestChangedAtRest: a file that is being written is not read yet.
func TestChangedAtRest(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t")
	old := time.Now().Add(-time.Hour)
	write := func(text string, age time.Duration) {
		os.WriteFile(path, []byte(text), 0o644)
		os.Chtimes(path, old.Add(age), old.Add(age))
	}
	write("a b\n", 0)
	b, err := NewFile(path, "+", nil)
	if err != nil {
		t.Fatal(err)
	}
	tab := New("t", "file", b)
	tab.Changed()
	for n := range 3 {
		write(strings.Repeat("a b\n", n+2), time.Duration(n+1)*time.Second)
		if tab.Changed() {
			t.Error("changed while it grows")
		}
		if !tab.Stale() {
			t.Error("not stale")
		}
	}
	if !tab.Changed() {
		t.Error("not changed when it rests")
	}
}

// TestOpenerAndShare: a file is opened by who may, and a shared table is closed
// by the last.
func TestOpenerAndShare(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t")
	os.WriteFile(path, []byte("a b\n"), 0o644)
	hidden := &config.Table{Name: "t", Backend: "file", Param: "/nonexistent/t", Type: config.TableMapping}
	asked := 0
	open := func(name string) (*os.File, error) {
		if asked++; name != hidden.Param {
			t.Errorf("asked for %s", name)
		}
		return os.Open(path)
	}
	one, err := OpenSet(map[string]*config.Table{"t": hidden}, Options{Open: open})
	if err != nil {
		t.Fatal(err)
	}
	two, err := OpenSet(map[string]*config.Table{"t": hidden}, Options{Share: func(name string) *Table { return one.Table(name).Share() }})
	if err != nil || asked != 1 {
		t.Fatal(asked, err)
	}
	one.Close()
	if v, err := two.Lookup(t.Context(), "t", Alias, "a"); v != "b" {
		t.Errorf("after one has closed it: %q, %v", v, err)
	}
	if err := two.Close(); err != nil {
		t.Error(err)
	}
}

// The keys of a table in memory make a list that answers Check as the table does,
// expressions with capitals included; of what is too long, or somewhere else, there
// are none.
func TestKeyList(t *testing.T) {
	c := &config.Table{Name: "t", Backend: "static", Type: config.TableMapping, Pairs: [][2]string{
		{"*.Example.org", "x"}, {`^\W+$`, "y"}, {"192.0.2.0/24", "z"}, {"@a.org", "z"}}}
	whole, err := Open(c, Options{Delim: "+"})
	if err != nil {
		t.Fatal(err)
	}
	keys, ok := whole.Keys(1000)
	if !ok || len(keys) != 4 {
		t.Fatalf("got %q, %v", keys, ok)
	}
	list, err := Open(&config.Table{Name: "t", Backend: "static", Type: config.TableList, List: keys}, Options{Delim: "+"})
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range []struct {
		s   Service
		key string
	}{{Domain, "MX.example.org"}, {Domain, "example.com"}, {Regex, "--"}, {Regex, "ab"}, {Netaddr, "192.0.2.7"}, {Netaddr, "192.0.3.7"},
		{Mailaddr, "u+t@a.org"}, {Mailaddr, "u@b.org"}, {String, "@a.org"}, {String, "x"}} {
		a, err1 := whole.Check(t.Context(), q.s, q.key)
		b, err2 := list.Check(t.Context(), q.s, q.key)
		if a != b || err1 != nil || err2 != nil {
			t.Errorf("%v %q: %v, %v; copy %v, %v", q.s, q.key, a, err1, b, err2)
		}
	}
	length := 0
	for _, k := range keys {
		length += len(k) + 1
	}
	if _, ok := whole.Keys(length); !ok {
		t.Error("the bound itself is refused")
	}
	if _, ok := whole.Keys(length - 1); ok {
		t.Error("more than the bound")
	}
	if _, ok := New("t", "getpwnam", NewGetpwnam(nil)).Keys(1000); ok {
		t.Error("keys of the system's users")
	}
}
