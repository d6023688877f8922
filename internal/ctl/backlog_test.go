package ctl

import "golang.org/x/sys/unix"

// listenBacklog is a listening unix socket with room for n that wait.
func listenBacklog(path string, n int) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return 0, err
	}
	unix.CloseOnExec(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		unix.Close(fd)
		return 0, err
	}
	if err := unix.Listen(fd, n); err != nil {
		unix.Close(fd)
		return 0, err
	}
	return fd, nil
}
