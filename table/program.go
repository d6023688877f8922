package table

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of a table program.
const (
	handshakeTime = 15 * time.Second      // ours: it may have to connect to a server first
	answerTime    = 30 * time.Second      // ours: without any answer for so long it is replaced
	firstPause    = 50 * time.Millisecond // before a program that ended is started again
	lastPause     = 5 * time.Second       // ours: works again within 10 s of its server's return
	stableTime    = 10 * time.Second      // after so long a life the pause is the first again
	stopTime      = 2 * time.Second       // from the end of its input to the signal
	maxAsked      = 32                    // questions that a program may have before it
	maxWaiting    = 2048                  // questions that wait for their turn
	maxStderrLine = 1024
)

var (
	errEnded   = errors.New("the table program has ended")
	errMute    = errors.New("the table program does not answer")
	errBusy    = errors.New("too many questions wait for the table program")
	errAnswer  = errors.New("the table program broke the protocol")
	errGarbled = errors.New("the table program could not answer")
)

// operation is what a program is asked to do.
type operation uint8

const (
	opCheck operation = iota
	opLookup
	opFetch
	opUpdate
)

// dialogue is a conversation with a running program in one of the protocols.
type dialogue interface {
	// ask puts one question and waits for the answer until ctx ends. found is
	// false for "no"; value belongs to lookup and fetch.
	ask(ctx context.Context, op operation, s Service, key string) (value string, found bool, err error)
	services() Service
	// run serves the dialogue until the program ends or breaks the protocol.
	run() error
	// parallel is how many questions may be open at a time.
	parallel() int
}

// protocol greets a program that was just started.
type protocol func(c *child, name string) (dialogue, error)

// program is a table behind a program that speaks one of the table protocols:
// the lines of OpenSMTPD 7.6 and later, or the binary form of opensmtpd-extras.
// It is started at once and again whenever it ends; what is asked meanwhile
// waits for it.
type program struct {
	name, path, arg string
	warn            func(string)
	cancel          context.CancelFunc
	done            sync.WaitGroup
	waiting         chan struct{} // one for each question not yet answered
	known           atomic.Uint32 // services of the last dialogue

	mu   sync.Mutex
	talk dialogue      // nil while there is none
	up   chan struct{} // closed while there is one
	turn chan struct{} // one for each question the program has before it
}

// NewProgram makes the backend of the program at path with one argument; it is
// asked for the table name. warn is told what the log should say of it.
func NewProgram(name, path, arg string, warn func(string)) (Backend, error) {
	if strings.ContainsRune(name, '|') || hasControl(name) || len(name) > MaxKey {
		return nil, fmt.Errorf("%q cannot name a table of a program", name)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &program{name: name, path: path, arg: arg, warn: warn, cancel: cancel,
		waiting: make(chan struct{}, maxWaiting), up: make(chan struct{})}
	p.done.Go(func() { p.supervise(ctx) })
	return p, nil
}

// supervise keeps the program running until ctx ends.
func (p *program) supervise(ctx context.Context) {
	protocols := [2]protocol{openLines, openBinary}
	pause := firstPause
	for ctx.Err() == nil {
		started := time.Now()
		other, err := p.live(ctx, protocols)
		if ctx.Err() != nil {
			return
		}
		if other { // begin with that from now on
			protocols[0], protocols[1] = protocols[1], protocols[0]
		}
		if time.Since(started) > stableTime {
			pause = firstPause
		}
		p.warn(fmt.Sprintf("%s: %v, starting it again", filepath.Base(p.path), plainly(err)))
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		pause = min(2*pause, lastPause)
	}
}

// plainly says what an error of the conversation means.
func plainly(err error) error {
	switch {
	case hungUp(err):
		return errEnded
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errMute
	}
	return err
}

// hungUp reports that the other end of a conversation has gone.
func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}

// live runs the program once, in the first protocol that it takes part in, and
// reports whether that was the second. A program that ends without a word may
// not speak the protocol, or may just have found its configuration half written:
// so the first is tried twice, for one that reads lines waits for the end of what
// the other sends. What the program says meanwhile is printed when it takes part
// or all have failed, each line once.
func (p *program) live(ctx context.Context, protocols [2]protocol) (other bool, first error) {
	var words []string
	for i, open := range []protocol{protocols[0], protocols[0], protocols[1]} {
		c, err := startChild(p.path, p.arg, p.warn)
		if err != nil {
			return false, err
		}
		stop := context.AfterFunc(ctx, func() {
			c.speak(false) // its last words are about our leaving
			c.hangUp()
		})
		d, err := open(c, p.name)
		if err == nil {
			c.speak(true)
			p.attach(d)
			err = d.run()
			p.detach()
			stop()
			c.stop()
			return i == 2, err
		}
		stop()
		c.stop()
		for _, line := range c.held {
			if !slices.Contains(words, line) {
				words = append(words, line)
			}
		}
		if first == nil {
			first = err
		}
		if !hungUp(err) { // it took part, but badly
			first = err
			break
		}
	}
	if ctx.Err() == nil {
		for _, line := range words {
			p.warn(line)
		}
	}
	return false, first
}

func (p *program) attach(d dialogue) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.talk, p.turn = d, make(chan struct{}, d.parallel())
	p.known.Store(uint32(d.services()))
	close(p.up)
}

func (p *program) detach() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.talk, p.up = nil, make(chan struct{})
}

