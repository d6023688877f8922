package privsep

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// timerSlack is how much later than asked for a timer may go off in a process
// of ours. Ours: the Go runtime has a thread that looks for trouble, which
// sleeps 20 us at a time while the process works and is woken again each time it
// goes on after a pause. In a process that gets a little to do ten thousand
// times a second this costs a fifth of all. Nothing that we time is that short.
const timerSlack = 1_000_000 // ns

// exactSlack is that of a process of which nobody has said anything (prctl(2)).
const exactSlack = 50_000 // ns

// withSlack runs start, and what it starts has timerSlack: it is inherited, and
// kept when another program is executed. That it cannot be set costs speed only.
func withSlack(start func() error) error {
	return slack(start, func(now int) int { return max(now, timerSlack) })
}

// ExactTime runs start, and what it starts has the timers of any process: the
// commands of users and filters do not keep our slack. Table programs do: ours are
// as busy as the processes are.
func ExactTime(start func() error) error {
	return slack(start, func(now int) int { return min(now, exactSlack) })
}

func slack(start func() error, want func(now int) int) error {
	runtime.LockOSThread() // no other thread is made from this one meanwhile
	defer runtime.UnlockOSThread()
	before, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if n := want(before); err == nil && n != before && unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(n), 0, 0, 0) == nil {
		defer unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(before), 0, 0, 0)
	}
	return start()
}
