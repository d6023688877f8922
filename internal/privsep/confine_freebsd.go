package privsep

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"smtpd/internal/imsg"
)

// confine puts the roles that live by their descriptors alone into capability
// mode, where nothing can be opened, bound or connected by name.
func confine(role imsg.Role, _ Boot) error {
	switch role {
	case imsg.Keys, imsg.Scheduler, imsg.Control:
		if err := unix.CapEnter(); err != nil && !errors.Is(err, unix.ENOSYS) {
			return fmt.Errorf("capability mode: %w", err)
		}
	}
	return nil
}

// SetTitle has nothing to do: argv[0] is what ps shows.
func SetTitle() {}
