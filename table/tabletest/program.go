package tabletest

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"smtpd/table"
)

// programVar, in the environment, makes a test binary the program it tests.
const programVar = "TABLETEST_PROGRAM"

// Main is the TestMain of a table program: the test binary runs as the program
// when Program starts it.
func Main(m *testing.M, program func()) {
	if os.Getenv(programVar) != "" {
		program()
		os.Exit(1) // programs end by themselves
	}
	os.Exit(m.Run())
}

// Config writes a configuration file.
func Config(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "table.conf")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// Program starts the test binary as a table program with a configuration file.
// The caller closes it.
func Program(t *testing.T, config string) table.Backend {
	t.Helper()
	t.Setenv(programVar, "1")
	b, err := table.NewProgram("t", os.Args[0], config, func(text string) { t.Log(text) })
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// returnLimit is how soon a table must work again once its server is back.
const returnLimit = 10 * time.Second

// TestRestart has the server behind a backend end and come back in the middle:
// meanwhile nothing is said to be missing, and soon afterwards everything is
// there. The backend is closed by the suite.
func TestRestart(t *testing.T, b table.Backend, s *Server) {
	tab, ctx := ask(t, b)
	if got, err := tab.Lookup(ctx, table.Alias, "root"); got != "alice" || err != nil {
		t.Fatalf("before: got %q, %v", got, err)
	}
	s.Stop(t)
	for range 3 {
		got, err := tab.Lookup(ctx, table.Alias, "root")
		if err == nil || errors.Is(err, table.ErrNotFound) || errors.Is(err, table.ErrService) {
			t.Errorf("without the server: got %q, %v, want a temporary error", got, err)
		}
	}
	s.Start(t)
	back := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		got, err := tab.Lookup(ctx, table.Alias, "root")
		if err == nil && got == "alice" {
			t.Logf("back after %v", time.Since(back))
			return
		}
		if err == nil || errors.Is(err, table.ErrNotFound) || time.Since(back) > returnLimit {
			t.Fatalf("after %v: got %q, %v", time.Since(back), got, err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal(context.Cause(ctx))
		}
	}
}

// matching are the services that are asked whether, not what.
const matching = table.Domain | table.Netaddr | table.Mailaddr | table.String | table.Regex | table.Auth

// Answer is what a table says in one word: the value, "yes" or "no", "not
// found", or "error".
func Answer(t *testing.T, tab *table.Table, s table.Service, key string) string {
	t.Helper()
	word, err := answer(t, tab, s, key)
	if err != nil {
		t.Log(err)
	}
	return word
}

func answer(t *testing.T, tab *table.Table, s table.Service, key string) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	var v string
	var err error
	if s&matching != 0 {
		var yes bool
		yes, err = tab.Check(ctx, s, key)
		v = map[bool]string{true: "yes", false: "no"}[yes]
	} else {
		v, err = tab.Lookup(ctx, s, key)
	}
	switch {
	case errors.Is(err, table.ErrNotFound):
		return "not found", nil
	case err != nil:
		return "error", err
	}
	return v, nil
}

// Await asks until the answer is want, within the time that a table has to
// notice a change.
func Await(t *testing.T, tab *table.Table, s table.Service, key, want string) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(returnLimit); ; <-tick.C {
		got, err := answer(t, tab, s, key)
		if got == want {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s %s: got %q, %v, want %q", s, key, got, err, want)
		}
	}
}

// Command is the test binary as a table program with a configuration file, to
// be started.
func Command(ctx context.Context, config string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, os.Args[0], config)
	cmd.Env = append(os.Environ(), programVar+"=1")
	return cmd
}

// Run runs the test binary as a table program with a configuration, its input
// at its end after the handshake, and gives its status and what it said.
func Run(t *testing.T, config string) (status int, said string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := Command(ctx, Config(t, config))
	cmd.Stdin = strings.NewReader("config|ready\n")
	var errs strings.Builder
	cmd.Stderr = &errs
	cmd.Run()
	return cmd.ProcessState.ExitCode(), errs.String()
}
