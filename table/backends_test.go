package table_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"smtpd/internal/config"
	"smtpd/table"
	"smtpd/table/tabletest"
)

// programKind, in the environment, makes the test binary a table program.
const programKind = "TABLE_TEST_PROGRAM"

func TestMain(m *testing.M) {
	kind := os.Getenv(programKind)
	if kind == "" {
		os.Exit(m.Run())
	}
	if err := runProgram(kind); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// runProgram is a table program that serves the file in its argument.
func runProgram(kind string) error {
	b, err := table.NewFile(os.Args[1], "+", nil)
	if err != nil {
		return err
	}
	defer b.Close()
	switch kind {
	case "lines":
		return table.Serve(context.Background(), os.Stdin, os.Stdout, b)
	case "binary":
		return serveBinary(os.Stdin, os.Stdout, b)
	case "mortal": // dies at every third question
		return serveMortal(b)
	case "hasty": // reads its file once, and ends when that is not what it should be
		if v, err := b.Lookup(context.Background(), table.Alias, "root"); err != nil {
			next := os.Args[1] + ".next"
			return errors.Join(fmt.Errorf("root: %q, %w", v, err), os.Rename(next, os.Args[1]))
		}
		return table.Serve(context.Background(), os.Stdin, os.Stdout, b)
	case "mute":
		_, err := io.Copy(io.Discard, os.Stdin)
		return err
	}
	return errors.New("unknown kind")
}

// serveBinary is the other end of the binary protocol.
func serveBinary(in io.Reader, out io.Writer, b table.Backend) error {
	opened := false
	for {
		var head [16]byte
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return err
		}
		typ, n := binary.NativeEndian.Uint32(head[:]), binary.NativeEndian.Uint16(head[4:])
		if n < 16 || n > 16384 {
			return fmt.Errorf("frame of %d octets", n) // what a line looks like
		}
		p := make([]byte, n-16)
		if _, err := io.ReadFull(in, p); err != nil {
			return err
		}
		if !opened {
			if typ != 2 || len(p) != 4+2048 || binary.NativeEndian.Uint32(p) != 2 {
				return errors.New("not opened")
			}
			opened = true
			answerBinary(out, nil)
			continue
		}
		if typ == 4 {
			answerBinary(out, binary.NativeEndian.AppendUint32(nil, 1))
			continue
		}
		s, key := table.Service(binary.NativeEndian.Uint32(p)), strings.TrimSuffix(string(p[12:]), "\x00")
		v, err := b.Lookup(context.Background(), s, key)
		if typ == 7 {
			v, err = b.Fetch(context.Background(), s)
		}
		if err != nil {
			answerBinary(out, binary.NativeEndian.AppendUint32(nil, 0))
			continue
		}
		answer := binary.NativeEndian.AppendUint32(nil, 1)
		if typ != 5 {
			answer = append(append(answer, v...), 0)
		}
		answerBinary(out, answer)
	}
}

func answerBinary(out io.Writer, payload []byte) {
	head := make([]byte, 16)
	binary.NativeEndian.PutUint16(head[4:], uint16(16+len(payload)))
	out.Write(append(head, payload...))
}

func serveMortal(b table.Backend) error {
	r, w := io.Pipe()
	go func() {
		in := bufio.NewScanner(os.Stdin)
		for n := 0; in.Scan(); {
			if strings.HasPrefix(in.Text(), "table|") {
				if n++; n == 3 {
					os.Exit(1)
				}
			}
			fmt.Fprintln(w, in.Text())
		}
		w.Close()
	}()
	return table.Serve(context.Background(), r, os.Stdout, b)
}

