package log

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"smtpd/internal/mail"
)

// lines of spec and of attack.
func TestLines(t *testing.T) {
	tests := map[string]struct {
		write func(*Logger)
		want  string
	}{
		"event": {func(l *Logger) {
			l.Event(0x1234, "smtp connected", slog.String("address", "local"), slog.Int("port", 25))
		}, "<6>0000000000001234 smtp connected address=local port=25\n"},
		"no session": {func(l *Logger) { l.Event(0, "mta delivery", slog.String("delay", "0s")) },
			"<6>0000000000000000 mta delivery delay=0s\n"},
		"info":         {func(l *Logger) { l.Info("info: mta paused") }, "<6>info: mta paused\n"},
		"warn":         {func(l *Logger) { l.Warn("warn: queue: no return path!") }, "<3>warn: queue: no return path!\n"},
		"fatal":        {func(l *Logger) { l.Fatal("fatal: no") }, "<2>fatal: no\n"},
		"debug is off": {func(l *Logger) { l.Debug("debug: x") }, ""},
		"debug is on":  {func(l *Logger) { l.SetVerbose(true); l.Debug("debug: x") }, "<7>debug: x\n"},
		"quoted when needed": {func(l *Logger) {
			l.Info("x", slog.String("a", "b c"), slog.String("d", `q"q`), slog.String("e", "a=b"), slog.String("f", ""))
		}, `<6>x a="b c" d="q\"q" e=a=b f=` + "\n"},
		"always quoted": {func(l *Logger) { l.Info("x", Quoted("a", "b"), Quoted("c", "")) }, `<6>x a="b" c=""` + "\n"},
		"as it is":      {func(l *Logger) { l.Info("x", Raw("stat", `Error ("no such thing")`)) }, `<6>x stat=Error ("no such thing")` + "\n"},
		"attack in an attribute": {func(l *Logger) { l.Info("x", slog.String("a", "b\r\n<2>fake\x00\x7f\\")) },
			`<6>x a="b\x0d\x0a<2>fake\x00\x7f\\"` + "\n"},
		"attack in a raw attribute": {func(l *Logger) { l.Info("x", Raw("a", "b\nc")) }, "<6>x a=b?c\n"},
		"attack in the text":        {func(l *Logger) { l.Info("x\ny\x1b[31m") }, "<6>x?y?[31m\n"},
		"not traced":                {func(l *Logger) { l.Trace("io", "x") }, ""},
		"traced": {func(l *Logger) { l.SetTrace(map[string]bool{"io": true}); l.Trace("io", "x"); l.Trace("smtp", "y") },
			"<6>io: x\n"},
		"all traced": {func(l *Logger) { l.SetTrace(map[string]bool{"all": true}); l.Trace("smtp", "y", slog.Int("n", 1)) },
			"<6>smtp: y n=1\n"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			tt.write(New(&b, FormSeverity))
			if b.String() != tt.want {
				t.Errorf("got  %q\nwant %q", b.String(), tt.want)
			}
			b.Reset()
			tt.write(New(&b, FormPlain))
			want := tt.want
			if want != "" {
				want = want[len("<6>"):]
			}
			if b.String() != want {
				t.Errorf("plain: got  %q\nwant %q", b.String(), want)
			}
		})
	}
}

func TestJSONLines(t *testing.T) {
	var b bytes.Buffer
	l := New(&b, FormJSON)
	l.Debug("unseen")
	l.Event(0xab, "smtp connected", slog.String("host", "a\nb"), Quoted("q", "x"), Raw("r", "y"))
	var got map[string]any
	if err := json.Unmarshal(b.Bytes(), &got); err != nil || strings.Count(b.String(), "\n") != 1 {
		t.Fatalf("%q: %v", b.String(), err)
	}
	for k, want := range map[string]string{"msg": "smtp connected", "session": "00000000000000ab", "host": "a\nb", "q": "x", "r": "y", "level": "INFO"} {
		if got[k] != want {
			t.Errorf("%s: got %v; want %s", k, got[k], want)
		}
	}
	b.Reset()
	l.SetVerbose(true)
	l.Debug("seen")
	if !strings.Contains(b.String(), "seen") {
		t.Error("debug is on and not seen")
	}
}

// lineWriter finds writes that are not one whole line.
type lineWriter struct {
	t  *testing.T
	mu sync.Mutex
	n  int
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.n++
	if bytes.Count(p, []byte("\n")) != 1 || p[len(p)-1] != '\n' {
		w.t.Errorf("one write: %q", p)
	}
	return len(p), nil
}

