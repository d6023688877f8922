package privsep

import (
	"fmt"

	"golang.org/x/sys/unix"

	"smtpd/internal/imsg"
)

// promises is what each role keeps of pledge(2).
var promises = map[imsg.Role]string{
	imsg.Keys:      "stdio recvfd",
	imsg.Control:   "stdio unix sendfd recvfd",
	imsg.Lookup:    "stdio rpath inet dns proc exec unix sendfd recvfd",
	imsg.SMTP:      "stdio inet unix sendfd recvfd",
	imsg.Queue:     "stdio rpath wpath cpath fattr flock sendfd recvfd",
	imsg.Scheduler: "stdio recvfd",
	imsg.MTA:       "stdio inet recvfd",
	imsg.MDA:       "stdio sendfd recvfd",
	imsg.Deliver:   "stdio rpath inet dns recvfd", // for a store; the others are not confined
}

func confine(role imsg.Role, b Boot) error {
	p, ok := promises[role]
	if !ok || (role == imsg.Deliver && !b.Store) {
		return nil // other delivery workers run as the user
	}
	if err := unix.PledgePromises(p); err != nil {
		return fmt.Errorf("pledge: %w", err)
	}
	return nil
}

// SetTitle has nothing to do: argv[0] is what ps shows.
func SetTitle() {}
