package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
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
