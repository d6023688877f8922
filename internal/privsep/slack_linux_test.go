package privsep

import (
	"bytes"
	"os/exec"
	"strconv"
	"testing"
)

// What is started has the slack, and we do not keep it.
func TestSlack(t *testing.T) {
	slack := func(run func(func() error) error) int {
		var out bytes.Buffer
		cmd := exec.Command("cat", "/proc/self/timerslack_ns")
		cmd.Stdout = &out
		if err := run(cmd.Start); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Skip("no /proc/self/timerslack_ns")
		}
		n, err := strconv.Atoi(string(bytes.TrimSpace(out.Bytes())))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	plain := func(start func() error) error { return start() }
	before := slack(plain)
	if got := slack(withSlack); got != max(timerSlack, before) {
		t.Errorf("got %d; want %d", got, timerSlack)
	}
	if got := slack(plain); got != before {
		t.Errorf("afterwards: got %d; want %d", got, before)
	}
}
