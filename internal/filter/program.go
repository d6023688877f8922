package filter

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"smtpd/internal/mail"
)

// Bounds of one program. Ours.
const (
	maxUnread  = 16 << 20 // octets that wait to be read by it; more: it is taken for dead
	maxAhead   = 1 << 20  // octets of messages of them; more: their sources wait
	maxOwnLine = 4096     // octets of a line before it is ready
	maxHello   = 256      // lines before it is ready
	readSize   = 64 << 10
	lineMargin = 256 // what the protocol adds to a line of a message
)

// Options are what a program is told at the start, and the bounds it has.
type Options struct {
	Name           string
	Software       string        // version of the daemon
	SessionTimeout time.Duration // that clients have
	ADMD           string
	In, Out        bool          // subsystems that it is used in
	Timeout        time.Duration // for each answer
	MaxLine        int           // octets of a line of a message
	Now            func() time.Time
	Tracing        func() bool       // nil: never
	Trace          func(line string) // told every line while Tracing: "-> ..." from the program, "<- ..." to it

	warn  func(text string) // nil: nobody listens
	pause time.Duration     // for tests: at most so long between lives; 0: usualPause
}

// Program is the dialogue with one running program. It is safe for concurrent
// use. Two goroutines, a reader and a writer, end with it.
type Program struct {
	o    Options
	conn net.Conn
	reg  registration
	in   *bufio.Reader
	done chan struct{}
	work sync.WaitGroup

	mu       sync.Mutex
	cond     *sync.Cond // out or rest has changed
	out      []byte
	dataOut  int    // octets of messages in out
	due      bool   // out is to be sent now
	writing  bool   // somebody sends, or the writer is to send rest
	rest     []byte // what the connection did not take at once
	spare    []byte // an empty buffer for out
	token    uint64
	sessions map[mail.SessionID]*Session
	requests map[uint64]*request
	streams  map[uint64]*stage
	err      error
	heard    time.Time // the last answer
	stat     *meter
	now      time.Time         // owned by the reader: when it was last given something
	dirty    map[*Program]bool // owned by the reader: have lines that are to be sent
	full     map[*Stream]bool  // owned by the reader: have lines to be handed out
}

// request is a question that has no answer yet.
type request struct {
	session mail.SessionID
	phase   Phase
	since   time.Time
	timer   *time.Timer
	answer  answerFunc
}

// answerFunc is called once with an answer; ok is false when there is none. by
// is the program whose reader calls it, which sends to other programs when it
// has nothing more to read; nil: another goroutine does.
type answerFunc func(by *Program, v Verdict, ok bool)

// Open shakes hands with a program that was just started; it waits at most
// o.Timeout. On an error the connection is closed.
func Open(conn net.Conn, o Options) (*Program, error) { return open(conn, o, new(meter)) }

func open(conn net.Conn, o Options, m *meter) (*Program, error) {
	p := &Program{o: o, conn: conn, in: bufio.NewReaderSize(conn, readSize), done: make(chan struct{}),
		token: rand.Uint64(), sessions: map[mail.SessionID]*Session{}, requests: map[uint64]*request{},
		streams: map[uint64]*stage{}, stat: m, dirty: map[*Program]bool{}, full: map[*Stream]bool{}}
	p.cond = sync.NewCond(&p.mu)
	if err := p.hello(); err != nil {
		conn.Close()
		return nil, err
	}
	p.heard = o.Now()
	p.now = p.heard
	p.work.Go(p.write)
	p.work.Go(func() { p.fail(p.read()) })
	return p, nil
}

// hello is the handshake.
func (p *Program) hello() error {
	if err := p.conn.SetDeadline(time.Now().Add(p.o.Timeout)); err != nil {
		return err
	}
	lines := []string{"config|smtpd-version|" + p.o.Software, "config|protocol|" + Protocol,
		"config|smtp-session-timeout|" + strconv.Itoa(int(p.o.SessionTimeout/time.Second))}
	if p.o.In {
		lines = append(lines, "config|subsystem|smtp-in")
	}
	if p.o.Out {
		lines = append(lines, "config|subsystem|smtp-out")
	}
	lines = append(lines, "config|admd|"+p.o.ADMD, "config|ready")
	p.trace("<- ", []byte(strings.Join(lines, "\n")))
	if _, err := io.WriteString(p.conn, strings.Join(lines, "\n")+"\n"); err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	for range maxHello {
		line, err := p.line(maxOwnLine)
		if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
			err = errSilent
		}
		if err != nil {
			return fmt.Errorf("handshake: %w", err)
		}
		p.trace("-> ", line)
		ready, err := p.reg.line(string(line))
		if err != nil {
			return fmt.Errorf("handshake: %w: %s", err, mail.Clean(string(line), 128))
		}
		if ready {
			return p.conn.SetDeadline(time.Time{})
		}
	}
	return fmt.Errorf("handshake: %w", errLong)
}

