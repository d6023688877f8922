package mda

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	shell = "/bin/sh"
	// killGrace is how long a command that ran out of time may tidy up.
	killGrace = 2 * time.Second
	// drainWait is how long output is awaited after the command has ended; only
	// a process that it left behind can make us wait.
	drainWait = 200 * time.Millisecond
	// maxOutput bounds the output that is looked at, in octets: its end.
	maxOutput = 8 << 10
)

// command hands the text to a command of the configuration or of a .forward, or
// to one of our own programs when a wrapper stands around it.
func (d *Deliverer) command(ctx context.Context, v *Delivery) error {
	line, err := d.commandLine(v)
	if err != nil {
		return err
	}
	if v.Wrapper != "" {
		values := v.Values
		values.MDA = line
		if line, err = values.expand(v.Wrapper, useCommand); err != nil {
			return v.unexpanded("wrapper command line", err)
		}
	}
	return d.run(ctx, v, line)
}

// commandLine is what a shell runs for a delivery, without the wrapper.
func (d *Deliverer) commandLine(v *Delivery) (string, error) {
	switch v.Method {
	case Maildir:
		path, err := v.maildirPath()
		if err != nil {
			return "", err
		}
		if v.Junk {
			return d.program("mail.maildir", "-j", path)
		}
		return d.program("mail.maildir", path)
	case File:
		path, err := v.path(v.Path)
		if err != nil {
			return "", err
		}
		return d.program("mail.mboxfile", "-f", v.from(), path)
	case LMTP:
		dest, err := v.expand(v.Path, usePath)
		if err != nil {
			return "", v.unexpanded("lmtp destination", err)
		}
		if v.RcptTo {
			return d.program("mail.lmtp", "-d", dest, "-r")
		}
		return d.program("mail.lmtp", "-d", dest, "-u")
	}
	line, err := v.expand(v.Command, useCommand)
	if err != nil {
		return "", v.unexpanded("command line", err)
	}
	return line, nil
}

// program is the command line of one of the programs that do alone what this
// package does.
func (d *Deliverer) program(name string, args ...string) (string, error) {
	dirs := d.o.Libexec
	if dirs == nil {
		dirs = DefaultLibexec()
	}
	for _, dir := range dirs {
		path := dir + "/" + name
		if unix.Access(path, unix.X_OK) != nil {
			continue
		}
		line := quote(path)
		for _, a := range args {
			line += " " + quote(a)
		}
		return line, nil
	}
	return "", &failure{exit: exOSFile, text: name + " is not in " + strings.Join(dirs, " or ")}
}

// quote makes one word of s for a shell, whatever it holds.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// environment is all that a command finds in its environment.
func (v *Delivery) environment() []string {
	env := []string{
		"PATH=/usr/bin:/bin",
		"DOMAIN=" + v.Rcpt.Domain,
		"HOME=" + v.Home,
		"ORIGINAL_RECIPIENT=" + v.Rcpt.String(),
		"RECIPIENT=" + v.Dest.String(),
		"SHELL=" + shell,
		"LOCAL=" + v.Rcpt.User,
		"LOGNAME=" + v.User,
		"USER=" + v.User,
		"SENDER=" + v.Sender.String(),
	}
	if tag := v.tag(); tag != "" {
		env = append(env, "EXTENSION="+tag)
	}
	return env
}

// folder is where a command runs: at home when one can get there.
func (v *Delivery) folder() string {
	if v.Home != "" && isDir(v.Home) && unix.Access(v.Home, unix.X_OK) == nil {
		return v.Home
	}
	return "/"
}

// run runs one command line in a session of its own.
func (d *Deliverer) run(ctx context.Context, v *Delivery, line string) error {
	if bytes.IndexByte([]byte(line), 0) >= 0 {
		return &failure{perm: true, text: "command line holds a NUL"}
	}
	in, err := newFeed(v)
	if err != nil {
		return tempfail(exOSErr, "smtpd: ", "", err)
	}
	defer in.close()
	out, err := newTail()
	if err != nil {
		return tempfail(exOSErr, "smtpd: ", "", err)
	}
	defer out.close()
	cmd := exec.Command(shell, "-c", line)
	cmd.Env, cmd.Dir = v.environment(), v.folder()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in.r, out.w, out.w
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := d.o.Start(cmd.Start); err != nil {
		return tempfail(exOSErr, "smtpd: ", "", err)
	}
	in.started()
	out.started()
	stop := killOnDone(ctx, cmd.Process.Pid)
	err = cmd.Wait()
	killed := stop()
	consumed, ferr := in.ended()
	last := out.ended()
	if ferr != nil {
		return tempfail(exIOErr, "smtpd: ", "read the message", ferr)
	}
	return outcome(err, killed, consumed, last)
}

