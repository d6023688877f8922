package privsep

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
)

// As is the identity that a process is started with; nil: that of the parent,
// from which the child steps down by itself.
type As struct {
	UID, GID uint32
	Extra    []uint32 // further groups; usually none
	Dir      string   // working folder
}

// Spawn starts this binary again as role. conn is the parent's end of the new
// process's channel; handed gets that end instead when it is not nil (a
// delivery worker's channel belongs to mda). The caller waits for the command.
func Spawn(role imsg.Role, b Boot, as *As, stderr *os.File) (cmd *exec.Cmd, near *os.File, err error) {
	exe, err := self()
	if err != nil {
		return nil, nil, err
	}
	return spawn(exe, role, b, as, stderr)
}

// spawn is Spawn of the program exe.
func spawn(exe string, role imsg.Role, b Boot, as *As, stderr *os.File) (cmd *exec.Cmd, near *os.File, err error) {
	near, far, err := ipc.Socketpair()
	if err != nil {
		return nil, nil, err
	}
	defer far.Close()
	cmd = &exec.Cmd{
		Path:        exe,
		Args:        []string{titlePrefix + role.String()},
		Env:         b.environ(role),
		Dir:         "/",
		Stderr:      stderr,
		ExtraFiles:  []*os.File{far},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if as != nil {
		cmd.Dir = as.Dir
		if !b.Unprivileged {
			cmd.SysProcAttr.Credential = &syscall.Credential{Uid: as.UID, Gid: as.GID,
				Groups: append([]uint32{as.GID}, as.Extra...)}
		}
	}
	if err := withSlack(cmd.Start); err != nil {
		near.Close()
		return nil, nil, fmt.Errorf("start %s: %w", role, err)
	}
	return cmd, near, nil
}

// self is the path to start this binary again by. On Linux it names the very
// file that runs, even when an upgrade has replaced it.
func self() (string, error) {
	if runtime.GOOS == "linux" {
		return "/proc/self/exe", nil
	}
	return os.Executable()
}

// channel takes over the inherited channel of a child.
func channel() (*os.File, error) { return ipc.Inherited(channelFD) }
