package mda

import "golang.org/x/sys/unix"

// oWalk opens a folder to pass through. OpenBSD has no way to do so with search
// permission alone: the folders on the way to a mailbox must be readable.
const oWalk = unix.O_RDONLY
