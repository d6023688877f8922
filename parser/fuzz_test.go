package parser

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// addCorpus gives a fuzz target the texts of some folders of the corpus.
func addCorpus(f *testing.F, dirs ...string) {
	for _, dir := range dirs {
		files, err := filepath.Glob(filepath.Join(corpusDir, dir, "*.conf"))
		if err != nil {
			f.Fatal(err)
		}
		for _, name := range files {
			data, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(string(data))
		}
	}
}

// FuzzLex: no panic, and what was read as bare words and strings, written
// again, is read the same.
func FuzzLex(f *testing.F) {
	addCorpus(f, "d3", "invalid")
	f.Fuzz(func(t *testing.T, text string) {
		d := &diagList{sources: []source{{name: "x", parent: -1}}}
		l := newLexer(&fake{files: map[string]fakeFile{"/inc": {text, 0o600, 0}}}, d, nil)
		l.sources = d.sources
		l.file(0, text)
		for i := range l.tokens {
			k := &l.tokens[i]
			if k.kind != tokWord && k.kind != tokString && k.kind != tokNumber {
				continue
			}
			d2 := &diagList{sources: []source{{name: "y", parent: -1}}}
			l2 := newLexer(&fake{}, d2, nil)
			l2.sources = d2.sources
			l2.file(0, spell(k)+"\n")
			if len(l2.tokens) != 2 || l2.tokens[0].text != k.text || (l2.tokens[0].kind == tokNumber) != (k.kind == tokNumber) {
				t.Fatalf("%q is written %s and read as %v", k.text, spell(k), l2.tokens)
			}
		}
	})
}

func FuzzModernGrammar(f *testing.F) {
	addCorpus(f, "d3", "invalid")
	f.Fuzz(func(t *testing.T, text string) { fuzzText(t, text) })
}

func FuzzAcceptGrammar(f *testing.F) {
	addCorpus(f, "d2")
	f.Fuzz(func(t *testing.T, text string) { fuzzText(t, text) })
}

func FuzzMapGrammar(f *testing.F) {
	addCorpus(f, "d1", "seeds")
	f.Fuzz(func(t *testing.T, text string) { fuzzText(t, text) })
}

// FuzzPrint is the grammars' property on the smallest texts: names and values
// in every place.
func FuzzPrint(f *testing.F) {
	f.Add("a", "b", "c")
	f.Add("/x", "\\ ", "\"")
	f.Add("1", "match", "é")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		q := func(s string) string {
			return quote(strings.Map(func(r rune) rune {
				if r == '\n' || r == 0 {
					return -1
				}
				return r
			}, s))
		}
		fuzzText(t, fmt.Sprintf("table %s { %s = %s }\naction %s relay host { %s, %s } helo %s\n"+
			"match tag %s from mail-from regex %s for domain <%s> action %s # %s",
			q(a), q(b), q(c), q(a), q(b), q(c), q(c), q(b), q(a), q(c), q(a), strings.ReplaceAll(b, "\n", " ")))
	})
}

// fuzzText checks a text as a whole: no panic; and when it can be read, its
// tree printed and read again is the same tree, in the present language.
func fuzzText(t *testing.T, text string) {
	sys := &fake{files: map[string]fakeFile{
		"/etc/mail/aliases":          {tableTexts["aliases"], 0o644, 0},
		"/etc/mail/virtuals":         {tableTexts["virtuals"], 0o644, 0},
		"/etc/mail/certs/rl0.crt":    {"", 0o644, 0},
		"@DIR@/023-part.inc":         {"action \"fromfile\" relay # c", 0o600, 0},
		"/etc/mail/certs/relay1.crt": {"", 0o644, 0},
	}, users: []string{"vmail"}}
	o := sys.options(text)
	if _, d := Parse(t.Context(), o); len(d) > maxDiagnostics {
		t.Fatalf("%d diagnostics", len(d))
	}
	o.fill(t.Context())
	in := load(&o)
	if in.diags.errors > 0 {
		return
	}
	first := in.tree.resolved(in.diags.sources)
	printed := printTree(first)
	o.Text = []byte(printed)
	again := load(&o)
	if again.diags.errors > 0 {
		t.Fatalf("printed text is refused: %v\n%s", again.diags.sorted(), printed)
	}
	if again.dialect.kind != modern {
		t.Fatalf("printed text is of an older language:\n%s", printed)
	}
	second := again.tree.resolved(again.diags.sources)
	if got, want := dump(second), dump(first); got != want {
		t.Fatalf("printed text is read as\n%s\nwant\n%s\ntext\n%s", got, want, printed)
	}
}

// dump shows a tree without positions; how a token was quoted does not count.
func dump(t *tree) string {
	var b strings.Builder
	dumpValue(&b, reflect.ValueOf(t))
	return b.String()
}

func dumpValue(b *strings.Builder, v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			dumpValue(b, v.Elem())
		}
	case reflect.Slice:
		b.WriteByte('[')
		for i := range v.Len() {
			dumpValue(b, v.Index(i))
			b.WriteByte(' ')
		}
		b.WriteByte(']')
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[token]() {
			fmt.Fprintf(b, "%q/%t", v.FieldByName("text").String(), v.FieldByName("kind").Uint() == uint64(tokNumber))
			return
		}
		fmt.Fprintf(b, "%s{", v.Type().Name())
		for i := range v.NumField() {
			if f := v.Type().Field(i).Name; f != "pos" && f != "isMap" { // neither means anything

				dumpValue(b, v.Field(i))
				b.WriteByte(',')
			}
		}
		b.WriteByte('}')
	case reflect.String:
		fmt.Fprintf(b, "%q", v.String())
	default:
		fmt.Fprint(b, v)
	}
}
