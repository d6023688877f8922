package mta

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"smtpd/internal/config"
)

// receiver reads what follows 354 as one kind of server does: text and the rest.
type receiver func(wire string) (text, rest string, ended bool)

// receivers are a server that keeps to RFC 5321, one that takes a bare LF for a
// line end, and one that takes a bare CR for one too.
var receivers = map[string]receiver{
	"strict": func(wire string) (string, string, bool) {
		if rest, ok := strings.CutPrefix(wire, ".\r\n"); ok {
			return "", rest, true
		}
		text, rest, ok := strings.Cut(wire, "\r\n.\r\n")
		return strings.ReplaceAll("\r\n"+text, "\r\n.", "\r\n"), rest, ok
	},
	"bare LF": func(wire string) (string, string, bool) { return byLines(wire, "\n") },
	"bare CR": func(wire string) (string, string, bool) { return byLines(wire, "\r\n") },
}

// byLines ends a line at CRLF and at each of the octets in ends.
func byLines(wire, ends string) (text, rest string, ended bool) {
	for wire != "" {
		i := strings.IndexAny(wire, ends)
		if i < 0 {
			return text, "", false
		}
		line := strings.TrimSuffix(wire[:i], "\r")
		n := i + 1
		if wire[i] == '\r' && strings.HasPrefix(wire[n:], "\n") {
			n++
		}
		if wire = wire[n:]; line == "." {
			return text, wire, true
		}
		text += strings.TrimPrefix(line, ".") + "\n"
	}
	return text, "", false
}

// However line ends are put together in a text, each receiver gets one mail, the
// same one, and no command out of it.
func TestNothingSmuggled(t *testing.T) {
	const evil = "MAIL FROM:<evil@x.test>\r\nRCPT TO:<evil@y.test>\r\nDATA\r\nevil\r\n.\r\n"
	parts := []string{"\r", "\n", "\r\n", ".", "x", "\x00", "\r.", ".\r"}
	texts := []string{""}
	for range 5 {
		for _, text := range texts {
			for _, p := range parts {
				if len(texts) < 6000 {
					texts = append(texts, text+p)
				}
			}
		}
	}
	for _, text := range texts {
		wire := onWire(t, []byte("Subject: a\r\n\r\nb"+text+evil+"c"), 1000)
		first := ""
		for name, receive := range receivers {
			got, rest, ended := receive(wire)
			if !ended || rest != "" {
				t.Fatalf("%q: %s: ended %v, and is told %q", text, name, ended, rest)
			}
			got = strings.Trim(strings.ReplaceAll(got, "\r\n", "\n"), "\n")
			if first == "" {
				first = got
			}
			if got != first {
				t.Fatalf("%q: %s has another text: %q and %q", text, name, got, first)
			}
		}
	}
}

// The same on a connection: commands of the next mail follow, and are all there
// is outside of texts.
func TestNothingSmuggledByPipelining(t *testing.T) {
	for _, ext := range [][]string{{"PIPELINING"}, {"PIPELINING", "CHUNKING"}, nil} {
		w := newWorld(t)
		w.mx("d.test", "10 mx.d.test 192.0.2.1")
		h := &goodHost{ext: ext}
		w.hosts["192.0.2.1:25"] = h.serve
		evil := []byte("a\r\n.\rb\n.\nMAIL FROM:<evil@x.test>\n\r.\r\nRCPT TO:<evil@x.test>\r.\rDATA\r\n.\r\nQUIT\r\n")
		w.run(func(e *Engine) {
			for range 3 {
				m := w.message(&config.Relay{}, "u@d.test")
				m.Open = func(context.Context) (Text, error) { return Text{Data: bytes.Clone(evil)}, nil }
				e.Submit(t.Context(), m)
			}
			w.wait(3)
		})
		if len(h.bodies) != 3 || w.codes()[250] != 3 {
			t.Errorf("%v: %d mails, %s", ext, len(h.bodies), w.results())
		}
		for _, l := range h.lines {
			if strings.Contains(l, "evil") {
				t.Errorf("%v: host heard %q", ext, l)
			}
		}
	}
}
