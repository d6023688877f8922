// Package log is the mail log: log/slog beneath, printed as the lines that log
// parsers for OpenSMTPD know: `id subsystem event key=value`. A Logger owns no
// goroutine; the writer it is given decides where lines go. Secrets and bodies
// never pass through here, and text from outside only as an attribute, which is
// quoted when it needs to be.
package log

import (
	"context"
	"io"
	"log/slog"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"

	"smtpd/internal/mail"
)

// Logger writes lines. It is safe for concurrent use; copies made by With share
// the writer and the switches.
type Logger struct {
	s *slog.Logger // of FormJSON; nil: lines
	c *core
	b *Batch // takes the lines, or nil
}

// core is what all copies of a Logger share.
type core struct {
	mu    sync.Mutex // one line is one write, but for batches
	w     io.Writer
	held  []byte // of batches, at most pipeBuf: written before any other line
	taker bool   // somebody is about to write what is held
	form  Form
	debug atomic.Bool
	trace atomic.Pointer[map[string]bool] // topics of smtpctl trace
}

// Form says how a line begins.
type Form int

// The forms: bare lines for a terminal, lines with a syslog severity "<6>" in
// front for the parent or systemd to read, and JSON objects.
const (
	FormPlain Form = iota
	FormSeverity
	FormJSON
)

// New makes a Logger on w. Each line is one call of w.Write.
func New(w io.Writer, form Form) *Logger {
	c := &core{w: w, form: form}
	l := &Logger{c: c}
	if form == FormJSON {
		l.s = slog.New(slog.NewJSONHandler(&locked{c}, &slog.HandlerOptions{Level: leveler{c}}))
	}
	return l
}

// Discard is a Logger whose lines go nowhere.
func Discard() *Logger { return New(io.Discard, FormPlain) }

// SetVerbose switches debug lines (smtpctl log verbose, -v).
func (l *Logger) SetVerbose(on bool) { l.c.debug.Store(on) }

// SetTrace replaces the set of traced topics (smtpctl trace, -T).
func (l *Logger) SetTrace(topics map[string]bool) { l.c.trace.Store(&topics) }

// Tracing reports whether the topic is traced; check it before building an
// expensive line.
func (l *Logger) Tracing(topic string) bool {
	t := l.c.trace.Load()
	return t != nil && ((*t)[topic] || (*t)["all"])
}

// Trace writes a line of a traced topic, and nothing otherwise.
func (l *Logger) Trace(topic, msg string, attrs ...slog.Attr) {
	if l.Tracing(topic) {
		l.put(slog.LevelInfo, topic+": "+msg, attrs)
	}
}

// Event writes "<id> <what> key=value ..." at severity info. what is the
// subsystem and the event: "smtp connected".
func (l *Logger) Event(id mail.SessionID, what string, attrs ...slog.Attr) {
	if l.c.form == FormJSON {
		attrs = append(attrs, slog.String("session", id.String()))
		l.put(slog.LevelInfo, what, attrs)
		return
	}
	l.line(slog.LevelInfo, id.String(), what, attrs)
}

// Batch collects lines that belong together, which then cost one write, or one
// for each pipeful. It is for one goroutine; lines that are not flushed are
// lost. Only for processes whose lines go to a pipe: see New.
type Batch struct {
	l *Logger
	w *[]byte // of the pool of lines; nil: there are none
}

// pipeBuf is how much a pipe takes in one piece (PIPE_BUF of Linux): lines of
// other processes do not come in between.
const pipeBuf = 4096

// added has seen to the line that begins at start: what does not fit with it is
// written.
func (b *Batch) added(start int) {
	if w := *b.w; start > 0 && len(w) > pipeBuf {
		b.write(w[:start])
		*b.w = w[:copy(w, w[start:])]
	}
}

// Batch begins an empty batch.
func (l *Logger) Batch() *Batch {
	b := &Batch{l: l}
	if l.c.form != FormJSON {
		b.l = &Logger{c: l.c, b: b}
	}
	return b
}

// Event adds a line as Logger.Event writes it.
func (b *Batch) Event(id mail.SessionID, what string, attrs ...slog.Attr) {
	b.l.Event(id, what, attrs...)
}

// Flush writes the lines, all at once, with those that others flush meanwhile.
// It need not wait for that; what is logged later comes later.
func (b *Batch) Flush() {
	if b.w == nil {
		return
	}
	w := b.w
	b.w = nil
	b.write(*w)
	putLines(w)
}

// write is Flush for lines.
func (b *Batch) write(lines []byte) {
	c := b.l.c
	if c.hold(lines) {
		runtime.Gosched() // whoever has something to say by now goes first
		c.mu.Lock()
		defer c.mu.Unlock()
		c.taker = false
		c.release()
	}
}

// hold keeps lines, at most pipeBuf, to be written with others. It reports
// whether the caller is to see to that.
func (c *core) hold(lines []byte) (first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.held)+len(lines) > pipeBuf {
		c.release()
	}
	c.held = append(c.held, lines...)
	first = !c.taker
	c.taker = true
	return first
}

