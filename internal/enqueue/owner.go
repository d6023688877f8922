package enqueue

import (
	"os"
	"syscall"
)

func groupOf(st os.FileInfo) (gid uint32, ok bool) {
	s, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return s.Gid, true
}

func ownerOf(st os.FileInfo) (uid uint32, links uint64, ok bool) {
	s, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, false
	}
	return s.Uid, uint64(s.Nlink), true
}
