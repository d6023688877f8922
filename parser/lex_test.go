package parser

import (
	"fmt"
	"strings"
	"testing"
)

// lexText reads text as the file x and shows its tokens.
func lexText(t testing.TB, text string, macros map[string]string) (string, *diagList) {
	t.Helper()
	d := &diagList{sources: []source{{name: "x", parent: -1}}}
	l := newLexer(&fake{files: map[string]fakeFile{
		"/inc":  {"inside\n", 0o600, 0},
		"/loop": {"include \"/loop2\"\n", 0o600, 0}, "/loop2": {"include \"/loop\"\n", 0o600, 0},
		"/macro": {"m = v", 0o600, 0},
	}}, d, macros)
	l.sources = d.sources
	l.file(0, text)
	var b strings.Builder
	for _, k := range l.tokens {
		switch k.kind {
		case tokNL:
			b.WriteString("| ")
		case tokString:
			fmt.Fprintf(&b, "%q ", k.text)
		case tokNumber:
			fmt.Fprintf(&b, "#%s ", k.text)
		case tokUnquoted:
			fmt.Fprintf(&b, "?%s ", k.text)
		case tokError:
			b.WriteString("ERR ")
		default:
			b.WriteString(k.text + " ")
		}
	}
	return strings.TrimSpace(b.String()), d
}

func TestLex(t *testing.T) {
	tests := map[string]struct {
		in, want string
		diag     string // of the first diagnostic
	}{
		"words":              {"a b\n", "a b |", ""},
		"no line end":        {"a b", "a b |", ""},
		"empty lines":        {"\n\n a\n\n", "a |", ""},
		"continuation":       {"a \\\n b\n", "a b |", ""},
		"joined word":        {"ab\\\ncd\n", "abcd |", ""},
		"backslash dropped":  {"a\\bc\n", "abc |", "x:1: warning: a backslash"},
		"backslash hash":     {"a \\# b\n", "a |", "x:1: warning: a backslash"},
		"comment":            {"a # b\nc", "a | c |", ""},
		"comment after word": {"\"out\"#x\n", "\"out\" |", ""},
		"comment goes on":    {"# a \\\nb\nc\n", "c |", "x:1: warning: the comment ends in a backslash"},
		"comment, two":       {"# a \\\\\nb\n", "b |", ""},
		"quotes":             {`"a b" 'c "d"' "e'f"`, `"a b" "c \"d\"" "e'f" |`, ""},
		"escaped quote":      {`"a\"b"`, `"a\"b" |`, ""},
		"escaped blank":      {`"a\ b"`, `"a b" |`, ""},
		"kept backslash":     {`"a\.b\\c"`, `"a\\.b\\\\c" |`, ""},
		"line end in quotes": {"\"a\nb\" c", `"ab" c |`, ""},
		"no end of quotes":   {"a\n\"b\nc\n", "a | ERR |", "x:3: reached end of file"},
		"NUL in quotes":      {"\"a\x00b\" c\nd", "ERR | d |", "x:1: syntax error: NUL"},
		"network":            {"10.0.0.0/8 smtp+tls://a@h:25 u@h", "10.0.0.0/8 smtp+tls://a@h:25 u@h |", ""},
		"starts":             {":a _b 9c", ":a _b 9c |", ""},
		"must be quoted":     {"/etc/x *.org @a .b -c [d] ~e %f", "?/etc/x ?*.org ?@a ?.b ?-c ?[d] ?~e ?%f |", ""},
		"numbers":            {"1 -2 3,4)5/6}7=8 9", "#1 #-2 #3 , #4 ) #5 ?/6 } #7 = #8 #9 |", ""},
		"no numbers":         {"4h 35M 1st 10.0.0.1", "4h 35M 1st 10.0.0.1 |", ""},
		"too large":          {"99999999999999999999", "ERR |", `x:1: "99999999999999999999" invalid number: too large`},
		"too small":          {"-99999999999999999999", "ERR |", `x:1: "-99999999999999999999" invalid number: too small`},
		"largest":            {"9223372036854775807", "#9223372036854775807 |", ""},
		"operators":          {"{a,b}=>!<c >(d)=", "{ a , b } => ! < c > ( d ) = |", ""},
		"macro":              {"m = v\nx $m", "m = v | x v |", ""},
		"macro of tokens":    {"m = \"a b\"\nx $m y", "m = \"a b\" | x a b y |", ""},
		"macro glued":        {"m = \"1.2\"\n$m.3", "m = \"1.2\" | 1.2.3 |", ""},
		"macro quoted":       {"p = \"\\\"/etc\\\"\"\nx $p", `p = "\"/etc\"" | x "/etc" |`, ""},
		"macro in a word":    {"m = v\na$m", "m = v | a$m |", ""},
		"macro in quotes":    {"m = v\n\"$m\"", "m = v | \"$m\" |", ""},
		"macro undefined":    {"mine = v\nx $min\ny", "mine = v | x ERR | y |", "x:2: macro 'min' not defined, did you mean \"mine\"?"},
		"macro in macro":     {"m = \"$n\"\n$m", "m = \"$n\" | ERR |", "x:2: a macro inside"},
		"macro redefined":    {"m = a\nm = b\n$m", "m = a | m = b | b |", ""},
		"macro name":         {"\"a b\" = c", "\"a b\" = c |", "x:1: macro name cannot contain whitespace"},
		"macro not in table": {"t {\na = b\n}\n$a", "t { | a = b | } | ERR |", "x:4: macro 'a' not defined"},
		"macro of comment":   {"m = \"a # b\"\n$m c\nd", "m = \"a # b\" | a | d |", ""},
		"include":            {"include \"/inc\"\nb", "include \"/inc\" | inside | b |", ""},
		"include macro":      {"include \"/macro\"\n$m", "include \"/macro\" | m = v | v |", ""},
		"include missing":    {"include \"/none\"\nb", "include \"/none\" | b |", "x:1: failed to include file /none"},
		"include itself":     {"include \"/loop\"", "include \"/loop\" | include \"/loop2\" | include \"/loop\" |", "/loop2:1: failed to include"},
		"include relative":   {"include inc", "include inc |", "x:1: warning: include \"inc\" is relative"},
		"carriage return":    {"a\r\nb\r\n", "a | b |", "x:1: carriage return in file"},
		"long":               {strings.Repeat("a", maxToken), strings.Repeat("a", maxToken) + " |", ""},
		"too long":           {"b " + strings.Repeat("a", maxToken+1) + " c\nd", "b ERR | d |", "x:1: string too long"},
		"quoted too long":    {"\"" + strings.Repeat("a", maxToken+1) + "\"\nd", "ERR | d |", "x:1: string too long"},
		"eight bit":          {"\xe4b c", "?\xe4b c |", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, d := lexText(t, tt.in, nil)
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			var first string
			if diags := d.sorted(); len(diags) > 0 {
				first = diags[0].String()
			}
			if !strings.HasPrefix(first, tt.diag) || (tt.diag == "") != (first == "") {
				t.Errorf("got diagnostic %q, want %q", first, tt.diag)
			}
		})
	}
}

