package privsep

import (
	"bytes"
	"os/exec"
	"strconv"
	"testing"
)

// What is started has the slack, and we do not keep it.
func TestSlack(t *testing.T) {
	of := func(run func(func() error) error) int {
		var out bytes.Buffer
		cmd := exec.Command("cat", "/proc/self/timerslack_ns")
		cmd.Stdout = &out
		if err := run(cmd.Start); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		n, err := strconv.Atoi(string(bytes.TrimSpace(out.Bytes())))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	plain := func(start func() error) error { return start() }
	before := of(plain)
	if got := of(withSlack); got != max(timerSlack, before) {
		t.Errorf("got %d; want %d", got, timerSlack)
	}
	commands := func(start func() error) error {
		return withSlack(func() error { return ExactTime(start) })
	}
	if got := of(commands); got != min(exactSlack, before) {
		t.Errorf("of a command: got %d; want %d", got, exactSlack)
	}
	if got := of(plain); got != before {
		t.Errorf("afterwards: got %d; want %d", got, before)
	}
}
