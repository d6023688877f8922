package parser

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"smtpd/internal/config"
)

var update = flag.Bool("update", false, "write the golden files anew")

const corpusDir = "../testdata/conf"

// corpusCase is what the header comments of a corpus file say.
type corpusCase struct {
	name     string // seeds/000-...
	ok       bool
	from, to int // lines where the first error may be; 0: anywhere
	infile   string
	macros   map[string]string
}

var headerLine = regexp.MustCompile(`^#\s*([a-z]+):\s*(.*?)\s*$`)
var lineRange = regexp.MustCompile(`line (\d+)(?:-(\d+))?`)

func readCase(t *testing.T, path string) corpusCase {
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	rel, err := filepath.Rel(corpusDir, path)
	if err != nil {
		t.Fatal(err)
	}
	c := corpusCase{name: filepath.ToSlash(rel), macros: map[string]string{}}
	for line := range strings.Lines(string(data)) {
		m := headerLine.FindStringSubmatch(strings.TrimRight(line, "\r\n"))
		switch {
		case m == nil && !strings.HasPrefix(line, "#"):
			return c
		case m == nil:
		case m[1] == "expect":
			c.ok = strings.HasPrefix(m[2], "ok")
			if r := lineRange.FindStringSubmatch(m[2]); r != nil {
				c.from, _ = strconv.Atoi(r[1])
				c.to = c.from
				if r[2] != "" {
					c.to, _ = strconv.Atoi(r[2])
				}
			}
		case m[1] == "infile":
			c.infile = m[2]
		case m[1] == "args":
			if name, value, ok := SplitMacro(strings.TrimSpace(strings.TrimPrefix(m[2], "-D"))); ok {
				c.macros[name] = value
			}
		}
	}
	return c
}

// misprinted are files whose header names another line than the one that is
// wrong: a comment was put in above it.
var misprinted = map[string]int{"invalid/100-pki-nokey.conf": 5}

// TestCorpus reads every file of the corpus: the verdict and the line are those
// of its header, and what is printed is in the file .want beside it.
func TestCorpus(t *testing.T) {
	files, err := filepath.Glob(corpusDir + "/*/*.conf")
	if err != nil || len(files) < 250 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	sys := newFake(t)
	sys.conf = corpusDir
	for _, path := range files {
		c := readCase(t, path)
		t.Run(c.name, func(t *testing.T) {
			if line := misprinted[c.name]; line != 0 {
				c.from, c.to = line, line
			}
			o := Options{File: "/conf/" + c.name, Macros: c.macros, System: sys, Now: now, CheckOnly: true}
			cfg, diags := Parse(t.Context(), o)
			checkVerdict(t, c, cfg, diags)
			text, _ := Modern(t.Context(), o)
			golden(t, strings.TrimSuffix(path, ".conf")+".want", report(diags, text))
			if c.ok {
				sameMeaning(t, o, cfg, text)
			}
		})
	}
}

func checkVerdict(t *testing.T, c corpusCase, cfg *config.Config, diags Diagnostics) {
	t.Helper()
	if diags.Failed() == c.ok || (cfg == nil) == c.ok {
		t.Fatalf("accepted: %t, want %t\n%s", !diags.Failed(), c.ok, report(diags, ""))
	}
	if c.ok || c.from == 0 {
		return
	}
	for _, d := range diags {
		if d.Warning || d.Line == 0 || (c.infile != "" && !strings.HasSuffix(d.File, "/"+c.infile)) {
			continue
		}
		if d.Line < c.from || d.Line > c.to {
			t.Errorf("first error in line %d, want %d-%d\n%s", d.Line, c.from, c.to, report(diags, ""))
		}
		return
	}
	t.Errorf("no error with a line\n%s", report(diags, ""))
}

func report(diags Diagnostics, text string) string {
	var b strings.Builder
	for _, d := range diags {
		b.WriteString(d.String() + "\n")
	}
	if !diags.Failed() {
		b.WriteString("--\n" + text)
	}
	return b.String()
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", path, got, want)
	}
}

// sameMeaning reads the printed configuration, which must be accepted as it is
// and come to the same. Only the name that a file of 4.6 to 5.2 gives the
// server has no place in the present language but with listeners and relays.
func sameMeaning(t *testing.T, o Options, cfg *config.Config, text string) {
	t.Helper()
	o.Text, o.Macros = []byte(text), nil
	again, diags := Parse(t.Context(), o)
	if again == nil {
		t.Fatalf("the printed text is refused:\n%s\n%s", report(diags, ""), text)
	}
	for _, d := range diags {
		if strings.Contains(d.Text, "written in the language") {
			t.Errorf("the printed text is of an older language: %s", d)
		}
	}
	if got, want := model(t, again), model(t, cfg); got != want {
		t.Errorf("the printed text means\n%s\nthe file\n%s\n%s", got, want, text)
	}
	if twice, _ := Modern(t.Context(), o); twice != text {
		t.Errorf("printed twice: got\n%s\nwant\n%s", twice, text)
	}
}

// model is a configuration without its positions.
func model(t *testing.T, c *config.Config) string {
	t.Helper()
	same := *c
	same.ServerName, same.LocalNames = "", nil
	data, err := json.MarshalIndent(&same, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	var tree any
	if err := json.Unmarshal(data, &tree); err != nil {
		t.Fatal(err)
	}
	dropPos(tree)
	data, err = json.MarshalIndent(tree, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func dropPos(v any) {
	switch v := v.(type) {
	case map[string]any:
		delete(v, "Pos")
		for _, x := range v {
			dropPos(x)
		}
	case []any:
		for _, x := range v {
			dropPos(x)
		}
	}
}
