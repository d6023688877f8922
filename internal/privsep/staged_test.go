package privsep

import (
	"errors"
	"testing"

	"smtpd/internal/config"
	"smtpd/internal/imsg"
)

// TestStaged: what is staged is used or taken back, once, and never both.
func TestStaged(t *testing.T) {
	env := &Env{}
	ready, aborted := 0, 0
	bad := errors.New("bad")
	env.OnPrepare(func(c *config.Config) (func(), error) {
		if c.Generation == 13 {
			return nil, bad
		}
		ready++
		return func() { aborted++ }, nil
	})
	var s staged
	told := make(chan error, 1)
	stage := func(generation uint64) error {
		s.prepare(env, &config.Config{Generation: generation}, func(err error) { told <- err })
		return <-told
	}
	var used []uint64
	use := func(c *config.Config) { used = append(used, c.Generation) }
	expect := func(step string, wantReady, wantAborted, wantUsed int) {
		t.Helper()
		if ready != wantReady || aborted != wantAborted || len(used) != wantUsed {
			t.Errorf("%s: %d ready, %d aborted, %d used; want %d, %d, %d", step, ready, aborted, len(used), wantReady, wantAborted, wantUsed)
		}
	}
	if err := stage(2); err != nil {
		t.Fatal(err)
	}
	s.apply(&imsg.Apply{Generation: 1, Commit: true}, use)
	expect("another generation", 1, 0, 0)
	s.apply(&imsg.Apply{Generation: 2, Commit: true}, use)
	s.apply(&imsg.Apply{Generation: 2}, use)
	expect("used", 1, 0, 1)
	if err := stage(3); err != nil {
		t.Fatal(err)
	}
	s.apply(&imsg.Apply{Generation: 3}, use)
	s.apply(&imsg.Apply{Generation: 3, Commit: true}, use)
	expect("forgotten", 2, 1, 1)
	if err := stage(13); !errors.Is(err, bad) {
		t.Errorf("got %v", err)
	}
	if err := stage(4); err != nil {
		t.Fatal(err)
	}
	if err := stage(5); err != nil {
		t.Fatal(err)
	}
	expect("one in place of another", 4, 2, 1)
	s.apply(&imsg.Apply{Generation: 5, Commit: true}, use)
	expect("the last", 4, 2, 2)
}
