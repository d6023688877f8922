package parser

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// examples are the displays of a manual page that hold configurations.
func examples(t *testing.T, page string) []string {
	t.Helper()
	data, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	display := regexp.MustCompile(`(?s)\n\.Bd -literal -offset indent\n(.*?)\n\.Ed`)
	var out []string
	for _, m := range display.FindAllStringSubmatch(string(data), -1) {
		out = append(out, strings.NewReplacer(`\e`, `\`, `\&`, "").Replace(m[1])+"\n")
	}
	return out
}

// TestManualExamples: every example of the manual page is accepted, and only
// the old ones are told to be so.
func TestManualExamples(t *testing.T) {
	list := examples(t, "smtpd.conf.5")
	if len(list) < 10 {
		t.Fatalf("%d examples", len(list))
	}
	for _, text := range list {
		cfg, diags := Parse(t.Context(), newFake(t).options(text))
		if cfg == nil {
			t.Errorf("%s\n%s", report(diags, ""), text)
			continue
		}
		for _, d := range diags {
			if !strings.Contains(text, "accept") {
				t.Errorf("%s\n%s", d, text)
			}
		}
	}
}

// TestManualWords: the manual page names every key word and every word of a
// limit.
func TestManualWords(t *testing.T) {
	data, err := os.ReadFile("smtpd.conf.5")
	if err != nil {
		t.Fatal(err)
	}
	known := strings.FieldsFunc(string(data), func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-')
	})
	c := newChecker(&Options{}, &input{diags: &diagList{}, tree: &tree{}})
	words := keys(modernWords)
	for _, key := range []string{"smtp limit", "mda limit", "scheduler limit"} {
		words = append(words, keys(c.intLimits(key))...)
	}
	words = append(words, keys(c.smtpDelays())...)
	words = append(words, keys(mtaIntLimits(&c.cfg.MTA.Default))...)
	words = append(words, keys(mtaDelays(&c.cfg.MTA.Default))...)
	// Reserved for what filters will ask; no statement has them.
	unused := []string{"data-line", "noop", "quit", "rset", "recipient", "smtp-in", "smtp-out", "tagged"}
	for _, w := range words {
		if !slices.Contains(known, w) && !slices.Contains(unused, w) {
			t.Errorf("%q is not in the manual page", w)
		}
	}
}

// TestReadmeExamples: every configuration in the README is accepted, without a
// word.
func TestReadmeExamples(t *testing.T) {
	data, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	sys := newFake(t)
	sys.files["/etc/aliases"] = fakeFile{tableTexts["aliases"], 0o644, 0}
	list := indented(string(data))
	if len(list) == 0 {
		t.Fatal("no example")
	}
	for _, text := range list {
		if cfg, diags := Parse(t.Context(), sys.options(text)); cfg == nil || len(diags) > 0 {
			t.Errorf("%s\n%s", report(diags, ""), text)
		}
	}
}

// indented are the indented blocks of a page that hold rules; blank lines do
// not end one.
func indented(page string) []string {
	var out []string
	var b strings.Builder
	flush := func() {
		if strings.Contains(b.String(), "\nmatch ") {
			out = append(out, b.String())
		}
		b.Reset()
	}
	for line := range strings.Lines(page) {
		rest, ok := strings.CutPrefix(line, "    ")
		switch {
		case ok:
			b.WriteString(rest)
		case strings.TrimSpace(line) != "":
			flush()
		}
	}
	flush()
	return out
}