// dialogue waits for a running program.
func (p *program) dialogue(ctx context.Context) (dialogue, chan struct{}, error) {
	for {
		p.mu.Lock()
		d, up, turn := p.talk, p.up, p.turn
		p.mu.Unlock()
		if d != nil {
			return d, turn, nil
		}
		select {
		case <-up:
		case <-ctx.Done():
			return nil, nil, errEnded
		}
	}
}

// Bounds of one question. Ours: together shorter than any SMTP client waits.
const (
	askTime = 20 * time.Second // from its asking to its answer
	upTime  = 5 * time.Second  // of it, for the program to be there
)

func (p *program) ask(ctx context.Context, op operation, s Service, key string) (string, bool, error) {
	select {
	case p.waiting <- struct{}{}:
		defer func() { <-p.waiting }()
	default:
		return "", false, errBusy
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	up, cancelUp := context.WithTimeout(ctx, upTime)
	d, turn, err := p.dialogue(up)
	cancelUp()
	if err != nil {
		return "", false, err
	}
	if op != opUpdate && d.services()&s == 0 {
		return "", false, ErrService
	}
	select {
	case turn <- struct{}{}:
		defer func() { <-turn }()
	case <-ctx.Done():
		return "", false, ctx.Err()
	}
	return d.ask(ctx, op, s, key)
}

// Lookup implements Backend.
func (p *program) Lookup(ctx context.Context, s Service, key string) (string, error) {
	v, ok, err := p.ask(ctx, opLookup, s, key)
	if err == nil && !ok {
		err = ErrNotFound
	}
	return v, err
}

// Check implements Backend.
func (p *program) Check(ctx context.Context, s Service, key string) (bool, error) {
	_, ok, err := p.ask(ctx, opCheck, s, key)
	return ok, err
}

// Fetch implements Backend.
func (p *program) Fetch(ctx context.Context, s Service) (string, error) {
	v, ok, err := p.ask(ctx, opFetch, s, "")
	if err == nil && !ok {
		err = ErrNotFound
	}
	return v, err
}

// Update implements Backend.
func (p *program) Update(ctx context.Context) error {
	_, ok, err := p.ask(ctx, opUpdate, 0, "")
	if err == nil && !ok {
		err = errGarbled
	}
	return err
}

// Services implements Backend; before the program has run once it is all.
func (p *program) Services() Service {
	if s := Service(p.known.Load()); s != 0 {
		return s
	}
	return allServices
}

// Close ends the program and waits for it.
func (p *program) Close() error {
	p.cancel()
	p.done.Wait()
	return nil
}

// child is a running program: one socket is its input and output, its error
// output goes to the log line by line.
type child struct {
	conn net.Conn
	cmd  *exec.Cmd
	errs io.Closer       // its error output
	said sync.WaitGroup  // has been read
	over context.Context // ends when the conversation is to end, or the program has
	end  context.CancelFunc

	mu    sync.Mutex
	loud  bool
	held  []string // lines of its error output until it is known to speak our language
	print func(string)
}

// maxHeld bounds the lines that are held.
const maxHeld = 20

func startChild(path, arg string, warn func(string)) (*child, error) {
	fds, err := socketpair()
	if err != nil {
		return nil, err
	}
	near, far := os.NewFile(uintptr(fds[0]), "table"), os.NewFile(uintptr(fds[1]), "table")
	defer far.Close()
	conn, err := net.FileConn(near)
	near.Close()
	if err != nil {
		return nil, err
	}
	c := &child{conn: conn, cmd: exec.Command(path), print: warn}
	c.over, c.end = context.WithCancel(context.Background())
	if arg != "" {
		c.cmd.Args = append(c.cmd.Args, arg)
	}
	c.cmd.Dir, c.cmd.Stdin, c.cmd.Stdout = "/", far, far
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stderr, err := c.cmd.StderrPipe()
	if err == nil {
		c.errs = stderr
		err = c.cmd.Start()
	}
	if err != nil {
		c.hangUp()
		return nil, err
	}
	c.said.Go(func() { c.listen(stderr) })
	return c, nil
}

func socketpair() (fds [2]int, err error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fds, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		unix.CloseOnExec(fds[0])
		unix.CloseOnExec(fds[1])
	}
	return fds, err
}

// listen reads the error output.
func (c *child) listen(r io.Reader) {
	defer c.end()
	in := bufio.NewReaderSize(r, maxStderrLine)
	for {
		line, err := in.ReadSlice('\n')
		if text := strings.TrimSpace(string(line)); text != "" {
			c.say(filepath.Base(c.cmd.Path) + ": " + text)
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

func (c *child) say(line string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.loud {
		c.print(line)
	} else if len(c.held) < maxHeld {
		c.held = append(c.held, line)
	}
}

// speak prints what was held and from now on every line, or forgets it.
func (c *child) speak(loud bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.loud = loud; loud {
		for _, line := range c.held {
			c.print(line)
		}
	}
	c.held = nil
}

// hangUp ends the conversation: whoever reads or writes gets an error.
func (c *child) hangUp() {
	c.end()
	c.conn.Close()
}

// stop ends the program: first its input, then by signal with all that it
// started.
func (c *child) stop() {
	c.hangUp()
	kill := time.AfterFunc(stopTime, func() {
		syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL)
		c.errs.Close() // somebody else may hold the other end
	})
	c.said.Wait() // before Wait, which closes the pipe
	c.cmd.Wait()
	kill.Stop()
}
