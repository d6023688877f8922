package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"smtpd/internal/proc/parent"
)

// serviceManager speaks sd_notify(3): how to tell the service manager of a
// change, and how often it wants to hear that the daemon lives (half the
// watchdog's time; 0: it does not ask). Without one both do nothing. The
// variables are taken out of the environment, so that no child finds them.
func serviceManager() (notify func(state string), watchdog time.Duration) {
	path := os.Getenv("NOTIFY_SOCKET")
	usec, _ := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	pid := os.Getenv("WATCHDOG_PID")
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		os.Unsetenv(name)
	}
	if path == "" || (path[0] != '/' && path[0] != '@') {
		return func(string) {}, 0
	}
	if pid == "" || pid == strconv.Itoa(os.Getpid()) {
		watchdog = time.Duration(usec) * time.Microsecond / 2
	}
	return func(state string) { sendState(path, state) }, watchdog
}

// firstSocket is the descriptor of the first socket that a service manager hands
// over (sd_listen_fds(3)).
const firstSocket = 3

// maxSockets bounds how many of them are taken. Ours.
const maxSockets = 1024

// givenSockets are the listening sockets that the service manager has opened,
// with their names. The variables are taken out of the environment, so that no
// child takes the sockets for its own.
func givenSockets() []parent.GivenSocket {
	pid, count := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID"} {
		os.Unsetenv(name)
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 1 || n > maxSockets || pid != strconv.Itoa(os.Getpid()) {
		return nil
	}
	var given []parent.GivenSocket
	for i := range n {
		name := "unknown"
		if i < len(names) && names[i] != "" {
			name = names[i]
		}
		unix.CloseOnExec(firstSocket + i)
		given = append(given, parent.GivenSocket{Name: name, File: os.NewFile(uintptr(firstSocket+i), name)})
	}
	return given
}

func sendState(path, state string) {
	if state == "RELOADING=1" {
		var now unix.Timespec
		if unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) == nil {
			state += fmt.Sprintf("\nMONOTONIC_USEC=%d", now.Nano()/1000)
		}
	}
	conn, err := net.Dial("unixgram", path)
	if err != nil {
		return // the manager will notice by itself
	}
	defer conn.Close()
	_, _ = conn.Write([]byte(state))
}
