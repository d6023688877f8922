// Package tabletest is the suite that every backend of a table must pass. It is
// for tests alone.
package tabletest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"smtpd/table"
)

// limit ends a backend that does not answer.
const limit = 30 * time.Second

// Entries are what the backends under test hold: key and value of Alias lookups.
func Entries() map[string]string {
	return map[string]string{
		"root":             "alice",
		"alice@domain.org": "alice, bob@example.org",
		"@catch.org":       "carol",
		"quote'\"%s;--":    "x",
		"pipe|percent%40":  "y",
		"ümlaut":           "z",
		"long":             strings.Repeat("abcdefgh, ", 400) + "end",
	}
}

// TestBackend runs the promises of table.Backend against what open makes of
// the entries. The backend is closed by the suite.
func TestBackend(t *testing.T, open func(t *testing.T, entries map[string]string) table.Backend) {
	t.Run("lookup", func(t *testing.T) { lookup(t, open(t, Entries())) })
	t.Run("hostile keys", func(t *testing.T) { hostile(t, open(t, Entries())) })
	t.Run("concurrent", func(t *testing.T) { concurrent(t, open(t, Entries())) })
	t.Run("update", func(t *testing.T) { update(t, open(t, Entries())) })
	t.Run("ended context", func(t *testing.T) { ended(t, open(t, Entries())) })
}

// ask is a table over b, closed at the end of the test, and a bound on its
// time.
func ask(t *testing.T, b table.Backend) (*table.Table, context.Context) {
	tab := table.New("t", "test", b)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(func() {
		cancel()
		if err := tab.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return tab, ctx
}

func lookup(t *testing.T, b table.Backend) {
	tab, ctx := ask(t, b)
	for key, want := range Entries() {
		for _, k := range []string{key, strings.ToUpper(key[:1]) + key[1:]} {
			if k[0] >= 0x80 {
				continue // only ASCII is folded
			}
			if got, err := tab.Lookup(ctx, table.Alias, k); got != want || err != nil {
				t.Errorf("%q: got %q, %v, want %q", k, got, err, want)
			}
		}
	}
	for _, key := range []string{"nobody", "", "roo", "root ", "alice@domain.or", "%", "_oot", "*", "@"} {
		if got, err := tab.Lookup(ctx, table.Alias, key); !errors.Is(err, table.ErrNotFound) {
			t.Errorf("%q: got %q, %v, want not found", key, got, err)
		}
	}
	st := tab.Stats()
	if st.Lookups == 0 || st.Misses == 0 || st.Errors != 0 {
		t.Errorf("got %d lookups, %d misses, %d errors: %s", st.Lookups, st.Misses, st.Errors, st.LastError)
	}
}

// hostile asks for keys that could end a line, a string or a query somewhere on
// the way. Each is refused or not found, and the backend works afterwards.
func hostile(t *testing.T, b table.Backend) {
	tab, ctx := ask(t, b)
	for _, key := range []string{"root\n", "\nroot", "root\r", "ro\x00ot", "root\x00", "root|", "|root", "root|x|y",
		"' OR '1'='1", `" OR ""="`, "root'; DROP TABLE aliases; --", "%s%s%n", "$1", "?", "*)(uid=*", `\`, `root\`,
		strings.Repeat("k", 64<<10), strings.Repeat("k", table.MaxKey)} {
		if got, err := tab.Lookup(ctx, table.Alias, key); err == nil {
			t.Errorf("%.40q: got %q, want an error", key, got)
		}
		if ok, err := tab.Check(ctx, table.Alias, key); ok {
			t.Errorf("%.40q: is in the table, %v", key, err)
		}
	}
	if got, err := tab.Lookup(ctx, table.Alias, "root"); got != "alice" || err != nil {
		t.Errorf("afterwards: got %q, %v", got, err)
	}
}

func concurrent(t *testing.T, b table.Backend) {
	tab, ctx := ask(t, b)
	var wg sync.WaitGroup
	for n := range 16 {
		wg.Go(func() {
			for i := range 20 {
				key, want := "root", "alice"
				if (n+i)%2 == 0 {
					key, want = "@catch.org", "carol"
				}
				if got, err := tab.Lookup(ctx, table.Alias, key); got != want || err != nil {
					t.Errorf("%s: got %q, %v", key, got, err)
					return
				}
				if _, err := tab.Lookup(ctx, table.Alias, fmt.Sprint("no", n, i)); !errors.Is(err, table.ErrNotFound) {
					t.Errorf("got %v, want not found", err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func update(t *testing.T, b table.Backend) {
	tab, ctx := ask(t, b)
	if err := tab.Update(ctx); err != nil {
		t.Fatal(err)
	}
	if got, err := tab.Lookup(ctx, table.Alias, "root"); got != "alice" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

// ended asks with a context that has ended: whatever comes of it comes at once,
// and it is never "no".
func ended(t *testing.T, b table.Backend) {
	tab, ctx := ask(t, b)
	if _, err := tab.Lookup(ctx, table.Alias, "root"); err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	done := make(chan error, 1)
	go func() {
		_, err := tab.Lookup(gone, table.Alias, "root")
		done <- err
	}()
	select {
	case err := <-done:
		if errors.Is(err, table.ErrNotFound) {
			t.Error("got not found")
		}
	case <-ctx.Done():
		t.Error("no answer")
	}
}
