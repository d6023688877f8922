package mda

import "golang.org/x/sys/unix"

// oWalk opens a folder to pass through; it need not be readable.
const oWalk = unix.O_SEARCH
