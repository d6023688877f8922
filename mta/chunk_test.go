package mta

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"smtpd/internal/config"
)

var chunking = []string{"PIPELINING", "CHUNKING"}

// A text that goes with BDAT leaves with the commands, and the next mail behind
// it: the host has not said a word yet.
func TestChunked(t *testing.T) {
	w := newWorld(t)
	w.mx("d.test", "10 mx.d.test 192.0.2.1")
	w.cfg.MTA.Default.MaxConnPerRoute = 1
	const one = `C: MAIL FROM:<a@b.test>
		C: RCPT TO:<u%d@d.test>
		C: BDAT 24 LAST
		C: Subject: x
		C: 
		C: hello
		C: .
	`
	const said = "S: 250 a\nS: 250 b\nS: 250 done %d\n"
	const rset, ready = "C: RSET\n", "S: 250 reset\n"
	w.hosts["192.0.2.1:25"] = play("S: 220 mx\nC: EHLO me.test\nS: 250-mx\nS: 250-CHUNKING\nS: 250 PIPELINING\n" +
		fmt.Sprintf(one, 0) + rset + fmt.Sprintf(one, 1) + fmt.Sprintf(said, 0) + rset + fmt.Sprintf(one, 2) +
		ready + fmt.Sprintf(said, 1) + ready + fmt.Sprintf(said, 2) + "C: QUIT\nS: 221 bye")
	w.run(func(e *Engine) {
		w.many(e, &config.Relay{}, 3, "d.test")
		w.wait(3)
	})
	if got := w.results(); got != "u0@d.test 250 250 done 0\nu1@d.test 250 250 done 1\nu2@d.test 250 250 done 2\n" {
		t.Errorf("got %s", got)
	}
}

func TestChunkedMany(t *testing.T) {
	w := newWorld(t)
	w.mx("d.test", "10 mx.d.test 192.0.2.1")
	w.cfg.MTA.Default.TaskHiwat = 0
	h := &goodHost{ext: chunking, rcpt: func(line string) string {
		if strings.Contains(line, "7@") || strings.Contains(line, "8@") {
			return "550 5.1.1 not here"
		}
		return "250 ok"
	}}
	w.hosts["192.0.2.1:25"] = h.serve
	w.run(func(e *Engine) {
		w.many(e, &config.Relay{}, 300, "d.test")
		w.wait(300)
	})
	if got := w.codes(); got[250] != 240 || got[550] != 60 || len(h.bodies) != 240 {
		t.Errorf("codes %v, %d texts", got, len(h.bodies))
	}
	if slices.ContainsFunc(h.lines, func(l string) bool { return l == "DATA" }) {
		t.Error("DATA is sent to a host that takes BDAT")
	}
}

// When DATA is said although the host takes BDAT, and what comes of replies to
// BDAT.
func TestChunkedOrNot(t *testing.T) {
	const hello = "S: 220 mx\nC: EHLO me.test\nS: 250-mx\nS: 250-CHUNKING\nS: 250 PIPELINING\n"
	const all = hello + "C: MAIL.*\nC: RCPT.*\nC: BDAT 24 LAST\nC: Subject: x\nC: \nC: hello\nC: .\n"
	big := strings.Repeat("x\r\n", maxChunk/3+1)
	tests := map[string]struct {
		script, text, want string
	}{
		"too long":       {hello + "C: MAIL.*\nC: RCPT.*\nC: DATA\nS: 250\nS: 250\nS: 354\nD\nS: 250 ok", big, "250 250 ok"},
		"no PIPELINING":  {"S: 220 mx\nC: EHLO me.test\nS: 250-mx\nS: 250 CHUNKING\nC: MAIL.*\nS: 250\nC: RCPT.*\nS: 250\nC: DATA\nS: 354\nD\nS: 250 ok", "", "250 250 ok"},
		"refused":        {all + "S: 250 a\nS: 250 b\nS: 554 5.6.0 do not like it", "", "554 554 5.6.0 do not like it"},
		"MAIL refused":   {all + "S: 550 5.7.1 no\nS: 503 x\nS: 503 y\nC: QUIT", "", "550 550 5.7.1 no"},
		"RCPT refused":   {all + "S: 250 a\nS: 450 4.2.0 grey\nS: 503 y\nC: RSET\nS: 250 ok\nC: QUIT", "", "450 450 4.2.0 grey"},
		"421 to MAIL":    {all + "S: 421 4.3.2 bye\n", "", "421 421 4.3.2 bye"},
		"421 to BDAT":    {all + "S: 250 a\nS: 250 b\nS: 421 4.3.2 bye\n", "", "421 421 4.3.2 bye"},
		"drop":           {all + "drop", "", "451 Connection closed unexpectedly"},
		"silence":        {all + "S: 250 a\nS: 250 b\nhang", "", "451 Connection timeout"},
		"354 to BDAT":    {all + "S: 250 a\nS: 250 b\nS: 354 go\n", "", "354 354 go"},
		"bare LF":        {hello + "C: MAIL.*\nC: RCPT.*\nC: BDAT 9 LAST\nC: a b\nC: [.]c\nS: 250\nS: 250\nS: 250 ok", "a\rb\n.c", "250 250 ok"},
		"one empty line": {hello + "C: MAIL.*\nC: RCPT.*\nC: BDAT 2 LAST\nC: \nS: 250\nS: 250\nS: 250 ok", "\r\n", "250 250 ok"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.mx("d.test", "10 mx.d.test 192.0.2.1")
			w.hosts["192.0.2.1:25"] = play(tt.script)
			m := w.message(&config.Relay{}, "u@d.test")
			if tt.text != "" {
				m.Size = 0
				m.Open = func(context.Context) (Text, error) { return Text{Data: []byte(tt.text)}, nil }
			}
			w.run(func(e *Engine) {
				e.Submit(t.Context(), m)
				w.wait(1)
			})
			if got := strings.TrimSpace(w.results()); got != "u@d.test "+tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// A text sent with BDAT on a connection that then breaks may have been taken:
// it is not sent again at once. After 421 it was not.
func TestChunkedBreaksOff(t *testing.T) {
	for end, again := range map[string]bool{"drop": false, "S: 421 4.3.2 enough\ndrop": true} {
		w := newWorld(t)
		w.mx("d.test", "10 mx.d.test 192.0.2.1")
		w.cfg.MTA.Default.MaxConnPerRoute = 1
		n := 0
		h := &goodHost{ext: chunking}
		const one = "C: MAIL.*\nC: RCPT.*\nC: BDAT 24 LAST\nC: Subject: x\nC: \nC: hello\nC: .\n"
		w.hosts["192.0.2.1:25"] = func(p *peer) {
			if n++; n > 1 {
				h.serve(p)
				return
			}
			play("S: 220 mx\nC: EHLO me.test\nS: 250-mx\nS: 250-CHUNKING\nS: 250 PIPELINING\n" + one + "C: RSET\n" + one +
				"S: 250\nS: 250\nS: 250 done\n" + end)(p)
		}
		w.run(func(e *Engine) {
			w.many(e, &config.Relay{}, 2, "d.test")
			w.wait(2)
		})
		if got := w.codes(); (got[250] == 2) != again || len(h.bodies) > 1 || (len(h.bodies) == 1) != again {
			t.Errorf("%q: %d texts afterwards\n%s", end, len(h.bodies), w.results())
		}
	}
}
