package ctl

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// peerUID: SO_PEERCRED gives struct sockpeercred { uid, gid, pid }. Package
// unix has no call for it, so its first 8 octets are fetched with one that
// reads 8 octets.
func peerUID(fd int) (uint32, error) {
	cred, err := unix.GetsockoptIPMreq(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, err
	}
	return binary.NativeEndian.Uint32(cred.Multiaddr[:]), nil
}
