package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"smtpd/table"
	"smtpd/table/tabletest"
)

// recorder is a table program in either protocol that writes down, as JSON, each
// key that it reads, and whatever does not look as it should. Of keys it knows
// root; those that begin with "value-" have values that no answer may hold.
const recorder = `#!/usr/bin/env python3
import json, os, struct, sys
rec = open(sys.argv[1], "a")
out = os.fdopen(os.dup(0), "wb", 0)
def note(x):
    rec.write(json.dumps(x) + "\n"); rec.flush()
VALUES = {b"value-lf": b"x\nlookup-result|00000000|found|y", b"value-cr": b"x\ry", b"value-nul": b"x\0y", b"value-pipe": b"a|b",
    b"value-long": b"v" * 70000, b"value-escape": b"x\x1b[2J", b"value-empty": b"", b"root": b"alice"}
def lines(f):
    while True:
        l = f.readline()
        if l == b"config|ready\n": break
        if not l.startswith(b"config|"): sys.exit(0)
    out.write(b"register|alias\nregister|ready\n")
    while True:
        l = f.readline()
        if not l: return
        p = l[:-1].split(b"|", 7)
        if len(p) != 8 or p[0] != b"table" or p[4] != b"lookup" or p[5] != b"alias" or len(p[6]) != 8:
            note({"odd": l.decode("latin1")}); continue
        note({"key": p[7].decode("latin1")})
        v = VALUES.get(p[7])
        out.write(b"lookup-result|" + p[6] + (b"|not-found\n" if v is None else b"|found|" + v + b"\n"))
def binary(f):
    while True:
        h = f.read(16)
        if len(h) < 16: return
        t, n, _, _, _ = struct.unpack("=IHHII", h)
        p = f.read(n - 16)
        if t == 2: out.write(struct.pack("=IHHII", 0, 16, 0, 0, 0)); continue
        if t != 6 or struct.unpack("=IQ", p[:12]) != (1, 0) or p.find(b"\0", 12) != len(p) - 1:
            note({"odd": p.decode("latin1")}); continue
        note({"key": p[12:-1].decode("latin1")})
        v = VALUES.get(p[12:-1])
        a = struct.pack("=i", 0) if v is None else struct.pack("=i", 1) + v[:16000] + b"\0"
        out.write(struct.pack("=IHHII", 0, 16 + len(a), 0, 0, 0) + a)
f = os.fdopen(os.dup(0), "rb")
if sys.argv[0].endswith("lines"): lines(f)
elif f.peek(1)[:1] == b"c": sys.exit(1)
else: binary(f)
`

// hostileEntries are what every table of the test holds, or is not to find.
func hostileEntries() map[string]string {
	return map[string]string{
		"root": "alice", `quote'"%s;--`: "q", "pipe|percent%40": "p", `back\slash`: "b", "par(en)s*": "s", "a=b&c": "e", "dollar$1?": "d", "ümlaut": "u",
	}
}

