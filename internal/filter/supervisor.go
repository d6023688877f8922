package filter

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"smtpd/internal/mail"
)

// Bounds of restarts. Ours.
const (
	firstPause = 50 * time.Millisecond
	lastPause  = 10 * time.Second // of a program that does not even register
	usualPause = time.Second      // at most, of one that does
	stableLife = 4                // who serves so many times as long as the pause makes that the first again
	sampleSize = 128              // answers that the median is of
)

// Process is a filter program that was started.
type Process interface {
	// Conn is its input and output.
	Conn() net.Conn

	// End makes it end, in whatever way, and waits until it has. It returns at
	// once when it has ended by itself.
	End()
}

// Supervisor keeps one program running: when it ends, gives a wrong answer or
// none it is started anew, after a pause that grows.
type Supervisor struct {
	o      Options
	start  func(context.Context) (Process, error)
	warn   func(string)
	cancel context.CancelFunc
	work   sync.WaitGroup
	stat   meter

	mu      sync.Mutex
	program *Program
	changed chan struct{} // closed when there is another program, or none
	starts  int
	tried   chan struct{} // closed once it has registered, or has not
	once    sync.Once     // closes tried
}

// Supervise starts a program and keeps it running until Close. warn is told
// what the log should say.
func Supervise(o Options, start func(context.Context) (Process, error), warn func(string)) *Supervisor {
	ctx, cancel := context.WithCancel(context.Background())
	o.warn = warn
	s := &Supervisor{o: o, start: start, warn: warn, cancel: cancel, changed: make(chan struct{}), tried: make(chan struct{})}
	s.work.Go(func() { s.run(ctx) })
	return s
}

// Close ends the program and waits for it.
func (s *Supervisor) Close() {
	s.cancel()
	s.work.Wait()
}

// Program waits for a running program until ctx ends; nil: there is none.
func (s *Supervisor) Program(ctx context.Context) *Program {
	for {
		s.mu.Lock()
		p, changed := s.program, s.changed
		s.mu.Unlock()
		if p != nil && p.Err() == nil {
			return p
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// Tried waits until the program has registered for the first time, or could not
// be started, or ctx ends: nobody who can do without it goes on without it just
// because the daemon has just been started.
func (s *Supervisor) Tried(ctx context.Context) {
	select {
	case <-s.tried:
	case <-ctx.Done():
	}
}

func (s *Supervisor) tryEnded() { s.once.Do(func() { close(s.tried) }) }

func (s *Supervisor) run(ctx context.Context) {
	usual := cmp.Or(s.o.pause, usualPause)
	pause := min(firstPause, usual)
	for ctx.Err() == nil {
		served, err := s.live(ctx)
		s.tryEnded()
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, io.EOF) || isReset(err) {
			err = errGone
		}
		text := s.stat.lost(err)
		s.warn("lost processor: " + s.o.Name + " " + text)
		if served > stableLife*pause {
			pause = min(firstPause, usual)
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
		if pause = min(2*pause, lastPause); served > 0 {
			pause = min(pause, usual)
		}
	}
}

func isReset(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && !op.Timeout()
}

// live runs the program once; served is how long, from when it had registered: one
// that is slow to start, and to end, has served nobody meanwhile.
func (s *Supervisor) live(ctx context.Context) (served time.Duration, err error) {
	proc, err := s.start(ctx)
	if err != nil {
		return 0, err
	}
	defer proc.End()
	s.mu.Lock()
	s.starts++
	s.mu.Unlock()
	conn := proc.Conn()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	p, err := open(conn, s.o, &s.stat)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	s.set(p)
	s.tryEnded()
	select {
	case <-p.Done():
	case <-ctx.Done():
	}
	s.set(nil)
	served = max(time.Since(began), 1)
	err = p.Err()
	p.Close()
	return served, err
}

// set makes p the program that sessions get.
func (s *Supervisor) set(p *Program) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.program = p
	close(s.changed)
	s.changed = make(chan struct{})
}

// State is how a program does.
type State struct {
	Name          string
	Running       bool
	Restarts      int
	Requests      uint64
	Median, Worst time.Duration
	LastError     string
}

// State tells how the program does.
func (s *Supervisor) State() State {
	s.mu.Lock()
	st := State{Name: s.o.Name, Running: s.program != nil, Restarts: max(s.starts-1, 0)}
	s.mu.Unlock()
	s.stat.fill(&st)
	return st
}

// meter measures answers, over all lives of a program.
type meter struct {
	mu       sync.Mutex
	requests uint64
	last     [sampleSize]time.Duration
	worst    time.Duration
	err      string
}

func (m *meter) answered(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last[m.requests%sampleSize] = d
	m.requests++
	m.worst = max(m.worst, d)
}

// lost keeps what went wrong, and gives the text that is shown.
func (m *meter) lost(err error) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = mail.Clean(err.Error(), 256)
	return m.err
}

func (m *meter) fill(st *State) {
	m.mu.Lock()
	defer m.mu.Unlock()
	st.Requests, st.Worst, st.LastError = m.requests, m.worst, m.err
	if n := min(m.requests, sampleSize); n > 0 {
		l := slices.Clone(m.last[:n])
		slices.Sort(l)
		st.Median = l[n/2]
	}
}

// Command is a command with its program found: one without a leading slash is
// looked for in dirs, of which there is one at least, as they are below root.
func Command(root, command string, dirs []string) string {
	command = strings.TrimSpace(command)
	if strings.HasPrefix(command, "/") {
		return command
	}
	name, _, _ := strings.Cut(command, " ")
	for _, dir := range dirs {
		if fi, err := os.Stat(filepath.Join(root, dir, name)); err == nil && fi.Mode().IsRegular() {
			return dir + "/" + command
		}
	}
	return dirs[0] + "/" + command
}