// release writes what is held, with the lock held.
func (c *core) release() {
	if len(c.held) > 0 {
		_, _ = c.w.Write(c.held) // there is no other place to say that it failed
		c.held = c.held[:0]
	}
}

// write writes a line behind what is held.
func (c *core) write(line []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.release()
	return c.w.Write(line)
}

// Verbose reports whether Debug writes; check it before building an expensive
// line.
func (l *Logger) Verbose() bool { return l.c.debug.Load() }

// Info writes a line at severity info.
func (l *Logger) Info(msg string, attrs ...slog.Attr) { l.put(slog.LevelInfo, msg, attrs) }

// Warn writes a line at severity err, as OpenSMTPD logs its warnings; the text
// usually begins with "warn: ".
func (l *Logger) Warn(msg string, attrs ...slog.Attr) { l.put(slog.LevelWarn, msg, attrs) }

// Fatal writes a line at severity crit. It does not end the process.
func (l *Logger) Fatal(msg string, attrs ...slog.Attr) { l.put(slog.LevelError, msg, attrs) }

// Debug writes a line when the log is verbose.
func (l *Logger) Debug(msg string, attrs ...slog.Attr) {
	if l.c.debug.Load() {
		l.put(slog.LevelDebug, msg, attrs)
	}
}

func (l *Logger) put(level slog.Level, msg string, attrs []slog.Attr) {
	if l.s != nil {
		l.s.LogAttrs(context.Background(), level, msg, attrs...)
		return
	}
	l.line(level, "", msg, attrs)
}

// Raw is an attribute printed as it is. The text must be ours, or cleaned and
// quoted by the caller.
func Raw(key, text string) slog.Attr { return slog.Any(key, raw(text)) }

// Quoted is an attribute printed in double quotes whatever it holds.
func Quoted(key, text string) slog.Attr { return slog.Any(key, quoted(text)) }

type raw string

type quoted string

// leveler lets the JSON handler follow SetVerbose.
type leveler struct{ c *core }

func (v leveler) Level() slog.Level {
	if v.c.debug.Load() {
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

// locked makes each write of the JSON handler one write of the core's writer.
type locked struct{ c *core }

func (w *locked) Write(b []byte) (int, error) {
	return w.c.write(b)
}

var lines = sync.Pool{New: func() any { b := make([]byte, 0, 512); return &b }}

func putLines(p *[]byte) {
	*p = (*p)[:0]
	lines.Put(p)
}

// line prints a line of the mail log, with an id in front if there is one. It is
// not left to slog, which would look up who logs it.
func (l *Logger) line(level slog.Level, id, msg string, attrs []slog.Attr) {
	p := l.buffer()
	b := *p
	start := len(b)
	if l.c.form == FormSeverity {
		b = append(b, '<', severity(level), '>')
	}
	if id != "" {
		b = append(append(b, id...), ' ')
	}
	b = append(b, oneLine(msg)...)
	for i := range attrs {
		b = appendAttr(b, &attrs[i])
	}
	b = append(b, '\n')
	*p = b
	if l.b != nil {
		l.b.added(start)
		return
	}
	_, _ = l.c.write(b) // there is no other place to say that it failed
	putLines(p)
}

// buffer is where a line is added: to those of the batch, or alone.
func (l *Logger) buffer() *[]byte {
	if l.b != nil && l.b.w != nil {
		return l.b.w
	}
	p := lines.Get().(*[]byte)
	if l.b != nil {
		l.b.w = p
	}
	return p
}

// severity is the digit of syslog(3): crit 2, err 3, info 6, debug 7.
func severity(l slog.Level) byte {
	switch {
	case l >= slog.LevelError:
		return '2'
	case l >= slog.LevelWarn:
		return '3'
	case l >= slog.LevelInfo:
		return '6'
	}
	return '7'
}

func appendAttr(b []byte, a *slog.Attr) []byte {
	b = append(b, ' ')
	b = append(b, a.Key...)
	b = append(b, '=')
	if a.Value.Kind() == slog.KindAny {
		switch v := a.Value.Any().(type) {
		case raw:
			return append(b, oneLine(string(v))...)
		case quoted:
			return appendQuoted(b, string(v))
		}
	}
	s := a.Value.String()
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c == '"' || c == 0x7f {
			return appendQuoted(b, s)
		}
	}
	return append(b, s...)
}

// appendQuoted puts s between double quotes; octets that would end the quotes
// or the line are written as \xNN, a quote or backslash with a backslash.
func appendQuoted(b []byte, s string) []byte {
	b = append(b, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < ' ' || c == 0x7f:
			b = append(b, '\\', 'x')
			if c < 0x10 {
				b = append(b, '0')
			}
			b = strconv.AppendUint(b, uint64(c), 16)
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}

// oneLine makes sure that a line stays one line.
func oneLine(s string) string {
	if !hasControl(s) {
		return s
	}
	return mail.Clean(s, len(s))
}

func hasControl(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] == 0x7f {
			return true
		}
	}
	return false
}
