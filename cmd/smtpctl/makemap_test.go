package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"smtpd/internal/ctl"
)

// files writes texts into a folder, which becomes the working one.
func files(t *testing.T, texts map[string]string) {
	t.Helper()
	t.Chdir(t.TempDir())
	for name, text := range texts {
		if err := os.WriteFile(name, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMakemap(t *testing.T) {
	tests := map[string]struct {
		args  string
		stdin string
		want  outcome
		dump  string // of db, when not empty
		db    string
	}{
		"map":             {args: "map", db: "map.db", dump: "a\tone\nb\ttwo words\n"},
		"-d":              {args: "-d btree map", db: "map.db", dump: "a\tone\nb\ttwo words\n"},
		"-o":              {args: "-d hash -o out map", db: "out", dump: "a\tone\nb\ttwo words\n"},
		"set":             {args: "-t set set", db: "set.db", dump: "a.org\t<set>\nb.org\t<set>\n"},
		"aliases":         {args: "-t aliases aliases", want: outcome{"aliases: 2 aliases\n", "", 0}, db: "aliases.db", dump: "abuse\troot\nroot\talice, bob\n"},
		"sendmail's form": {args: "hash access", stdin: "x y\n", db: "access.db", dump: "x\ty\n"},
		"-O":              {args: "-O AliasFile=aliases", want: outcome{"aliases: 2 aliases\n", "", 0}, db: "aliases.db", dump: "abuse\troot\nroot\talice, bob\n"},
		"-C":              {args: "-C any.conf map", db: "map.db"},
		"-C, no file":     {args: "-C any.conf -t aliases", want: outcome{"", makemapUsage, 1}},
		"bad aliases":     {args: "-t aliases bad", want: outcome{"", "makemap: bad:3: invalid entry\n", 1}},
		"type":            {args: "-t foo map", want: outcome{"", "makemap: unsupported type 'foo'\n", 1}},
		"db type":         {args: "-d dbm map", want: outcome{"", "makemap: unsupported DB type 'dbm'\n", 1}},
		"sendmail's type": {args: "dbm map", want: outcome{"", "makemap: unsupported DB type 'dbm'\n", 1}},
		"no file":         {args: "nosuch", want: outcome{"", "makemap: stat: nosuch: No such file or directory\n", 1}},
		"nothing":         {args: "", want: outcome{"", makemapUsage, 1}},
		"three words":     {args: "a b c", want: outcome{"", makemapUsage, 1}},
		"option":          {args: "-z map", want: outcome{"", "/usr/sbin/makemap: invalid option -- 'z'\n" + makemapUsage, 1}},
		"no value":        {args: "map -t", want: outcome{"", "/usr/sbin/makemap: option requires an argument -- 't'\n" + makemapUsage, 1}},
		"-U and more":     {args: "-Udhash nosuch.db", want: outcome{"", "makemap: dbopen: nosuch.db: No such file or directory\n", 1}},
		"twice":           {args: "twice", want: outcome{"", "makemap: twice:3: duplicate entry for a\n", 1}},
		"twice in a set":  {args: "-t set twice-set", want: outcome{"", "makemap: twice-set:2: duplicate entry for a\n", 1}},
		"empty":           {args: "empty", want: outcome{"", "makemap: warning: empty map created: empty.db\n", 0}, db: "empty.db"},
		"no folder":       {args: "-o none/x.db map", want: outcome{"", "makemap: mkstemp: No such file or directory\n", 1}},
		"dump a text":     {args: "-U map", want: outcome{"", "map: not a map made by makemap\nmakemap: dbopen: map: Invalid argument\n", 1}},
		"dump nothing":    {args: "-U nosuch.db", want: outcome{"", "makemap: dbopen: nosuch.db: No such file or directory\n", 1}},
		"a folder":        {args: ".", want: outcome{"", "makemap: .: not a plain file\n", 1}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			files(t, map[string]string{
				"map": "A one\nb: two words\n", "set": "b.org\nA.org\n", "aliases": "# x\nroot: alice, bob\nabuse:\troot\n",
				"bad": "a: b\n\nc: d,\n", "twice": "a b\nc d\nA e\n", "twice-set": "a\na\n", "empty": "# nothing\n",
			})
			check(t, run(t, "makemap", "", tt.stdin, strings.Fields(tt.args)...), tt.want)
			if tt.db == "" {
				return
			}
			if st, err := os.Stat(tt.db); err != nil || tt.stdin == "" && st.Mode() != 0o640 {
				t.Errorf("got %v, %v; want the source's mode", st, err)
			}
			if tt.dump != "" {
				check(t, run(t, "makemap", "", "", "-U", tt.db), outcome{tt.dump, "", 0})
			}
		})
	}
}

func TestNewaliases(t *testing.T) {
	conf := "table aliases file:%\naction \"a\" maildir alias <aliases>\nmatch for local action \"a\"\n"
	d := startDaemon(t, says("", nil))
	files(t, map[string]string{"aliases": "root: alice\nabuse: root\n"})
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "aliases")
	if err := os.WriteFile("smtpd.conf", []byte(strings.ReplaceAll(conf, "%", path)), 0o600); err != nil {
		t.Fatal(err)
	}
	want := outcome{path + ": 2 aliases\n", "", 0}
	check(t, run(t, "newaliases", d.socket, "", "-f", "smtpd.conf"), want)
	if got := d.requests(); len(got) != 1 || got[0] != "update aliases" {
		t.Errorf("asked %q", got)
	}
	check(t, run(t, "makemap", "", "", "-U", path+".db"), outcome{"abuse\troot\nroot\talice\n", "", 0})
	check(t, run(t, "newaliases", filepath.Join(dir, "none"), "", "-fsmtpd.conf"), want)
	check(t, run(t, "newaliases", d.socket, "", "-x"), outcome{"", newaliasesUsage, 1})

	// A table that is a map not made yet, or spoilt, is what newaliases is for.
	if err := os.WriteFile("db.conf", []byte(strings.NewReplacer("file:%", "db:"+path+".db").Replace(conf)), 0o600); err != nil {
		t.Fatal(err)
	}
	check(t, run(t, "newaliases", filepath.Join(dir, "none"), "", "-fdb.conf"), want)
	for _, spoil := range []func() error{
		func() error { return os.Remove(path + ".db") },
		func() error { return os.WriteFile(path+".db", []byte("nonsense"), 0o600) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		check(t, run(t, "newaliases", filepath.Join(dir, "none"), "", "-fdb.conf"), want)
	}

	d = startDaemon(t, says("", &ctl.Failure{}))
	got := run(t, "newaliases", d.socket, "", "-f", "smtpd.conf")
	check(t, got, outcome{want.out, "newaliases: update table aliases: command failed\n", 1})

	if err := os.WriteFile("bad.conf", []byte("nonsense here\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got = run(t, "newaliases", d.socket, "", "-f", "bad.conf")
	if got.status != 1 || got.out != "" || !strings.HasPrefix(got.err, "bad.conf:1: ") {
		t.Errorf("got %+v", got)
	}
	// -bi anywhere among sendmail's words is newaliases.
	got = run(t, "sendmail", d.socket, "", "-v", "-bi")
	if got.status != 1 || strings.Contains(got.err, "recipients") {
		t.Errorf("sendmail -bi: got %+v", got)
	}
}
