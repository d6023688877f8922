package queue

import (
	"os"
	"syscall"
)

// owner is who a file belongs to.
type owner struct{ uid int }

// stat finds the owner of a file; where that is unknown it is nobody.
func stat(info os.FileInfo) owner {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return owner{int(st.Uid)}
	}
	return owner{-1}
}
