package query

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"smtpd/table"
)

func TestStatement(t *testing.T) {
	mark, dollar, escaping := Dialect{}, Dialect{Dollar: true}, Dialect{Backslash: true}
	tests := []struct {
		d    Dialect
		text string
		want string // the statement and how often the key is bound, or the mistake
	}{
		{mark, "SELECT a FROM b WHERE c=?", "SELECT a FROM b WHERE c=? 1"},
		{mark, "SELECT a FROM b WHERE c=? OR d=? ; ", "SELECT a FROM b WHERE c=? OR d=?  2"},
		{mark, "SELECT a", "SELECT a 0"},
		{mark, "SELECT 'a?b', \"?x\", `?y` FROM b WHERE c=?;;", "SELECT 'a?b', \"?x\", `?y` FROM b WHERE c=? 1"},
		{mark, "SELECT 'it''s ?' WHERE c=?", "SELECT 'it''s ?' WHERE c=? 1"},
		{mark, "SELECT a /* what? */ WHERE c=?", "SELECT a /* what? */ WHERE c=? 1"},
		{mark, "SELECT a WHERE c='?'", "in quotes"},
		{mark, "SELECT a WHERE c=?1", "a number"},
		{mark, "SELECT a; DROP TABLE b", "more than one statement"},
		{mark, "SELECT 'a", "without its end"},
		{mark, "SELECT a /* b", "without its end"},
		{mark, "SELECT a -- WHERE c=?", "a comment"},
		{mark, `SELECT '\' WHERE c=?`, `SELECT '\' WHERE c=? 1`},
		{escaping, `SELECT '\'' WHERE c=?`, `SELECT '\'' WHERE c=? 1`},
		{escaping, `SELECT '\' WHERE c=?`, "without its end"},
		{dollar, "SELECT a FROM b WHERE c=$1 OR d=$1", "SELECT a FROM b WHERE c=$1 OR d=$1 1"},
		{dollar, "SELECT a FROM b WHERE c=$2", "only $1"},
		{dollar, "SELECT a FROM b WHERE c=$11", "only $1"},
		{dollar, "SELECT a FROM b WHERE c=$01", "only $1"},
		{dollar, "SELECT a FROM b WHERE c='$1'", "in quotes"},
		{dollar, "SELECT a ? b", "SELECT a ? b 0"},
	}
	for _, tt := range tests {
		text, n, err := tt.d.statement(tt.text)
		got := fmt.Sprintf("%s %d", text, n)
		if err != nil {
			got = err.Error()
		}
		if got != tt.want && (err == nil || !strings.Contains(got, tt.want)) {
			t.Errorf("%s: got %q, want %q", tt.text, got, tt.want)
		}
	}
}

