//go:build !linux

package privsep

// withSlack runs start: timers elsewhere are coarse as they are.
func withSlack(start func() error) error { return start() }

// ExactTime runs start: nothing is different from any process.
func ExactTime(start func() error) error { return start() }
