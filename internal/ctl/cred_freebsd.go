package ctl

import "golang.org/x/sys/unix"

// solLocal is the level of LOCAL_PEERCRED, see unix(4).
const solLocal = 0

func peerUID(fd int) (uint32, error) {
	cred, err := unix.GetsockoptXucred(fd, solLocal, unix.LOCAL_PEERCRED)
	if err != nil {
		return 0, err
	}
	return cred.Uid, nil
}
