package queue

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"smtpd/internal/imsg"
	"smtpd/internal/mail"
	"smtpd/queue"
	"smtpd/queue/queuetest"
)

// lines asks until there are no more.
func (h *house) lines(what string) string {
	h.t.Helper()
	var all string
	for range 1000 {
		m := ask[*imsg.Lines](h.control, &imsg.Show{What: what, Skip: strings.Count(all, "\n")})
		all += string(m.Text)
		if !m.More {
			return all
		}
	}
	h.t.Fatalf("%s does not end", what)
	return ""
}

// TestShow: what operators do to a spool on disk.
func TestShow(t *testing.T) {
	dir := t.TempDir()
	s, err := queue.Open(dir, queue.Options{})
	if err != nil {
		t.Fatal(err)
	}
	id, _ := s.Reserve(t.Context(), 1)
	f, err := s.NewBody(id)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString(queuetest.Large())
	f.Close()
	m := &queue.Message{ID: id, InFile: true, Size: int64(len(queuetest.Large())), Envelopes: []mail.Envelope{queuetest.Envelope(1)}}
	if err := s.Accept(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	s.Close()
	files, _ := filepath.Glob(filepath.Join(dir, "body", "*", "*"))
	if err := os.Truncate(files[0], 5); err != nil {
		t.Fatal(err)
	}
	// An old spool where OpenSMTPD had it.
	old := filepath.Join(dir, "7f", "7f5a56b6")
	os.MkdirAll(old, 0o700)
	os.WriteFile(filepath.Join(old, "message"), []byte("Subject: old\n\nx\n"), 0o600)
	os.WriteFile(filepath.Join(old, "7f5a56b65f591e71"),
		[]byte("version: 3\ndispatcher: gone\ntype: mta\nsender: a@b.test\nrcpt: c@d.test\ndest: c@d.test\nctime: 1795216993\n"), 0o600)

	h := &house{t: t, dir: dir}
	h.open()
	if got := h.lines("corrupt"); got != "" {
		t.Errorf("corrupt before anything was read: %q", got)
	}
	if got := h.lines("queue verify"); !strings.HasSuffix(got, "1 message, 1 envelope, 1 damaged\n") {
		t.Errorf("verify: %q", got)
	}
	h.gone(id.Envelope(1), mail.GoneCorrupt)
	h.logged("warn: queue: msg-" + id.String() + " moved aside: body has the wrong size")
	name := "msg-" + id.String()
	if got := h.lines("corrupt"); !strings.HasPrefix(got, name+"|") || !strings.HasSuffix(got, "|1|body has the wrong size: 5 octets, not 75348\n") {
		t.Errorf("corrupt: %q", got)
	}
	if got := h.lines("corrupt inspect " + name); !strings.Contains(got, "envelope: "+id.Envelope(1).String()+" mta from=<alice@example.org>") {
		t.Errorf("show: %q", got)
	}
	if got := h.lines("corrupt return " + name); got != "1 envelope returned\n" {
		t.Errorf("return: %q", got)
	}
	if l := h.heard(1); l[0].ID != id.Envelope(1) {
		t.Errorf("scheduled %+v", l)
	}
	if got := h.lines("corrupt remove " + name); got != "error: no such item\n" {
		t.Errorf("remove: %q", got)
	}
	if got := h.lines("queue compact"); !strings.HasPrefix(got, "from ") {
		t.Errorf("compact: %q", got)
	}
	got := h.lines("queue import")
	if want := "held: 1 envelope of action \"gone\", which the configuration does not have\n1 message, 1 envelope imported, 0 left\n"; got != want {
		t.Errorf("import: %q", got)
	}
	if l := h.heard(1); l[0].ID != 0x7f5a56b600000001 || l[0].TTL != testConfig().Queue.TTL || l[0].Dispatcher != "gone" {
		t.Errorf("scheduled %+v", l)
	}
	for _, what := range []string{"queue import ../../etc", "queue import none"} {
		if got := h.lines(what); !strings.HasPrefix(got, "error: ") {
			t.Errorf("%s: %q", what, got)
		}
	}
	if got := h.lines("queue burn"); got != "not a command of the queue\n" {
		t.Errorf("%q", got)
	}
	if err := h.stop(); err != nil {
		t.Error(err)
	}
}

// TestWithoutLog: the operator is told why mail is taken more slowly.
func TestWithoutLog(t *testing.T) {
	h := &house{t: t, dir: t.TempDir()}
	if err := os.Mkdir(filepath.Join(h.dir, "queue.log.new"), 0o700); err != nil {
		t.Fatal(err)
	}
	h.open()
	h.logged("warn: queue: mail is taken more slowly: the log of the spool cannot be used: queue.log: open: is a directory")
}

// TestOldMail: the operator is told of the mail of an OpenSMTPD, and no more when
// it has been put away.
func TestOldMail(t *testing.T) {
	const warning = "of OpenSMTPD in the queue folder of the spool"
	h := &house{t: t, dir: t.TempDir()}
	for _, dir := range []string{"0a/0a000001", "ff/ff0000aa", "imported/ff0000ab", "0a/0b000001"} {
		if err := os.MkdirAll(filepath.Join(h.dir, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	h.open()
	if err := h.stop(); err != nil { // after all that was begun at the start
		t.Fatal(err)
	}
	h.logged("warn: queue: 2 messages " + warning + ": `smtpctl queue import` has it delivered")
	for _, dir := range []string{"0a", "ff"} {
		if err := os.RemoveAll(filepath.Join(h.dir, dir)); err != nil {
			t.Fatal(err)
		}
	}
	h.open()
	if err := h.stop(); err != nil {
		t.Fatal(err)
	}
	if text := h.log.String(); strings.Contains(text, warning) {
		t.Errorf("said again: %s", text)
	}
}