// textFile is a table file with entries. Keys that hold a separator cannot be
// in one.
func textFile(t testing.TB, entries map[string]string) string {
	t.Helper()
	var b bytes.Buffer
	for k, v := range entries {
		fmt.Fprintf(&b, "%s\t%s\n", k, v)
	}
	path := filepath.Join(t.TempDir(), "table")
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func must(t testing.TB, b table.Backend, err error) table.Backend {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// program starts the test binary as a table program of that kind.
func program(t testing.TB, kind string, entries map[string]string) table.Backend {
	t.Setenv(programKind, kind)
	b, err := table.NewProgram("t", os.Args[0], textFile(t, entries), func(text string) { t.Log(text) })
	return must(t, b, err)
}

func TestStatic(t *testing.T) {
	tabletest.TestBackend(t, func(t *testing.T, want map[string]string) table.Backend { return table.NewStatic(want) })
}

func TestFile(t *testing.T) {
	tabletest.TestBackend(t, func(t *testing.T, want map[string]string) table.Backend {
		b, err := table.NewFile(textFile(t, want), "+", nil)
		return must(t, b, err)
	})
}

func TestDB(t *testing.T) {
	tabletest.TestBackend(t, func(t *testing.T, want map[string]string) table.Backend {
		path := filepath.Join(t.TempDir(), "m.db")
		err := table.WriteMap(path, table.MapPlain, 0o644, func(yield func(string, string) bool) {
			for k, v := range want {
				if !yield(k, v) {
					return
				}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		b, err := table.NewDB(path, "+", nil)
		return must(t, b, err)
	})
}

func TestLineProgram(t *testing.T) {
	tabletest.TestBackend(t, func(t *testing.T, want map[string]string) table.Backend { return program(t, "lines", want) })
}

func TestBinaryProgram(t *testing.T) {
	tabletest.TestBackend(t, func(t *testing.T, want map[string]string) table.Backend { return program(t, "binary", want) })
}

// socketmapServer answers socketmap questions; every connection ends after some
// of them.
func socketmapServer(t *testing.T, entries map[string]string) string {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				for range 7 {
					var n int
					if _, err := fmt.Fscanf(c, "%d:", &n); err != nil || n > 5000 {
						return
					}
					buf := make([]byte, n+1)
					if _, err := io.ReadFull(c, buf); err != nil {
						return
					}
					name, key, _ := strings.Cut(string(buf[:n]), " ")
					v, ok := entries[key]
					answer := "OK " + v
					switch {
					case name != "t":
						answer = "PERM no such map"
					case !ok:
						answer = "NOTFOUND "
					}
					fmt.Fprintf(c, "%d:%s,", len(answer), answer)
				}
			})
		}
	})
	return l.Addr().String()
}

func TestSocketmap(t *testing.T) {
	tabletest.TestBackend(t, func(t *testing.T, want map[string]string) table.Backend {
		b, err := table.NewSocketmap("t", socketmapServer(t, want))
		return must(t, b, err)
	})
}

func TestSocketmapFailures(t *testing.T) {
	answers := map[string]string{
		"temporary":    "10:TEMP later,",
		"timeout":      "7:TIMEOUT,",
		"permanent":    "13:PERM whatever,",
		"unknown word": "5:MAYBE,",
		"no comma":     "5:OK xy;",
		"no length":    ":OK x,",
		"huge":         "999999999:x,",
		"negative":     "-1:x,",
		"nothing":      "",
		"cut short":    "20:OK x",
		"line in it":   "9:OK a\nb,cd,",
	}
	for name, answer := range answers {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			var wg sync.WaitGroup
			defer wg.Wait()
			wg.Go(func() {
				c, err := l.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				c.Read(make([]byte, 100))
				io.WriteString(c, answer)
			})
			b, err := table.NewSocketmap("t", "inet:"+l.Addr().String())
			tab := table.New("t", "socketmap", must(t, b, err))
			defer tab.Close()
			v, err := tab.Lookup(t.Context(), table.Alias, "k")
			if err == nil || errors.Is(err, table.ErrNotFound) {
				t.Errorf("got %q, %v, want trouble", v, err)
			}
		})
	}
	for _, param := range []string{"relative", "inet:nowhere", ""} {
		if _, err := table.NewSocketmap("t", param); err == nil {
			t.Errorf("%q: got no error", param)
		}
	}
}

