package queue

import (
	"os"

	"golang.org/x/sys/unix"
)

// syncData makes what was written to a file durable, when its size is as it was.
func syncData(f *os.File) error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); err != unix.EINTR {
			return err
		}
	}
}
