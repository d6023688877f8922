package queue

import "golang.org/x/sys/unix"

// unmapPages drops the mapping of file pages, which are read again when needed.
// It is advice, so an error changes nothing.
func unmapPages(start, size uintptr) {
	unix.Syscall(unix.SYS_MADVISE, start, size, unix.MADV_DONTNEED)
}