// outcome turns the end of a command into the end of the delivery. killed is
// why we ended it, if we did.
func outcome(err, killed error, consumed bool, last string) error {
	if err == nil {
		if !consumed {
			return &failure{text: "mda exited prematurely"}
		}
		return nil
	}
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		return tempfail(exOSErr, "smtpd: ", "", err)
	}
	ws, _ := exit.Sys().(syscall.WaitStatus)
	f := &failure{text: "exited abnormally"}
	switch {
	case errors.Is(killed, context.DeadlineExceeded):
		f.text = "terminated; timeout"
	case ws.Signaled():
		f.text = fmt.Sprintf("terminated; signal %d", ws.Signal())
	default:
		f.exit = exit.ExitCode()
		f.perm = f.exit != exOSErr && f.exit != exTempfail && killed == nil
	}
	if last != "" {
		f.text, f.quoted = last, true
	}
	return f
}

// killOnDone ends the process group of pid when ctx ends. stop is called once
// the process has been waited for; it says why the group was ended, if it was.
func killOnDone(ctx context.Context, pid int) (stop func() error) {
	var mu sync.Mutex
	var why error
	over := false
	var hard *time.Timer
	signal := func(s syscall.Signal) {
		mu.Lock()
		defer mu.Unlock()
		if !over {
			_ = syscall.Kill(-pid, s)
		}
	}
	cancel := context.AfterFunc(ctx, func() {
		mu.Lock()
		if !over {
			why = ctx.Err()
			hard = time.AfterFunc(killGrace, func() { signal(syscall.SIGKILL) })
		}
		mu.Unlock()
		signal(syscall.SIGTERM)
	})
	return func() error {
		cancel()
		mu.Lock()
		defer mu.Unlock()
		if why != nil {
			hard.Stop()
			_ = syscall.Kill(-pid, syscall.SIGKILL) // what it left behind
		}
		over = true
		return why
	}
}

// feed is the standard input of a command.
type feed struct {
	r, w *os.File
	rest io.Reader
	done chan struct{} // closed when the writer, if any, has ended
	left bool          // not all was written
	err  error         // the text could not be read
}

// newFeed fills the pipe before the command is there. A text that fits whole
// counts as consumed however the command treats it, and needs no goroutine.
func newFeed(v *Delivery) (*feed, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	f := &feed{r: r, w: w, done: make(chan struct{})}
	p := buffers.Get().(*[]byte)
	defer buffers.Put(p)
	b := v.front((*p)[:0])
	if v.Text.File == nil {
		b = append(b, v.Text.Data...)
	} else {
		f.rest = v.Text.open()
	}
	n := writeReady(w, b)
	if n < len(b) {
		rest := bytes.NewReader(bytes.Clone(b[n:]))
		if f.rest == nil {
			f.rest = rest
		} else {
			f.rest = io.MultiReader(rest, f.rest)
		}
	}
	return f, nil
}

// writeReady writes what the pipe takes without waiting.
func writeReady(w *os.File, b []byte) (n int) {
	conn, err := w.SyscallConn()
	if err != nil {
		return 0
	}
	_ = conn.Write(func(fd uintptr) bool {
		for n < len(b) {
			m, err := unix.Write(int(fd), b[n:])
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				break
			}
			n += m
		}
		return true
	})
	return n
}

// started gives the reading end away and lets the rest follow.
func (f *feed) started() {
	f.r.Close()
	if f.rest == nil {
		f.w.Close()
		close(f.done)
		return
	}
	go func() { // ends with the pipe or the deadline that ended sets
		defer close(f.done)
		defer f.w.Close()
		f.copy()
	}()
}

func (f *feed) copy() {
	b := make([]byte, 32<<10)
	for {
		n, err := f.rest.Read(b)
		if n > 0 {
			if _, werr := f.w.Write(b[:n]); werr != nil {
				f.left = true
				return
			}
		}
		if err == io.EOF {
			return
		}
		if err != nil {
			f.left, f.err = true, err
			return
		}
	}
}

// ended is told that the command has ended: what it left is left.
func (f *feed) ended() (consumed bool, err error) {
	_ = f.w.SetWriteDeadline(time.Now())
	<-f.done
	return !f.left, f.err
}

func (f *feed) close() {
	f.r.Close()
	f.w.Close()
}

// tail collects the end of what a command prints.
type tail struct {
	r, w *os.File
	done chan struct{}
	buf  []byte
}

func newTail() (*tail, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	return &tail{r: r, w: w, done: make(chan struct{})}, nil
}

func (t *tail) started() {
	t.w.Close()
	go func() { // ends with the pipe or the deadline that ended sets
		defer close(t.done)
		b := make([]byte, 4<<10)
		for {
			n, err := t.r.Read(b)
			t.buf = append(t.buf, b[:n]...)
			if over := len(t.buf) - maxOutput; over > 0 {
				t.buf = append(t.buf[:0], t.buf[over:]...)
			}
			if err != nil {
				return
			}
		}
	}()
}

// ended is told that the command has ended, and gives the last line that is not
// empty.
func (t *tail) ended() string {
	_ = t.r.SetReadDeadline(time.Now().Add(drainWait))
	<-t.done
	text := bytes.TrimRight(t.buf, "\r\n \t")
	return string(bytes.TrimRight(text[bytes.LastIndexByte(text, '\n')+1:], "\r"))
}

func (t *tail) close() {
	t.r.Close()
	t.w.Close()
}
