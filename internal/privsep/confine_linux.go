package privsep

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"smtpd/internal/imsg"
)

// denied are the system calls that no child ever needs. A deny list, not an
// allow list: what the Go runtime needs changes by release.
var denied = []uint32{
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_KCMP,
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_UNSHARE, unix.SYS_SETNS,
	unix.SYS_MOVE_MOUNT, unix.SYS_FSOPEN, unix.SYS_FSMOUNT, unix.SYS_OPEN_TREE,
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_SECCOMP,
	unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
	unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY,
	unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD, unix.SYS_REBOOT,
	unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_ADJTIMEX, unix.SYS_ACCT, unix.SYS_SWAPON, unix.SYS_SWAPOFF,
	unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_MKNODAT, unix.SYS_QUOTACTL, unix.SYS_SYSLOG, unix.SYS_PERSONALITY,
}

// Further system calls by what they are for.
var (
	execCalls    = []uint32{unix.SYS_EXECVE, unix.SYS_EXECVEAT}
	socketCalls  = []uint32{unix.SYS_SOCKET}
	connectCalls = []uint32{unix.SYS_CONNECT}
	listenCalls  = []uint32{unix.SYS_LISTEN}
	bindCalls    = []uint32{unix.SYS_BIND}
	acceptCalls  = []uint32{unix.SYS_ACCEPT, unix.SYS_ACCEPT4}
)

// deniedTo is what each role must never do besides. lookup starts table and
// filter programs and asks the name system; mta connects out, and so does a
// delivery worker that has to do with a store only.
func deniedTo(role imsg.Role) []uint32 {
	list := append([]uint32(nil), denied...)
	add := func(groups ...[]uint32) {
		for _, g := range groups {
			list = append(list, g...)
		}
	}
	switch role {
	case imsg.Keys, imsg.Queue, imsg.Scheduler, imsg.MDA:
		add(execCalls, socketCalls, connectCalls, bindCalls, listenCalls, acceptCalls)
	case imsg.SMTP, imsg.Control:
		add(execCalls, socketCalls, connectCalls, bindCalls, listenCalls)
	case imsg.MTA, imsg.Deliver:
		add(execCalls, listenCalls, acceptCalls)
	case imsg.Lookup:
		add(listenCalls, acceptCalls)
	}
	return list
}

// confine sets no_new_privs and the filter on all threads, and the name that
// pgrep sees.
func confine(role imsg.Role, b Boot) error {
	if role == imsg.Deliver && !b.Store {
		return nil // runs as the user and may start what the user may start
	}
	return denyList(deniedTo(role))
}

// SetTitle makes pgrep and top show "smtpd" although the binary was started by
// way of /proc/self/exe. It is best effort: it costs only the short name. A file
// first, for prctl names the calling thread: to hold on to the first one costs a
// delivery worker a tenth of its start.
func SetTitle() {
	name := [...]byte{'s', 'm', 't', 'p', 'd', 0}
	fd, err := unix.Open("/proc/self/comm", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil { // a binary that may not be read, or no /proc
		_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0)
		return
	}
	_, _ = unix.Write(fd, name[:len(name)-1])
	_ = unix.Close(fd)
}

const (
	seccompFilter = 1          // SECCOMP_SET_MODE_FILTER
	seccompTSync  = 1          // SECCOMP_FILTER_FLAG_TSYNC
	retAllow      = 0x7fff0000 // SECCOMP_RET_ALLOW
	retEPERM      = 0x00050000 | uint32(unix.EPERM)
	retKill       = 0x80000000 // SECCOMP_RET_KILL_PROCESS
	x32Bit        = 0x40000000 // system calls of the x32 ABI on amd64
)

// denyList makes the system calls fail with EPERM on every thread. The filter
// is copied to all threads by TSYNC, and no_new_privs with it: prctl alone
// reaches only the calling thread.
func denyList(calls []uint32) error {
	prog, err := program(calls)
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	r, _, errno := unix.Syscall(unix.SYS_SECCOMP, seccompFilter, seccompTSync, uintptr(unsafe.Pointer(&fprog)))
	if errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	if r != 0 {
		return fmt.Errorf("seccomp: thread %d cannot be confined", r)
	}
	return nil
}

// program is the filter: the right architecture or death, EPERM for the calls.
func program(calls []uint32) ([]unix.SockFilter, error) {
	arch := map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}[runtime.GOARCH]
	if arch == 0 || len(calls) > 250 {
		return nil, fmt.Errorf("seccomp: no filter for %s with %d calls", runtime.GOARCH, len(calls))
	}
	const (
		load = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		jeq  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		jge  = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
		ret  = unix.BPF_RET | unix.BPF_K
	)
	p := []unix.SockFilter{
		{Code: load, K: 4}, // seccomp_data.arch
		{Code: jeq, K: arch, Jt: 1},
		{Code: ret, K: retKill},
		{Code: load, K: 0}, // seccomp_data.nr
		{Code: jge, K: x32Bit, Jt: uint8(len(calls) + 1)},
	}
	for i, nr := range calls {
		p = append(p, unix.SockFilter{Code: jeq, K: nr, Jt: uint8(len(calls) - i)})
	}
	return append(p, unix.SockFilter{Code: ret, K: retAllow}, unix.SockFilter{Code: ret, K: retEPERM}), nil
}
