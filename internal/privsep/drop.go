package privsep

import (
	"fmt"
	"os"
	"syscall"

	"smtpd/internal/imsg"
)

// Confine makes the present process what its role may be: root folder, then
// groups, group and user on every thread, then no new privileges, then the
// system call filter. In this order: each step needs what the next takes away.
// Nothing from outside has been read before. With Unprivileged only the filter
// is applied.
func Confine(role imsg.Role, b Boot) error {
	if err := noCore(); err != nil {
		return err
	}
	if !b.Unprivileged {
		if b.UID == 0 || b.GID == 0 {
			return fmt.Errorf("%s: refusing to run as root", role)
		}
		if b.Root != "" {
			if err := syscall.Chroot(b.Root); err != nil {
				return fmt.Errorf("chroot %s: %w", b.Root, err)
			}
		}
		if err := os.Chdir("/"); err != nil {
			return err
		}
		if err := setIdentity(b.UID, b.GID); err != nil {
			return err
		}
	}
	return confine(role, b)
}

// noCore keeps memory, and what secrets it holds, out of core files.
func noCore() error {
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		return fmt.Errorf("no core files: %w", err)
	}
	return nil
}