func TestOneWriteIsOneLine(t *testing.T) {
	for _, form := range []Form{FormPlain, FormSeverity, FormJSON} {
		w := &lineWriter{t: t}
		l := New(w, form)
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				for range 50 {
					l.Event(1, "x", slog.String("a", "b\nc"))
				}
			})
		}
		wg.Wait()
		if w.n != 1000 {
			t.Errorf("form %d: %d lines", form, w.n)
		}
	}
}

func FuzzLine(f *testing.F) {
	f.Add("text", "value")
	f.Add("a\nb", "c\r\nd\"e\\")
	f.Fuzz(func(t *testing.T, text, value string) {
		var b bytes.Buffer
		l := New(&b, FormPlain)
		l.Info(text, slog.String("a", value), Quoted("b", value), Raw("c", value))
		for i, c := range b.Bytes() {
			if (c < ' ' || c == 0x7f) && i != b.Len()-1 {
				t.Fatalf("control octet %#x at %d of %q", c, i, b.String())
			}
		}
	})
}

// daemon is a log daemon at a path.
func daemon(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	return c
}

func TestSyslog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	now := time.Date(2026, 11, 5, 7, 8, 9, 0, time.UTC)
	var fallback bytes.Buffer
	s := NewSyslog(path, &fallback, func() time.Time { return now })
	s.Lines(42, []byte("<3>warn: nobody listens\n"))
	if fallback.String() != "warn: nobody listens\n" {
		t.Fatalf("fallback: %q", fallback.String())
	}
	d := daemon(t, path)
	s.Lines(42, []byte("too soon\n")) // to dial again
	if fallback.Len() == len("warn: nobody listens\n") {
		t.Fatal("a daemon that was gone is dialled for each line")
	}
	fallback.Reset()
	now = now.Add(retryDial)
	tests := map[string]string{
		"<3>warn: x\n":  "<19>Nov  5 07:08:10 smtpd[42]: warn: x",
		"<6>info: y\n":  "<22>Nov  5 07:08:10 smtpd[42]: info: y",
		"<2>fatal":      "<18>Nov  5 07:08:10 smtpd[42]: fatal",
		"no severity\n": "<22>Nov  5 07:08:10 smtpd[42]: no severity",
		"<9>odd\n":      "<22>Nov  5 07:08:10 smtpd[42]: <9>odd",
		"<6>":           "<22>Nov  5 07:08:10 smtpd[42]: ",
	}
	buf := make([]byte, 1000)
	for line, want := range tests {
		s.Lines(42, []byte(line))
		n, err := d.Read(buf)
		if err != nil || string(buf[:n]) != want {
			t.Errorf("%q: got %q, %v; want %q", line, buf[:n], err, want)
		}
	}
	s.Lines(7, []byte("<6>one\n\n<3>two\nthree")) // together
	for _, want := range []string{"<22>Nov  5 07:08:10 smtpd[7]: one", "<22>Nov  5 07:08:10 smtpd[7]: ", "<19>Nov  5 07:08:10 smtpd[7]: two", "<22>Nov  5 07:08:10 smtpd[7]: three"} {
		if n, err := d.Read(buf); err != nil || string(buf[:n]) != want {
			t.Errorf("got %q, %v; want %q", buf[:n], err, want)
		}
	}
	d.Close()
	s.Lines(7, []byte("<6>one\n\n<3>two\nthree"))
	if want := "one\n\ntwo\nthree\n"; fallback.String() != want {
		t.Errorf("fallback: %q; want %q", fallback.String(), want)
	}
	fallback.Reset()
	d = daemon(t, path+"2")
	s2 := NewSyslog(path+"2", &fallback, func() time.Time { return now })
	if n, err := s2.Write([]byte("<6>mine\n")); n != 8 || err != nil {
		t.Fatal(n, err)
	}
	if n, err := d.Read(buf); err != nil || !strings.HasSuffix(string(buf[:n]), "]: mine") {
		t.Errorf("got %q, %v", buf[:n], err)
	}
	if fallback.Len() != 0 {
		t.Errorf("fallback: %q", fallback.String())
	}
}

// A log daemon that takes nothing must not stop the mail.
func TestSyslogIsStuck(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	daemon(t, path) // and it never reads
	var fallback bytes.Buffer
	s := NewSyslog(path, &fallback, time.Now)
	done := make(chan struct{})
	go func() {
		for fallback.Len() == 0 {
			s.Lines(1, bytes.Repeat([]byte("x"), 4000))
		}
		for range 100 { // it is left alone for a while
			s.Lines(1, []byte("y"))
		}
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("stuck")
	}
}

