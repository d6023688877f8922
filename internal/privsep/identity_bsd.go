//go:build openbsd || freebsd

package privsep

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// setIdentity: on the BSDs the identity belongs to the process, not the thread.
func setIdentity(uid, gid int) error {
	if err := unix.Setgroups([]int{gid}); err != nil {
		return fmt.Errorf("setgroups: %w", err)
	}
	if err := unix.Setresgid(gid, gid, gid); err != nil {
		return fmt.Errorf("setresgid: %w", err)
	}
	if err := unix.Setresuid(uid, uid, uid); err != nil {
		return fmt.Errorf("setresuid: %w", err)
	}
	return nil
}
