package ctl

import (
	"errors"
	"fmt"
	"net"
)

// PeerUID is the user that connected, as the kernel knows it.
func PeerUID(u *net.UnixConn) (uint32, error) {
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("peer credentials: %w", err)
	}
	var uid uint32
	var cerr error
	err = raw.Control(func(fd uintptr) { uid, cerr = peerUID(int(fd)) })
	if err = errors.Join(err, cerr); err != nil {
		return 0, fmt.Errorf("peer credentials: %w", err)
	}
	return uid, nil
}
