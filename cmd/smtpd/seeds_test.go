package main

import (
	"bytes"
	"flag"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"smtpd/internal/config"
	"smtpd/parser"
)

var printDecisions = flag.Bool("decisions", false, "print what becomes of the mails of decisions.txtar")

// TestSeeds: every accepted configuration of the folder seeds decides about
// typical mails as its author meant, and so does its modern form.
func TestSeeds(t *testing.T) {
	ar, err := txtar.ParseFile(filepath.Join(confDir, "decisions.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for _, f := range ar.Files {
		want[f.Name] = string(f.Data)
	}
	files, err := filepath.Glob(confDir + "/seeds/*.conf")
	if err != nil {
		t.Fatal(err)
	}
	w := newConfWorld(t)
	for _, path := range files {
		if !expectedOK(t, path) {
			continue
		}
		name := strings.TrimSuffix(filepath.Base(path), ".conf")
		t.Run(name, func(t *testing.T) {
			if want[name] == "" {
				t.Fatal("there are no mails for it")
			}
			o := w.options(t, path)
			for _, o := range []parser.Options{o, modernize(t, o)} {
				got := decisions(t, w.decider(t, o), want[name])
				if *printDecisions {
					t.Logf("\n-- %s --\n%s", name, got)
				} else if got != want[name] {
					t.Errorf("got\n%s\nwant\n%s\nby\n%s", got, want[name], o.Text)
				}
			}
		})
	}
}

// decisions writes the lines of text again, with what d makes of them.
func decisions(t *testing.T, d *decider, text string) string {
	t.Helper()
	var b strings.Builder
	b.WriteString(listening(d.conf))
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "listen ") {
			continue
		}
		facts, _, _ := strings.Cut(strings.TrimSpace(line), " -> ")
		b.WriteString(facts + " -> " + d.outcome(t.Context(), mailOf(t, d.conf, facts)) + "\n")
	}
	return b.String()
}

// listening is what the server listens on, a line each.
func listening(conf *config.Config) string {
	var all bytes.Buffer
	parser.Describe(&all, conf)
	var b strings.Builder
	for line := range strings.Lines(all.String()) {
		if strings.HasPrefix(line, "listen ") && line != "listen socket\n" {
			b.WriteString(line)
		}
	}
	return b.String()
}