func TestSettings(t *testing.T) {
	s, err := parseSettings("f", "# comment\n\n key value of = it; # all of it\ncolon: x:y\nspaced : z\nurl ldap://host:1\n\ttab\tv\n")
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"key": "value of = it; # all of it", "colon": "x:y", "spaced": "z",
		"url": "ldap://host:1", "tab": "v", "missing": "otherwise"} {
		if got := s.Text(key, "otherwise"); got != want {
			t.Errorf("%s: got %q, want %q", key, got, want)
		}
	}
	if got := s.unused(); len(got) != 0 {
		t.Errorf("unused: %q", got)
	}
	s.Default("key", "other")
	s.Default("new", "7")
	if n, err := s.Number("new", 1, 10); n != 7 || err != nil || s.Text("key", "") == "other" {
		t.Errorf("got %d, %v", n, err)
	}
	if _, err := s.Number("tab", 1, 10); err == nil || !strings.HasPrefix(err.Error(), "f:7: tab: ") {
		t.Errorf("got %v", err)
	}
	for text, want := range map[string]string{"a b\n\na c": "f:3: a is already in line 1", "a": `f:1: "a" has no value`,
		"a:  ": "has no value", "a b\x00c": "control character", "a b\x7f": "control character"} {
		if _, err := parseSettings("f", text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}

// server is an Engine without a server.
type server struct {
	rows   map[string][][]string // by the query's name
	err    error
	verify error
	asked  atomic.Int32
	closed atomic.Bool
}

func (e *server) Rows(_ context.Context, q *Query, _ string) ([][]string, error) {
	e.asked.Add(1)
	return e.rows[q.Name], e.err
}
func (e *server) Verify(context.Context) error { return e.verify }
func (e *server) Close() error                 { e.closed.Store(true); return nil }

// fixture is a table of such an engine, and its clock.
func fixture(t *testing.T, e *server, conf string) (*backend, *time.Time) {
	t.Helper()
	now := time.Unix(1e9, 0)
	s, err := parseSettings("f", conf)
	if err != nil {
		t.Fatal(err)
	}
	queries, err := Queries(s)
	if err != nil {
		t.Fatal(err)
	}
	b, err := newBackend(s, e, queries, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	return b, &now
}

// TestSources: the list is taken in turn, asked for again after a number of
// turns or a time, and kept when that fails.
func TestSources(t *testing.T) {
	e := &server{rows: map[string][][]string{"fetch_source": {{"1"}, {"2"}, {"3"}}}}
	b, now := fixture(t, e, "fetch_source x\nfetch_source_expire 60\nfetch_source_refresh 4")
	next := func(want string, asked int32) {
		t.Helper()
		got, err := b.Fetch(t.Context(), table.Source)
		if err != nil {
			got = err.Error()
		}
		if got != want || e.asked.Load() != asked {
			t.Errorf("got %q after %d questions, want %q after %d", got, e.asked.Load(), want, asked)
		}
	}
	next("2", 1)
	next("3", 1)
	next("1", 1)
	next("2", 1)
	next("3", 2)
	*now = now.Add(time.Minute)
	next("1", 3)
	*now = now.Add(time.Minute)
	e.err = ErrRefused
	next("2", 4)
	e.err, e.rows = nil, nil
	next("not found", 5)
	if _, err := b.Lookup(t.Context(), table.Source, "x"); !errors.Is(err, table.ErrService) {
		t.Errorf("lookup without a query: got %v", err)
	}
}

// TestGate: a server that is away is asked again after pauses that grow to
// lastPause; one that refuses is there.
func TestGate(t *testing.T) {
	e := &server{err: errors.New("connection refused")}
	b, now := fixture(t, e, "query_alias x")
	ask := func() int32 {
		before := e.asked.Load()
		if _, err := b.Lookup(t.Context(), table.Alias, "x"); err == nil || errors.Is(err, table.ErrNotFound) {
			t.Errorf("got %v", err)
		}
		return e.asked.Load() - before
	}
	for i, pause := range []time.Duration{100, 200, 400, 800, 1600, 2000, 2000} {
		if n := ask(); n != 2 {
			t.Errorf("pause %d: asked %d times", i, n)
		}
		if n := ask(); n != 0 {
			t.Errorf("pause %d: asked %d times at once", i, n)
		}
		*now = now.Add(pause*time.Millisecond - 1)
		if n := ask(); n != 0 {
			t.Errorf("pause %d: asked %d times before its end", i, n)
		}
		*now = now.Add(1)
	}
	e.err = fmt.Errorf("%w: syntax", ErrRefused)
	for range 3 {
		if n := ask(); n != 1 {
			t.Errorf("refused: asked %d times", n)
		}
	}
}

func TestValue(t *testing.T) {
	tests := []struct {
		service table.Service
		rows    [][]string
		want    string
	}{
		{table.Alias, [][]string{{"a"}, {""}, {" b, c "}}, "a, b, c"},
		{table.Alias, [][]string{{" "}}, "not found"},
		{table.Alias, nil, "not found"},
		{table.Mailaddrmap, [][]string{{"a@b"}, {"@c"}}, "a@b, @c"},
		{table.Credentials, [][]string{{"u", "h"}, {"v", "i"}}, "u:h"},
		{table.Userinfo, [][]string{{"1", "2", "/h"}}, "1:2:/h"},
		{table.Userinfo, [][]string{{"1:2:/h"}}, "1:2:/h"},
	}
	for _, tt := range tests {
		got, err := value(tt.service, tt.rows)
		if err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%s %q: got %q, want %q", tt.service, tt.rows, got, tt.want)
		}
	}
}

// TestUpdate: a mistake keeps the old configuration; the engine of one that is
// replaced is closed, and so is that of one that is refused.
func TestUpdate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var engines []*server
	var verify error
	var said strings.Builder
	p := &program{path: path, errw: &said, now: time.Now, open: func(s *Settings) (Engine, []Query, error) {
		q, err := Queries(s)
		e := &server{rows: map[string][][]string{"query_alias": {{s.Text("row", "")}}}, verify: verify}
		engines = append(engines, e)
		return e, q, err
	}}
	step := func(text string, v error, fails bool, want string, closed ...bool) {
		t.Helper()
		write(text)
		verify = v
		if err := p.Update(t.Context()); (err != nil) != fails {
			t.Errorf("%q: got %v", text, err)
		}
		if got, err := p.Lookup(t.Context(), table.Alias, "x"); got != want || err != nil {
			t.Errorf("%q: got %q, %v, want %q", text, got, err, want)
		}
		for i, c := range closed {
			if engines[i].closed.Load() != c {
				t.Errorf("%q: engine %d closed: %v", text, i, !c)
			}
		}
	}
	step("query_alias x\nrow one", nil, false, "one", false)
	step("query_alias x\nrow two\nodd 1", errors.New("away"), false, "two", true, false)
	step("query_alias x\nrow three", ErrRefused, true, "two", true, false, true)
	step("query_alias x\nrow three\nfetch_source_expire -1", nil, true, "two", true, false, true, true)
	step("query_alias", nil, true, "two", true, false)
	step("row four", nil, true, "two", true, false)
	if got := said.String(); !strings.Contains(got, "warn: away") || !strings.Contains(got, ":3: odd means nothing here") {
		t.Errorf("said %q", got)
	}
	if err := p.Close(); err != nil || !engines[1].closed.Load() {
		t.Errorf("close: %v", err)
	}
}