func TestProgramIsRestarted(t *testing.T) {
	b := program(t, "mortal", map[string]string{"root": "alice"})
	defer b.Close()
	tab := table.New("t", "program", b)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	failed, found := 0, 0
	for found < 5 && ctx.Err() == nil {
		v, err := tab.Lookup(ctx, table.Alias, "root")
		switch {
		case err == nil && v == "alice":
			found++
		case errors.Is(err, table.ErrNotFound):
			t.Fatal("a program that died says no")
		default:
			failed++
		}
	}
	if failed == 0 || found < 5 {
		t.Errorf("got %d answers and %d failures", found, failed)
	}
}

// TestProgramStartsTooEarly: a program that found its configuration half written
// is there the next moment, in the protocol that it speaks.
func TestProgramStartsTooEarly(t *testing.T) {
	t.Setenv(programKind, "hasty")
	path := textFile(t, nil)
	if err := os.Rename(textFile(t, map[string]string{"root": "alice"}), path+".next"); err != nil {
		t.Fatal(err)
	}
	b, err := table.NewProgram("t", os.Args[0], path, func(text string) { t.Errorf("said: %s", text) })
	if err != nil {
		t.Fatal(err)
	}
	tab := table.New("t", "program", b)
	defer tab.Close()
	if v, err := tab.Lookup(t.Context(), table.Alias, "root"); v != "alice" || err != nil {
		t.Errorf("got %q, %v", v, err)
	}
}