// hostileKeys are in no table, whatever they are taken for.
func hostileKeys() []string {
	return []string{"' OR '1'='1", `" OR ""="`, "root'; DROP TABLE aliases; --", "%s%s%n", "*", "*)(userPassword=*", "root)(cn=*", "$1", "?", `\`, `root\`,
		"roo_", "roo%", "12:x,", "|", "root|", "root|found|x", "root,bob", "-s", "@", "\xff\xfe", strings.Repeat("k", 1023), strings.Repeat("|", 1023)}
}

// refusedKeys can be asked of no table: 64 KB, and octets that end a line or a
// string somewhere.
func refusedKeys() []string {
	return []string{"root\n", "a\nlookup-result|00000001|found|x", "root\r", "a\tb", "\x7f", strings.Repeat("k", 1024), strings.Repeat("k", 64<<10)}
}

// TestHostileTables asks tables of every kind, through smtpctl and the daemon,
// for keys that could end a line, a string or a query on the way: each is read as
// the one key that it is, or never asked. What is kept under such keys is found.
func TestHostileTables(t *testing.T) {
	dir := t.TempDir()
	records := map[string]string{}
	conf := hostileConf(t, dir, records)
	for _, ts := range tableServers() {
		name := ts.backend
		if p := tabletest.Missing(name); p != "" {
			t.Logf("%s is not installed: no table in %s", p, name)
			continue
		}
		s := ts.start(t, hostileEntries())
		buildTable(t, "table-"+name)
		writeFile(t, dir+"/"+name+".conf", ts.conf(s))
		conf[name] = "table " + name + " " + name + ":" + dir + "/" + name + ".conf\n"
	}
	text := ""
	for _, line := range conf {
		text += line
	}
	d, _ := filterDaemon(t, dir, text+"listen on 127.0.0.1 port $port1\naction \"local\" maildir $box\nmatch from any for any action \"local\"\n")
	for name := range conf {
		t.Run(name, func(t *testing.T) {
			for k, v := range hostileEntries() {
				if records[name] != "" && k != "root" { // a recorder knows nothing else
					v = ""
				}
				expect(t, d, name, k, v)
			}
			for _, k := range hostileKeys() {
				expect(t, d, name, k, "")
			}
			for _, k := range refusedKeys() {
				if out, code := ask(d, name, k); code != 1 || strings.Contains(out, "found\nvalue") {
					t.Errorf("%.40q: got %d, %.200q", k, code, out)
				}
			}
			if file := records[name]; file != "" {
				readKeys(t, file)
				hostileValues(t, d, name)
			}
			expect(t, d, name, "root", "alice")
		})
	}
	if n := strings.Count(d.log(), "\x1b"); n != 0 {
		t.Errorf("%d control characters in the log", n)
	}
}

// hostileConf makes the tables that need no server, by name; records are the
// files in which programs write down what they read.
func hostileConf(t *testing.T, dir string, records map[string]string) map[string]string {
	t.Helper()
	entries := hostileEntries()
	conf := map[string]string{}
	var file, inline strings.Builder
	var rows []string
	for k, v := range entries {
		if !strings.ContainsAny(k, "=") { // which would end a key of a text file in no way; inline it is quoted
			fmt.Fprintf(&inline, "%s = %s, ", strconv.Quote(k), v)
		}
		fmt.Fprintf(&file, "%s\t%s\n", k, v)
		rows = append(rows, fmt.Sprintf("INSERT INTO aliases VALUES ('%s', '%s')", strings.ReplaceAll(k, "'", "''"), v))
	}
	writeFile(t, dir+"/text", file.String())
	conf["file"] = "table file file:" + dir + "/text\n"
	if out, err := exec.Command(filepath.Join(bins, "makemap"), "-o", dir+"/map.db", dir+"/text").CombinedOutput(); err != nil {
		t.Fatalf("makemap: %v\n%s", err, out)
	}
	conf["db"] = "table db db:" + dir + "/map.db\n"
	database(t, dir+"/sqlite", append([]string{"CREATE TABLE aliases (name TEXT PRIMARY KEY, target TEXT)"}, rows...)...)
	writeFile(t, dir+"/sqlite.conf", "dbpath "+dir+"/sqlite\nquery_alias SELECT target FROM aliases WHERE name=?\n")
	conf["sqlite"] = "table sqlite sqlite:" + dir + "/sqlite.conf\n"
	if debianTable(t, "sqlite") {
		conf["debsqlite"] = "table debsqlite debian-sqlite:" + dir + "/sqlite.conf\n"
	}
	records["socketmap"] = dir + "/socketmap.rec"
	serveSocketmap(t, dir+"/map.sock", records["socketmap"])
	conf["socketmap"] = "table socketmap socketmap:" + dir + "/map.sock\n"
	if _, err := exec.LookPath("python3"); err != nil {
		t.Log("python3 is not installed: the two protocols are not recorded")
		return conf
	}
	for _, name := range []string{"lines", "binary"} {
		path := filepath.Join(bins, "table-"+name)
		if err := os.WriteFile(path, []byte(recorder), 0o755); err != nil {
			t.Fatal(err)
		}
		records[name] = dir + "/" + name + ".rec"
		writeFile(t, records[name], "")
		if err := os.Chmod(records[name], 0o666); err != nil {
			t.Fatal(err)
		}
		conf[name] = "table " + name + " " + name + ":" + records[name] + "\n"
	}
	return conf
}

// serveSocketmap serves netstrings and writes down the keys.
func serveSocketmap(t *testing.T, path, record string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	rec, err := os.Create(record)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait(); rec.Close() })
	values := map[string]string{"root": "alice", "value-lf": "x\ny", "value-cr": "x\ry", "value-nul": "x\x00y", "value-pipe": "a|b",
		"value-long": strings.Repeat("v", 70000), "value-escape": "x\x1b[2J"}
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				in := bufio.NewReader(c)
				for {
					var n int
					if _, err := fmt.Fscanf(in, "%d:", &n); err != nil || n > 1<<20 {
						return
					}
					text := make([]byte, n+1)
					if _, err := io.ReadFull(in, text); err != nil {
						return
					}
					name, key, _ := strings.Cut(string(text[:n]), " ")
					line := map[string]string{"key": latin1(key)}
					if name != "socketmap" || text[n] != ',' {
						line = map[string]string{"odd": latin1(string(text))}
					}
					_ = json.NewEncoder(rec).Encode(line)
					answer := "NOTFOUND "
					if v, ok := values[key]; ok {
						answer = "OK " + v
					}
					fmt.Fprintf(c, "%d:%s,", len(answer), answer)
				}
			})
		}
	})
}

// latin1 writes octets as characters, which JSON can hold.
func latin1(s string) string {
	r := make([]rune, len(s))
	for i := range len(s) {
		r[i] = rune(s[i])
	}
	return string(r)
}

// ask is smtpctl lookup of an alias.
func ask(d *daemon, name, key string) (out string, code int) {
	cmd := exec.Command(filepath.Join(bins, "smtpctl"), "-s", d.socket, "lookup", name, "alias", key)
	text, _ := cmd.CombinedOutput()
	return string(text), cmd.ProcessState.ExitCode()
}

// expect asks a table; "": there is nothing of that key.
func expect(t *testing.T, d *daemon, name, key, want string) {
	t.Helper()
	out, code := ask(d, name, key)
	if want == "" && (code != 1 || !strings.HasPrefix(out, "result: not found\n")) ||
		want != "" && (code != 0 || !strings.HasPrefix(out, "result: found\nvalue: "+want+"\n")) {
		t.Errorf("%.40q: got %d, %.200q, want %q", key, code, out, want)
	}
}

// readKeys compares what a program read with what was asked of it: each key
// once, and nothing else.
func readKeys(t *testing.T, file string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := hostileKeys()
	for k := range hostileEntries() {
		want = append(want, k)
	}
	for i := range want {
		want[i] = latin1(table.Fold(want[i]))
	}
	var got []string
	for dec := json.NewDecoder(f); dec.More(); {
		var line struct{ Key, Odd string }
		if err := dec.Decode(&line); err != nil {
			t.Fatal(err)
		}
		if line.Odd != "" {
			t.Errorf("read %.80q", line.Odd)
		}
		got = append(got, line.Key)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("read %.60q, want %.60q", got, want)
	}
}

// hostileValues: an answer that could be more than one line is trouble, never a
// value; the table works again soon.
func hostileValues(t *testing.T, d *daemon, name string) {
	t.Helper()
	expect(t, d, name, "value-pipe", "a|b")
	for _, key := range []string{"value-lf", "value-cr", "value-nul", "value-long", "value-escape", "value-empty"} {
		out, code := ask(d, name, key)
		switch {
		case name == "lines" && key == "value-lf": // the first line came first; the second ended the program
		case name != "lines" && key == "value-long" || name == "socketmap" && key == "value-empty" || name == "binary" && key == "value-empty":
		case code != 75 || strings.Contains(out, "value:") || strings.ContainsAny(out, "\r\x00\x1b"):
			t.Errorf("%s: got %d, %q", key, code, out)
		}
		for range 100 { // a program that broke the protocol is started again
			if out, code = ask(d, name, "root"); code != 75 {
				break
			}
		}
		if code != 0 {
			t.Errorf("after %s: got %d, %q", key, code, out)
		}
	}
}
