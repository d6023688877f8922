//go:build !linux

package privsep

import "golang.org/x/sys/unix"

// maxGiven is where KeepDescriptors ends to look. Ours.
const maxGiven = 1024

// KeepDescriptors has what this process was started with, standard input, output
// and error aside, stay here: what the shell of an operator has open is nothing
// for the commands of users.
func KeepDescriptors() {
	for fd := 3; fd < maxGiven; fd++ {
		unix.CloseOnExec(fd)
	}
}