// Wants are the phases that the program decides.
func (p *Program) Wants() Set { return p.reg.phases }

// Hears are the events of a direction that it is told.
func (p *Program) Hears(d Direction) Set { return p.reg.reports[d] }

// Done is closed when the dialogue has ended.
func (p *Program) Done() <-chan struct{} { return p.done }

// Err says why the dialogue has ended; nil: it has not.
func (p *Program) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// Close ends the dialogue and waits for its goroutines.
func (p *Program) Close() {
	p.fail(errClosed)
	p.work.Wait()
}

// fail ends the dialogue once. Whoever waits for the program is told.
func (p *Program) fail(err error) {
	p.mu.Lock()
	if p.err != nil {
		p.mu.Unlock()
		return
	}
	p.err = err
	requests, streams := p.requests, p.streams
	p.requests, p.streams, p.sessions, p.out, p.rest = nil, nil, nil, nil, nil
	close(p.done)
	p.cond.Broadcast()
	p.mu.Unlock()
	p.conn.Close()
	for _, r := range requests {
		r.timer.Stop()
		r.answer(nil, Verdict{Action: Failed}, false)
	}
	for _, st := range streams {
		st.stream.fail(err)
	}
}

// trace shows lines to who looks on. Those of a message may have a tab, which is
// written as in Go.
func (p *Program) trace(mark string, text []byte) {
	if p.o.Tracing == nil || !p.o.Tracing() {
		return
	}
	for line := range bytes.Lines(text) {
		shown := strings.ReplaceAll(maskLogin(strings.TrimSuffix(string(line), "\n")), "\t", `\t`)
		p.o.Trace(mark + mail.Clean(shown, 512))
	}
}

// maskLogin hides what AUTH carries in a question of that phase, whose argument
// is mechanism and initial response.
func maskLogin(line string) string {
	const before = 7 // filter|version|time|subsystem|auth|session|token|argument
	f := strings.SplitN(line, "|", before+1)
	if len(f) <= before || f[0] != "filter" || f[4] != "auth" {
		return line
	}
	mech, secret, _ := strings.Cut(f[before], " ")
	if secret == "" {
		return line
	}
	return strings.Join(f[:before], "|") + "|" + mech + " ********"
}

// send has what waits written: at once as far as the connection takes it, which
// costs no change of goroutines, the rest by the writer. mu is held, and
// released meanwhile.
func (p *Program) send() {
	p.due = true
	if p.writing {
		return // whoever does looks again
	}
	p.writing = true
	for p.due && len(p.out) > 0 && p.err == nil {
		b := p.take()
		p.mu.Unlock()
		p.trace("<- ", b)
		n, err := writeNow(p.conn, b)
		p.mu.Lock()
		if err != nil || n < len(b) {
			p.rest = b[n:] // the writer goes on, and meets the error
			p.cond.Broadcast()
			return
		}
		p.keep(b)
	}
	p.writing = false
}

// take gives what waits to be written; mu is held.
func (p *Program) take() []byte {
	b := p.out
	p.out, p.spare = p.spare[:0], nil
	if p.dataOut > maxAhead {
		p.cond.Broadcast() // there is room again
	}
	p.dataOut, p.due = 0, false
	return b
}

// keep puts a buffer aside; mu is held.
func (p *Program) keep(b []byte) {
	if cap(b) <= 4*readSize {
		p.spare = b[:0]
	}
}

// write hands the program what it does not take at once.
func (p *Program) write() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		for len(p.rest) == 0 && p.err == nil {
			p.cond.Wait()
		}
		if p.err != nil {
			return
		}
		b, traced := p.rest, true
		p.rest = nil
		for len(b) > 0 {
			p.mu.Unlock()
			err := p.writeAll(b, traced)
			p.mu.Lock()
			if err != nil {
				p.mu.Unlock()
				p.fail(err)
				p.mu.Lock()
				return
			}
			b, traced = nil, false
			if p.due && p.err == nil {
				b = p.take()
			}
		}
		p.writing = false
	}
}

// writeAll writes within the timeout.
func (p *Program) writeAll(b []byte, traced bool) error {
	if !traced {
		p.trace("<- ", b)
	}
	err := p.conn.SetWriteDeadline(time.Now().Add(p.o.Timeout))
	if err == nil {
		_, err = p.conn.Write(b)
	}
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		return errSlow
	}
	if err != nil {
		return err
	}
	return p.conn.SetWriteDeadline(time.Time{})
}