// TestProgramFails: what a program says that ends at once is logged, each line
// once in a life, whatever protocol it was tried in.
func TestProgramFails(t *testing.T) {
	said := make(chan string, 100)
	t.Setenv(programKind, "hasty")
	b, err := table.NewProgram("t", os.Args[0], textFile(t, nil), func(text string) {
		select {
		case said <- text:
		default:
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	var got []string
	for range 5 {
		select {
		case text := <-said:
			got = append(got, strings.TrimPrefix(text, filepath.Base(os.Args[0])+": "))
		case <-time.After(20 * time.Second):
			t.Fatalf("said only %q", got)
		}
	}
	for i, want := range []string{"root: ", "rename ", "the table program has ended", "root: ", "rename "} {
		if !strings.HasPrefix(got[i], want) {
			t.Errorf("got %q, want %q", got[i], want)
		}
	}
}

func TestProgramClosesWhileMute(t *testing.T) {
	b := program(t, "mute", nil)
	done := make(chan struct{})
	go func() { b.Close(); close(done) }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Error("close waits for a program that says nothing")
	}
}

func TestProgramThatCannotRun(t *testing.T) {
	said := make(chan string, 100)
	b, err := table.NewProgram("t", "/nonexistent/table-x", "", func(text string) {
		select {
		case said <- text:
		default:
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	select {
	case text := <-said:
		if !strings.Contains(text, "table-x") {
			t.Errorf("got %q", text)
		}
	case <-time.After(10 * time.Second):
		t.Error("nothing is said")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Lookup(ctx, table.Alias, "x"); err == nil || errors.Is(err, table.ErrNotFound) {
		t.Errorf("got %v, want trouble", err)
	}
	if _, err := table.NewProgram("a|b", "/x", "", nil); err == nil {
		t.Error("a name with | is taken")
	}
}

func TestPasswd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "passwd")
	os.WriteFile(path, []byte("# comment\nalice:$6$x$y:1001:1001:Alice,,,:/home/alice:/bin/sh\n"+
		"Bob::1002:1002::/home/bob:/bin/sh:extra:fields\nbad:x:one:1::/home/bad:\nalice:z:1:1::/x:/y\n"), 0o600)
	b, err := table.NewPasswd(path)
	tab := table.New("p", "passwd", must(t, b, err))
	tests := map[string]struct {
		s         table.Service
		key, want string // want "": not found; "!": trouble
	}{
		"credentials":     {table.Credentials, "alice", "alice:$6$x$y"},
		"userinfo":        {table.Userinfo, "ALICE", "1001:1001:/home/alice"},
		"no password":     {table.Credentials, "bob", ""},
		"folded":          {table.Userinfo, "bob", "1002:1002:/home/bob"},
		"nobody":          {table.Userinfo, "carol", ""},
		"bad uid":         {table.Userinfo, "bad", "!"},
		"another service": {table.Alias, "alice", "!"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := tab.Lookup(t.Context(), tt.s, tt.key)
			if errors.Is(err, table.ErrNotFound) {
				got = ""
			} else if err != nil {
				got = "!"
			}
			if got != tt.want {
				t.Errorf("got %q, %v, want %q", got, err, tt.want)
			}
		})
	}
	os.WriteFile(path, []byte("alice:x\n"), 0o600)
	if err := tab.Update(t.Context()); err == nil || !strings.Contains(err.Error(), ":1: invalid entry") {
		t.Errorf("got %v", err)
	}
	if v, err := tab.Lookup(t.Context(), table.Userinfo, "bob"); err != nil {
		t.Errorf("after a broken file: got %q, %v", v, err)
	}
}

func TestGetpwnam(t *testing.T) {
	trouble := errors.New("trouble")
	tab := table.New("g", "getpwnam", table.NewGetpwnam(func(_ context.Context, name string) (table.Account, error) {
		switch name {
		case "alice":
			return table.Account{UID: 1001, GID: 100, Home: "/home/alice"}, nil
		case "later":
			return table.Account{}, trouble
		}
		return table.Account{}, table.ErrNotFound
	}))
	if v, err := tab.Lookup(t.Context(), table.Userinfo, "Alice"); v != "1001:100:/home/alice" || err != nil {
		t.Errorf("got %q, %v", v, err)
	}
	if _, err := tab.Lookup(t.Context(), table.Userinfo, "nobody"); !errors.Is(err, table.ErrNotFound) {
		t.Errorf("got %v", err)
	}
	if _, err := tab.Check(t.Context(), table.Userinfo, "later"); !errors.Is(err, trouble) {
		t.Errorf("got %v", err)
	}
	if _, err := tab.Lookup(t.Context(), table.Alias, "alice"); !errors.Is(err, table.ErrService) {
		t.Errorf("got %v", err)
	}
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	os.WriteFile(text, []byte("a b\n"), 0o644)
	db := filepath.Join(dir, "x.db")
	if err := table.WriteMap(db, table.MapPlain, 0o644, func(yield func(string, string) bool) { yield("a", "b") }); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		c    config.Table
		want string // value of "a", or part of the error
	}{
		"mapping":         {config.Table{Backend: "static", Type: config.TableMapping, Pairs: [][2]string{{"A", "b"}}}, "b"},
		"list":            {config.Table{Backend: "static", Type: config.TableList, List: []string{"A"}}, "a"},
		"file":            {config.Table{Backend: "file", Param: text}, "b"},
		"static, path":    {config.Table{Backend: "static", Param: text}, "b"},
		"map as file":     {config.Table{Backend: "file", Param: db}, "b"},
		"db":              {config.Table{Backend: "db", Param: db}, "b"},
		"berkeley":        {config.Table{Backend: "db", Param: filepath.Join("testdata", "db", "map.hash.db")}, "not found"},
		"text as db":      {config.Table{Backend: "db", Param: text}, "not a map"},
		"no file":         {config.Table{Backend: "file", Param: filepath.Join(dir, "nosuch")}, "no such file"},
		"folder":          {config.Table{Backend: "file", Param: dir}, "not a regular file"},
		"unknown program": {config.Table{Backend: "frobnicate", Param: "/x"}, `backend "frobnicate" does not exist`},
		"path as program": {config.Table{Backend: "../x", Param: "/x"}, "does not exist"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tt.c.Name = "t"
			set, err := table.OpenSet(map[string]*config.Table{"t": &tt.c}, table.Options{Libexec: []string{dir}})
			got := ""
			if err == nil {
				defer set.Close()
				got, err = set.Lookup(t.Context(), "t", table.Alias, "a")
			}
			if err != nil {
				got = err.Error()
			}
			if !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
