package table

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// pairs is an iterator over entries.
func pairs(entries [][2]string) func(func(string, string) bool) {
	return func(yield func(string, string) bool) {
		for _, e := range entries {
			if !yield(e[0], e[1]) {
				return
			}
		}
	}
}

func dump(t *testing.T, path string) map[string]string {
	t.Helper()
	got := map[string]string{}
	if err := DumpMap(path, func(k, v string) error { got[k] = v; return nil }); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestReadMap(t *testing.T) {
	tests := map[string]struct {
		typ  MapType
		text string
		want string // entries as "k=v;", or the error
	}{
		"separators":         {MapPlain, "a b\nC:d\ne: f g\nh\ti\nj : k\n", "a=b;c=d;e=f g;h=i;j=k;"},
		"comments":           {MapPlain, "# x\n\n  # y\na b\n", "a=b;"},
		"no value":           {MapPlain, "a b\nc\n", "m:2: invalid entry"},
		"value with colon":   {MapPlain, "alice 1:2:/home/alice\n", "alice=1:2:/home/alice;"},
		"set":                {MapSet, "a.org\nB.org\n", "a.org=<set>;b.org=<set>;"},
		"set with value":     {MapSet, "a.org x\n", "m:1: invalid entry"},
		"aliases":            {MapAliases, "root:alice,bob@example.org\n", "root=alice, bob@example.org;"},
		"include":            {MapAliases, "l: :include:/etc/l\nk::include:/etc/k\n", "l=:include:/etc/l;k=:include:/etc/k;"},
		"command":            {MapAliases, "p: \"|cat > /dev/null, x\"\n", "p=\"|cat > /dev/null, x\";"},
		"continued":          {MapAliases, "a: b,\n c\n", "m:1: invalid entry"},
		"bad item":           {MapAliases, "a: b c\n", "m:1: invalid entry"},
		"bracket":            {MapPlain, "[::1] localhost\n", "[::1]=localhost;"},
		"bracket not closed": {MapPlain, "[::1 localhost\n", "m:1: invalid entry"},
		"control":            {MapPlain, "a\x01 b\n", "m:1: invalid entry"},
		"key too long":       {MapPlain, strings.Repeat("k", MaxKey+1) + " v\n", "m:1: invalid entry"},
		"line too long":      {MapPlain, "a b\n" + strings.Repeat("k", MaxKey+MaxValue+100) + "\n", "m:2: the entry is too long"},
		"old line ends":      {MapPlain, "a b\r\nc d\r\n", "a=b;c=d;"},
		"nothing":            {MapPlain, "", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			entries, err := ReadMap(strings.NewReader(tt.text), "m", tt.typ)
			got := ""
			for _, e := range entries {
				got += e[0] + "=" + e[1] + ";"
			}
			if err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestWriteMap(t *testing.T) {
	dst := filepath.Join(t.TempDir(), "m.db")
	first := [][2]string{{"old", "1"}}
	if err := WriteMap(dst, MapPlain, 0o640, pairs(first)); err != nil {
		t.Fatal(err)
	}
	var entries [][2]string
	want := map[string]string{}
	for i := range 2*mapBatch + 17 { // more than one transaction, not in order
		k, v := fmt.Sprintf("Key%d", i*7919%50000), fmt.Sprint("value ", i)
		entries = append(entries, [2]string{k, v})
		want[strings.ToLower(k)] = v
	}
	if err := WriteMap(dst, MapPlain, 0o644, pairs(entries)); err != nil {
		t.Fatal(err)
	}
	got := dump(t, dst)
	if len(got) != len(want) {
		t.Errorf("got %d entries, want %d", len(got), len(want))
	}
	for k, v := range want {
		if got[k] != v {
			t.Fatalf("%s: got %q, want %q", k, got[k], v)
		}
	}
	if fi, err := os.Stat(dst); err != nil || fi.Mode().Perm() != 0o644 {
		t.Errorf("got mode %v, %v, want 0644", fi.Mode(), err)
	}
	left, _ := os.ReadDir(filepath.Dir(dst))
	if len(left) != 1 {
		t.Errorf("got %d files, want the map alone", len(left))
	}
}

func TestWriteMapRefuses(t *testing.T) {
	dst := filepath.Join(t.TempDir(), "m.db")
	for name, e := range map[string][2]string{
		"no key":     {"", "v"},
		"long key":   {strings.Repeat("k", MaxKey+1), "v"},
		"long value": {"k", strings.Repeat("v", MaxValue+1)},
		"line end":   {"k", "a\nb"},
	} {
		if err := WriteMap(dst, MapPlain, 0o644, pairs([][2]string{e})); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
	if _, err := os.Stat(dst); !os.IsNotExist(err) {
		t.Errorf("got %v, want no file", err)
	}
}

func TestDumpBerkeley(t *testing.T) {
	tests := map[string]map[string]string{
		"aliases": {"root": "alice", "postmaster": "root, bob@example.org",
			"list": "include:/etc/mail/list", "prog": `"|/bin/cat > /dev/null"`},
		"set": {"a.org": "<set>", "b.org": "<set>"},
		"map": {"alice": "1001:1001:/home/alice", "key": "value with blanks"},
	}
	for name, want := range tests {
		for _, typ := range []string{"hash", "btree"} {
			t.Run(name+" "+typ, func(t *testing.T) {
				got := dump(t, filepath.Join("testdata", "db", name+"."+typ+".db"))
				if fmt.Sprint(got) != fmt.Sprint(want) {
					t.Errorf("got %v, want %v", got, want)
				}
			})
		}
	}
}

// unzip reads a compressed file of testdata/db.
func unzip(t testing.TB, name string) []byte {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", "db", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBerkeleyLarge(t *testing.T) {
	for _, name := range []string{"big.hash.db.gz", "big.btree.db.gz"} {
		t.Run(name, func(t *testing.T) {
			got := map[string]string{}
			err := walkBerkeley(unzip(t, name), func(k, v string) error { got[k] = v; return nil })
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != 3001 || got["user2999"] != "value2999" || got["long"] != strings.Repeat("x", 20000) {
				t.Errorf("got %d entries, user2999 %q, long of %d octets", len(got), got["user2999"], len(got["long"]))
			}
		})
	}
}

func TestBerkeleyDamaged(t *testing.T) {
	whole := unzip(t, "big.btree.db.gz")
	stop := errors.New("stop")
	for name, change := range map[string]func([]byte) []byte{
		"short":     func(b []byte) []byte { return b[:300] },
		"page size": func(b []byte) []byte { binary.LittleEndian.PutUint32(b[bdbSizeAt:], 3000); return b },
		"encrypted": func(b []byte) []byte { b[bdbCryptAt] = 1; return b },
		"cut":       func(b []byte) []byte { return b[:len(b)-4096] },
		"several":   func(b []byte) []byte { b[bdbFlagsAt] |= 0x01; return b },
		"records":   func(b []byte) []byte { b[bdbFlagsAt] |= 0x02; return b },
		"no magic":  func(b []byte) []byte { b[bdbMagicAt]++; return b },
		"item count": func(b []byte) []byte {
			binary.LittleEndian.PutUint16(b[4096+bdbCountAt:], 0xfffe)
			b[4096+bdbTypeAt] = bdbPageLeaf
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := walkBerkeley(change(bytes.Clone(whole)), func(k, v string) error { return nil }); err == nil {
				t.Error("got no error")
			}
		})
	}
	if err := walkBerkeley(whole, func(k, v string) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("got %v, want the error of the caller", err)
	}
}

func TestMapFileKinds(t *testing.T) {
	dir := t.TempDir()
	ours := filepath.Join(dir, "ours.db")
	if err := WriteMap(ours, MapSet, 0o644, pairs([][2]string{{"a", "b"}})); err != nil {
		t.Fatal(err)
	}
	text := filepath.Join(dir, "text")
	os.WriteFile(text, []byte("a b\nc d but long enough to look at\n"), 0o644)
	tests := map[string]bool{ours: true, text: false, filepath.Join("testdata", "db", "map.hash.db"): true}
	for path, want := range tests {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := sniffMap(f) != kindUnknown; got != want {
			t.Errorf("%s: got %v, want %v", path, got, want)
		}
		f.Close()
	}
	if err := DumpMap(text, nil); !errors.Is(err, errNotMap) {
		t.Errorf("got %v, want %v", err, errNotMap)
	}
	whole, _ := os.ReadFile(ours)
	for _, n := range []int{100, 4096, 8192, 10000} { // shortened, or filled with rubbish
		bad := filepath.Join(dir, "bad.db")
		os.WriteFile(bad, whole[:n], 0o644)
		if err := DumpMap(bad, func(k, v string) error { return nil }); err == nil {
			t.Errorf("cut at %d: got no error", n)
		}
		b := bytes.Clone(whole)
		for i := n; i < len(b); i++ {
			b[i] ^= 0x5a
		}
		os.WriteFile(bad, b, 0o644)
		DumpMap(bad, func(k, v string) error { return nil }) // must not panic
	}
}

func FuzzBerkeley(f *testing.F) {
	for _, name := range []string{"small.hash.db", "small.btree.db"} {
		b, err := os.ReadFile(filepath.Join("testdata", "db", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		total := 0
		walkBerkeley(b, func(k, v string) error { total += len(k) + len(v); return nil })
		if total > len(b) {
			t.Errorf("%d octets of entries from a file of %d", total, len(b))
		}
	})
}

func FuzzReadMap(f *testing.F) {
	f.Add("a: b, c\nd \"|e, f\"\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, typ := range []MapType{MapPlain, MapAliases, MapSet} {
			entries, err := ReadMap(strings.NewReader(text), "m", typ)
			if err != nil {
				continue
			}
			// Written out and read again, the same comes back.
			var b strings.Builder
			for _, e := range entries {
				if typ == MapSet {
					b.WriteString(e[0] + "\n")
				} else {
					b.WriteString(e[0] + ": " + e[1] + "\n")
				}
			}
			again, err := ReadMap(strings.NewReader(b.String()), "m", typ)
			if err != nil || !slices.Equal(again, entries) {
				t.Errorf("%s: %q gives %q, then %q, %v", typ, text, entries, again, err)
			}
		}
	})
}