// writeNow writes what the connection takes without waiting.
func writeNow(conn net.Conn, b []byte) (n int, err error) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return 0, nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0, err
	}
	var werr error
	err = raw.Write(func(fd uintptr) bool {
		n, werr = syscall.Write(int(fd), b)
		return true
	})
	switch {
	case err != nil:
		return 0, err
	case errors.Is(werr, syscall.EAGAIN) || errors.Is(werr, syscall.EINTR):
		return 0, nil
	case werr != nil:
		return 0, werr
	}
	return n, nil
}

// grown is called with mu held after out has grown.
func (p *Program) grown() error {
	if len(p.out)+len(p.rest) > maxUnread {
		return errSlow
	}
	return nil
}

// tell queues events; those that the program has not asked for are left out.
// With now they are sent as well, else with what comes next.
func (p *Program) tell(d Direction, id mail.SessionID, notes []Note, now bool) {
	p.mu.Lock()
	if p.err != nil || p.sessions[id] == nil {
		p.mu.Unlock()
		return
	}
	n := len(p.out)
	for i := range notes {
		if p.reg.reports[d].Has(uint8(notes[i].Event)) {
			p.out = appendReport(p.out, d, id, &notes[i])
		}
	}
	var err error
	if len(p.out) > n {
		err = p.grown()
	}
	if now && err == nil && len(p.out) > 0 {
		p.send()
	}
	p.mu.Unlock()
	if err != nil {
		p.fail(err)
	}
}

// flushed sends what waits.
func (p *Program) flushed() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.out) > 0 {
		p.send()
	}
}

// ask puts one question; answer is called with what comes of it, by whoever
// learns of that, without locks. When there is no answer the session is unknown
// to the program from then on. False: it cannot be asked, and answer is not
// called. by is as for answer.
func (p *Program) ask(by *Program, m *Member, id mail.SessionID, ph Phase, param string, answer answerFunc) bool {
	now := p.o.Now()
	r := &request{session: id, phase: ph, since: now, answer: answer}
	p.mu.Lock()
	if p.err != nil || p.sessions[id] == nil {
		p.mu.Unlock()
		return false
	}
	p.token++
	token := p.token
	p.requests[token] = r
	r.timer = time.AfterFunc(cmp.Or(m.Timeout, p.o.Timeout), func() { p.late(token, r) }) // stopped by the answer
	p.out = appendAsk(p.out, now, ph, id, token, param)
	err := p.grown()
	if err == nil && by == nil {
		p.send()
	}
	p.mu.Unlock()
	if by != nil {
		by.dirty[p] = true
	}
	if err != nil {
		p.fail(err)
	}
	return true
}

// late gives a question up that has not been answered in time.
func (p *Program) late(token uint64, r *request) {
	p.mu.Lock()
	open := p.requests[token] == r
	p.mu.Unlock()
	if open {
		p.silent(r.since)
		p.forget(r.session)
	}
}

// silent ends a program that has not said anything since a question was put.
// One that answers others is busy with this one only.
func (p *Program) silent(since time.Time) {
	p.mu.Lock()
	dead := p.heard.Before(since)
	p.stat.lost(errSilent)
	p.mu.Unlock()
	if dead {
		p.fail(errSilent)
	}
}

// enter makes a session known.
func (p *Program) enter(s *Session) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil || p.sessions[s.ID] != nil {
		return false
	}
	p.sessions[s.ID] = s
	return true
}

// forget makes a session unknown: late answers about it are dropped.
func (p *Program) forget(id mail.SessionID) {
	p.mu.Lock()
	delete(p.sessions, id)
	var open []*request
	for token, r := range p.requests {
		if r.session == id {
			delete(p.requests, token)
			open = append(open, r)
		}
	}
	var cut []*Stream
	for token, st := range p.streams {
		if st.stream.session == id {
			delete(p.streams, token)
			cut = append(cut, st.stream)
		}
	}
	p.mu.Unlock()
	for _, r := range open {
		r.timer.Stop()
		r.answer(nil, Verdict{Action: Failed}, false)
	}
	for _, st := range cut {
		st.fail(errClosed)
	}
}

// read serves what the program says until it breaks off.
func (p *Program) read() error {
	for {
		waits := p.lineWaits()
		if !waits {
			p.flush()
		}
		line, err := p.line(p.o.MaxLine + lineMargin)
		if err != nil {
			p.flush()
			return err
		}
		if !waits {
			p.now = p.o.Now()
		}
		p.trace("-> ", line)
		s, err := parse(line)
		if err == nil {
			err = p.heed(&s)
		}
		if err == nil && s.kind == kindLine {
			p.more(line, &s)
		}
		if err != nil {
			return fmt.Errorf("%w: %s", err, mail.Clean(string(line[:min(len(line), 128)]), 128))
		}
	}
}