func TestLexDefines(t *testing.T) {
	got, _ := lexText(t, "m = file\n$m $n\n", map[string]string{"m": "line", "n": "a\nb"})
	if want := "m = file | line a | b |"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestLexBounds: what can be repeated is bounded.
func TestLexBounds(t *testing.T) {
	big := "m = \"" + strings.Repeat("ab ", 2600) + "\"\n" + strings.Repeat("$m\n", 10000)
	if _, d := lexText(t, big, nil); d.errors == 0 {
		t.Error("macros expand without a bound")
	}
	files := map[string]fakeFile{}
	for i := range 14 { // 2^14 inclusions
		next := fmt.Sprintf("include \"/f%d\"\n", i+1)
		files[fmt.Sprintf("/f%d", i)] = fakeFile{next + next, 0o600, 0}
	}
	files["/f14"] = fakeFile{"a\n", 0o600, 0}
	d := &diagList{sources: []source{{name: "x", parent: -1}}}
	l := newLexer(&fake{files: files}, d, nil)
	l.sources = d.sources
	l.file(0, "include \"/f0\"\n")
	if d.errors == 0 || len(l.sources) > maxFiles+2 {
		t.Errorf("%d errors, %d files", d.errors, len(l.sources))
	}
	deep := map[string]fakeFile{}
	for i := range 30 {
		deep[fmt.Sprintf("/f%d", i)] = fakeFile{fmt.Sprintf("include \"/f%d\"\n", i+1), 0o600, 0}
	}
	d = &diagList{sources: []source{{name: "x", parent: -1}}}
	l = newLexer(&fake{files: deep}, d, nil)
	l.sources = d.sources
	l.file(0, "include \"/f0\"\n")
	if diags := d.sorted(); len(diags) != 1 || !strings.Contains(diags[0].Text, "more than 16 deep") {
		t.Errorf("got %v", diags)
	}
}

func TestSplitMacro(t *testing.T) {
	tests := map[string]struct {
		name, value string
		ok          bool
	}{
		"a=b": {"a", "b", true}, "a=b=c": {"a=b", "c", true}, "a=": {"a", "", true},
		"=b": {"", "", false}, "ab": {"", "", false},
	}
	for in, tt := range tests {
		name, value, ok := SplitMacro(in)
		if name != tt.name || value != tt.value || ok != tt.ok {
			t.Errorf("%q: got %q %q %t", in, name, value, ok)
		}
	}
}
