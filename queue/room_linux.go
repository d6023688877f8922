package queue

import (
	"math"

	"golang.org/x/sys/unix"
)

// freeRoom is how many octets may still be written where a folder is.
func freeRoom(dir string) int64 {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return math.MaxInt64
	}
	return int64(min(st.Bavail, math.MaxInt64/uint64(st.Bsize))) * int64(st.Bsize) // smaller on some
}

// unmapPages drops the mapping of file pages, which are read again when needed.
// It is advice, so an error changes nothing.
func unmapPages(start, size uintptr) {
	unix.Syscall(unix.SYS_MADVISE, start, size, unix.MADV_DONTNEED)
}