// lineWaits reports whether a whole line has been read already.
func (p *Program) lineWaits() bool {
	b, _ := p.in.Peek(p.in.Buffered())
	return bytes.IndexByte(b, '\n') >= 0
}

// flush lets go on who was given lines meanwhile. Reader only.
func (p *Program) flush() {
	for q := range p.dirty {
		q.flushed()
	}
	clear(p.dirty)
	for st := range p.full {
		st.flush()
	}
	clear(p.full)
}

// line reads one line, without its end, of at most max octets. It is valid
// until the next.
func (p *Program) line(max int) ([]byte, error) {
	b, err := p.in.ReadSlice('\n')
	if err == nil {
		return b[:len(b)-1], nil
	}
	var long []byte
	for errors.Is(err, bufio.ErrBufferFull) {
		if long = append(long, b...); len(long) > max {
			return nil, errLong
		}
		b, err = p.in.ReadSlice('\n')
	}
	if err != nil {
		return nil, err
	}
	long = append(long, b...)
	return long[:len(long)-1], nil
}

// heed carries out what the program says.
func (p *Program) heed(s *said) error {
	p.mu.Lock()
	p.heard = p.now
	switch s.kind {
	case kindReport:
		session := p.sessions[s.session]
		p.mu.Unlock()
		if session != nil {
			session.overheard(p, string(s.text))
		}
		return nil
	case kindLine:
		st := p.streams[s.token]
		known := p.sessions[s.session] != nil
		p.mu.Unlock()
		if st == nil || st.stream.session != s.session {
			return stranger(known || st != nil)
		}
		p.forward(st, s.text, s.token)
		return nil
	}
	r := p.requests[s.token]
	if r == nil || r.session != s.session {
		known := p.sessions[s.session] != nil
		p.mu.Unlock()
		return stranger(known || r != nil)
	}
	if s.verdict == Junk && r.phase == Commit {
		p.mu.Unlock()
		return errToken
	}
	delete(p.requests, s.token)
	session := p.sessions[s.session]
	p.stat.answered(p.heard.Sub(r.since))
	p.mu.Unlock()
	r.timer.Stop()
	if (s.verdict == Reject || s.verdict == Disconnect) && !ValidReply(string(s.text)) {
		why := p.stat.lost(fmt.Errorf("%w: %s", errReply, s.text))
		if p.o.warn != nil {
			p.o.warn("filter " + p.o.Name + ": " + why)
		}
	}
	if s.report && session != nil {
		session.Tell([]Note{{FilterResponse, p.now, r.phase.Shown() + "|report|" + string(s.text)}})
	}
	r.answer(p, Verdict{s.verdict, string(s.text)}, true)
	return nil
}

// more takes the lines of the same message that have come right behind line,
// which is s, all at once: only their text differs.
func (p *Program) more(line []byte, s *said) {
	if p.o.Tracing != nil && p.o.Tracing() {
		return
	}
	b, _ := p.in.Peek(p.in.Buffered()) // line stays what it is: nothing is read
	prefix := line[:len(line)-len(s.text)]
	if !bytes.HasPrefix(b, prefix) {
		return
	}
	p.mu.Lock()
	st := p.streams[s.token]
	p.mu.Unlock()
	if st == nil {
		return
	}
	n, room := 0, true
	if st.next == nil {
		n = st.stream.emitAll(b, prefix)
		p.full[st.stream] = true
	} else {
		n, room = st.next.feedAll(b, prefix, p.now)
		p.dirty[st.next.program] = true
	}
	_, _ = p.in.Discard(n) // that many are there
	if !room {
		p.flush()
		st.next.room()
	}
}

// stranger judges an answer to nothing that is open: one about a session that
// has gone is late, any other is a breach.
func stranger(known bool) error {
	if known {
		return errToken
	}
	return nil
}

// forward hands a line on to the next program or out of the stream.
func (p *Program) forward(st *stage, line []byte, token uint64) {
	last := len(line) == 1 && line[0] == '.'
	if last {
		p.mu.Lock()
		delete(p.streams, token)
		if !st.dot.IsZero() {
			p.stat.answered(p.heard.Sub(st.dot))
		}
		p.mu.Unlock()
	}
	if st.next != nil {
		if st.next.feed(line, p.now) {
			p.dirty[st.next.program] = true
		} else {
			p.flush() // it has too much before it: everything is to move
			st.next.room()
		}
		return
	}
	if st.stream.emit(line, last) {
		p.full[st.stream] = true
	}
}
