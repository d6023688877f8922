//go:build !linux

package queue

import "math"

// freeRoom is not asked of these systems: what does not fit shows when it is
// written.
func freeRoom(string) int64 { return math.MaxInt64 }

// unmapPages does nothing: these systems do not let system calls be made past
// their C library, and count mapped file pages less strictly.
func unmapPages(_, _ uintptr) {}