func TestForward(t *testing.T) {
	long := strings.Repeat("x", maxLine+10)
	var got []string
	text := "<6>one\n\n" + long + "\nlast"
	Forward(strings.NewReader(text), func(b []byte) { got = append(got, string(b)) })
	want := []string{"<6>one\n\n", long[:maxLine], long[maxLine:] + "\n", "last"}
	if len(got) != len(want) {
		t.Fatalf("%d lines", len(got))
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("line %d: %.30q; want %.30q", i, got[i], want[i])
		}
	}
	Forward(io.LimitReader(strings.NewReader(""), 0), func([]byte) { t.Error("a line of nothing") })
	got = nil
	Forward(iotest.OneByteReader(strings.NewReader(text)), func(b []byte) { got = append(got, string(b)) })
	if want := []string{"<6>one\n", "\n", long[:maxLine], long[maxLine:] + "\n", "last"}; !slices.Equal(got, want) {
		t.Errorf("by octets: %d lines", len(got))
	}
}

func BenchmarkEvent(b *testing.B) {
	l := New(io.Discard, FormSeverity)
	b.ReportAllocs()
	for b.Loop() {
		l.Event(1, "smtp message", slog.String("msgid", "4e18854c"), slog.Int("size", 4096), slog.String("from", "<a b>"))
	}
}

// countWriter counts the calls of Write.
type countWriter struct {
	bytes.Buffer
	n int
}

func (w *countWriter) Write(p []byte) (int, error) {
	w.n++
	return w.Buffer.Write(p)
}

// TestBatch: the same lines in fewer writes, none longer than a pipe takes.
func TestBatch(t *testing.T) {
	for name, form := range map[string]Form{"plain": FormPlain, "severity": FormSeverity, "json": FormJSON} {
		t.Run(name, func(t *testing.T) {
			for _, n := range []int{0, 1, 3, 500} {
				var one, all countWriter
				l, b := New(&one, form), New(&all, form).Batch()
				for i := range n {
					l.Event(7, "smtp envelope", slog.Int("n", i))
					b.Event(7, "smtp envelope", slog.Int("n", i))
				}
				b.Flush()
				b.Flush()
				want, got := one.String(), all.String()
				if form == FormJSON { // its lines have the time
					want, got = strings.Repeat("\n", strings.Count(want, "\n")), strings.Repeat("\n", strings.Count(got, "\n"))
				}
				if got != want {
					t.Errorf("%d lines: got %q, want %q", n, got, want)
				}
				if form != FormJSON && all.n != (all.Len()+pipeBuf-1)/pipeBuf && all.n > 1+all.Len()/(pipeBuf-100) {
					t.Errorf("%d lines: %d writes for %d octets", n, all.n, all.Len())
				}
			}
		})
	}
}

// TestBatchesTogether: what many flush at a time comes whole, and each one's
// lines in their order, those behind the batch as well.
func TestBatchesTogether(t *testing.T) {
	const writers, rounds = 20, 50
	var w piecewise
	l := New(&w, FormPlain)
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			for n := range rounds {
				b := l.Batch()
				b.Event(mail.SessionID(i), "a", slog.Int("n", n))
				b.Event(mail.SessionID(i), "b", slog.Int("n", n))
				b.Flush()
				l.Event(mail.SessionID(i), "c", slog.Int("n", n))
			}
		})
	}
	wg.Wait()
	var want, got [writers]strings.Builder
	for i := range writers {
		for n := range rounds {
			for _, what := range []string{"a", "b", "c"} {
				fmt.Fprintf(&want[i], "%016x %s n=%d\n", i, what, n)
			}
		}
	}
	for _, piece := range w {
		if len(piece) > pipeBuf || !strings.HasSuffix(piece, "\n") {
			t.Fatalf("not whole lines, or too many: %q", piece)
		}
		for line := range strings.Lines(piece) {
			i, err := strconv.ParseUint(line[:16], 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			got[i].WriteString(line)
		}
	}
	for i := range writers {
		if got[i].String() != want[i].String() {
			t.Errorf("session %d: got %q", i, got[i].String())
		}
	}
}

// piecewise keeps each write; the logger calls it one at a time.
type piecewise []string

func (w *piecewise) Write(p []byte) (int, error) {
	*w = append(*w, string(p))
	return len(p), nil
}
