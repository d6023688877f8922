//go:build !linux

package queue

// unmapPages does nothing: these systems do not let system calls be made past
// their C library, and count mapped file pages less strictly.
func unmapPages(_, _ uintptr) {}