func FuzzSettings(f *testing.F) {
	f.Add("dbpath /x\nquery_alias: SELECT a FROM b WHERE c=?;\n# no\n")
	f.Add("a :b\r\n\x00")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := parseSettings("f", text)
		if err != nil {
			return
		}
		var again strings.Builder
		for _, v := range s.values {
			fmt.Fprintf(&again, "%s %s\n", v.key, v.value)
		}
		other, err := parseSettings("f", again.String())
		if err != nil || len(other.values) != len(s.values) {
			if strings.Contains(text, ":") || strings.Contains(text, "#") {
				return // a key or value that begins with one cannot be written with a space
			}
			t.Fatalf("%q: again: %v", again.String(), err)
		}
	})
}

func FuzzStatement(f *testing.F) {
	f.Add("SELECT a FROM b WHERE c=? AND d='x''y';", false, false)
	f.Add(`SELECT "$1" /* */ $1 '\'`, true, true)
	f.Fuzz(func(t *testing.T, text string, dollar, backslash bool) {
		d := Dialect{Dollar: dollar, Backslash: backslash}
		got, n, err := d.statement(text)
		if err != nil {
			return
		}
		if !strings.HasPrefix(text, got) || strings.Count(got, d.placeholder()) < n {
			t.Fatalf("%q: got %q with %d placeholders", text, got, n)
		}
		if again, m, err := d.statement(got); again != got || m != n || err != nil {
			t.Fatalf("%q: again %q, %d, %v", got, again, m, err)
		}
	})
}
