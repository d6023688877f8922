//go:build freebsd || openbsd || netbsd || darwin

package main

import "golang.org/x/sys/unix"

// How a terminal's settings are read and changed.
const (
	getTermios = unix.TIOCGETA
	setTermios = unix.TIOCSETA
)
