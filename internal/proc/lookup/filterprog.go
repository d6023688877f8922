package lookup

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/filter"
	"smtpd/internal/ipc"
	"smtpd/internal/mail"
	"smtpd/table"
)

// Bounds of a filter program. Ours.
const (
	filterGrace   = 2 * time.Second // from the end of its input to the signal
	maxFilterSays = 1024            // octets of a line of its error output
)

// program is a running filter program: one socket is its input and output, its
// error output goes to the log line by line.
type program struct {
	conn net.Conn
	cmd  *exec.Cmd
	said sync.WaitGroup // its error output has been read
	over chan struct{}  // closed once it has been
}

// startFilter starts the program of a processor.
func (s *server) startFilter(p *config.Proc) (filter.Process, error) {
	far, near, err := ipc.Socketpair()
	if err != nil {
		return nil, err
	}
	defer far.Close()
	conn, err := ipc.Conn(near)
	if err != nil {
		return nil, err
	}
	g := &program{conn: conn, over: make(chan struct{})}
	g.cmd = exec.Command("/bin/sh", "-c", "exec "+filterCommand(p.Command))
	g.cmd.Dir, g.cmd.Stdin, g.cmd.Stdout = "/", far, far
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stderr, err := g.cmd.StderrPipe()
	if err == nil {
		err = g.cmd.Start()
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("start: %w", err)
	}
	g.said.Go(func() {
		s.listen(p.Name, stderr)
		close(g.over)
	})
	return g, nil
}

// filterCommand is a command with its program found: one without a leading
// slash is looked for where filters are installed.
func filterCommand(command string) string {
	command = strings.TrimSpace(command)
	if strings.HasPrefix(command, "/") {
		return command
	}
	name, _, _ := strings.Cut(command, " ")
	dirs := table.LibexecDirs()
	for _, dir := range dirs {
		if fi, err := os.Stat(filepath.Join(dir, name)); err == nil && fi.Mode().IsRegular() {
			return filepath.Join(dir, command)
		}
	}
	return filepath.Join(dirs[0], command)
}

// listen writes what a program says on its error output to the log.
func (s *server) listen(name string, r io.Reader) {
	in := bufio.NewReaderSize(r, maxFilterSays)
	for {
		line, err := in.ReadSlice('\n')
		if text := strings.TrimRight(string(line), "\r\n"); text != "" {
			s.env.Log.Warn(name + ": " + mail.Clean(text, maxFilterSays))
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

// Conn implements filter.Process.
func (g *program) Conn() net.Conn { return g.conn }

// End implements filter.Process: first its input ends, then all that it started
// gets a signal.
func (g *program) End() {
	g.conn.Close()
	t := time.NewTimer(filterGrace)
	defer t.Stop()
	select {
	case <-g.over:
	case <-t.C:
	}
	_ = syscall.Kill(-g.cmd.Process.Pid, syscall.SIGKILL) // there may be nobody left
	g.said.Wait()
	_ = g.cmd.Wait() // how it ended says nothing that the log has not
}
