package mta

import (
	"fmt"
	"strings"
	"testing"

	"smtpd/internal/config"
)

func TestDialogue(t *testing.T) {
	const hello = "S: 220 mx ESMTP\nC: EHLO me.test\n"
	const plain = hello + "S: 250 mx\n"
	const piped = hello + "S: 250-mx\nS: 250 PIPELINING\n"
	const mailOK = plain + "C: MAIL FROM:<a@b.test>\nS: 250 ok\n"
	const rcptOK = mailOK + "C: RCPT TO:<u@d.test>\nS: 250 ok\n"
	const dataOK = rcptOK + "C: DATA\nS: 354 go\nD\n"
	const pipedAll = piped + "C: MAIL FROM:<a@b.test>\nC: RCPT TO:<u@d.test>\nC: DATA\n"
	const network = "u@d.test 451 Network error on destination MXs"
	tests := map[string]struct {
		script string
		want   string // result
		log    string // is in the log
	}{
		"all well":          {dataOK + "S: 250 2.0.0 queued", "u@d.test 250 250 2.0.0 queued", "mta connected"},
		"without text":      {dataOK + "S: 250", "u@d.test 250 250 ", ""},
		"multi-line end":    {dataOK + "S: 250-2.0.0 a\nS: 250 2.0.0 b", "u@d.test 250 250 2.0.0 a b", ""},
		"bare LF replies":   {dataOK + `S: 250-a\n250 b\n`, "u@d.test 250 250 a b", ""},
		"NUL in a reply":    {dataOK + `S: 250 a\0b`, "u@d.test 250 250 a?b", ""},
		"pipelined":         {pipedAll + "S: 250 a\nS: 250 b\nS: 354 c\nD\nS: 250 done", "u@d.test 250 250 done", ""},
		"banner 554":        {"S: 554 5.7.1 go away", network, "mta error reason=BANNER rejected: 554 5.7.1 go away"},
		"banner 421":        {"S: 421 busy", network, "mta error reason=BANNER rejected: 421 busy"},
		"no banner":         {"hang", network, "mta error reason=Connection timeout"},
		"drop at once":      {"drop", network, "mta error reason=Connection closed unexpectedly"},
		"not SMTP":          {"S: SSH-2.0-x", network, "mta error reason=Bad response: SSH-2.0-x"},
		"code 199":          {"S: 199 x", network, "Bad response: 199 x"},
		"banner half":       {`S: 220-x\r\n553-`, network, "Bad response: 553-"},
		"codes differ":      {`S: 220-x\r\n250 y`, network, "Bad response: 250 y"},
		"EHLO and HELO bad": {hello + "S: 502 no\nC: HELO me.test\nS: 550 no", network, "HELO rejected: 550 no"},
		"EHLO 421":          {hello + "S: 421 no", network, "EHLO rejected: 421 no"},
		"HELO will do": {hello + "S: 502 no\nC: HELO me.test\nS: 250 hi\nC: MAIL FROM:<a@b.test>\nS: 250 a\n" +
			"C: RCPT TO:<u@d.test>\nS: 250 b\nC: DATA\nS: 354 c\nD\nS: 250 ok", "u@d.test 250 250 ok", ""},
		"MAIL 550":           {plain + "C: MAIL .*\nS: 550 5.7.1 no", "u@d.test 550 550 5.7.1 no", ""},
		"MAIL 451":           {plain + "C: MAIL .*\nS: 451 4.3.0 later", "u@d.test 451 451 4.3.0 later", ""},
		"MAIL 421":           {plain + "C: MAIL .*\nS: 421 4.3.2 bye\ndrop", "u@d.test 421 421 4.3.2 bye", "mta error reason=421 4.3.2 bye"},
		"MAIL, then drop":    {plain + "C: MAIL .*\ndrop", "u@d.test 451 Connection closed unexpectedly", ""},
		"MAIL, silence":      {plain + "C: MAIL .*\nhang", "u@d.test 451 Connection timeout", ""},
		"MAIL nonsense":      {plain + "C: MAIL .*\nS: hello", "u@d.test 451 Bad response: hello", ""},
		"RCPT 550":           {mailOK + "C: RCPT .*\nS: 550 5.1.1 no such user\nC: RSET\nS: 250 ok", "u@d.test 550 550 5.1.1 no such user", ""},
		"RCPT 450":           {mailOK + "C: RCPT .*\nS: 450 4.2.0 greylisted\nC: RSET\nS: 250 ok", "u@d.test 450 450 4.2.0 greylisted", ""},
		"RCPT 251":           {mailOK + "C: RCPT .*\nS: 251 will forward\nC: DATA\nS: 354 x\nD\nS: 250 ok", "u@d.test 250 250 ok", ""},
		"RCPT 421":           {mailOK + "C: RCPT .*\nS: 421 bye", "u@d.test 421 421 bye", ""},
		"RCPT 452":           {mailOK + "C: RCPT .*\nS: 452 full\nC: RSET\nS: 250 ok", "u@d.test 452 452 full", ""},
		"RCPT 354":           {mailOK + "C: RCPT .*\nS: 354 what\nC: RSET\nS: 250 ok", "u@d.test 354 354 what", ""},
		"class disagrees":    {mailOK + "C: RCPT .*\nS: 450 5.1.1 odd\nC: RSET\nS: 250 ok", "u@d.test 450 450 odd", ""},
		"DATA 554":           {rcptOK + "C: DATA\nS: 554 no\nC: RSET\nS: 250 ok", "u@d.test 554 554 no", ""},
		"DATA 421":           {rcptOK + "C: DATA\nS: 421 no", "u@d.test 421 421 no", ""},
		"DATA 250":           {rcptOK + "C: DATA\nS: 250 what", "u@d.test 451 Bad response: 250 what", ""},
		"DATA, then drop":    {rcptOK + "C: DATA\ndrop", "u@d.test 451 Connection closed unexpectedly", ""},
		"end 552":            {dataOK + "S: 552 5.3.4 too big", "u@d.test 552 552 5.3.4 too big", ""},
		"end 451":            {dataOK + "S: 451 later", "u@d.test 451 451 later", ""},
		"end, drop":          {dataOK + "drop", "u@d.test 451 Connection closed unexpectedly", ""},
		"end, silence":       {dataOK + "hang", "u@d.test 451 Connection timeout", ""},
		"loop":               {dataOK + "S: 500 5.4.6 Routing loop detected", "u@d.test 500 500 5.4.6 Routing loop detected", ""},
		"pipelined MAIL 550": {pipedAll + "S: 550 no\nS: 503 x\nS: 503 y\n", "u@d.test 550 550 no", ""},
		"pipelined RCPT 550": {pipedAll + "S: 250 a\nS: 550 no\nS: 554 y\nC: RSET\nS: 250 ok", "u@d.test 550 550 no", ""},
		"354 for nobody":     {pipedAll + "S: 250 a\nS: 550 no\nS: 354 y\nC: [.]\nS: 554 none", "u@d.test 550 550 no", ""},
		"MAIL 550, 354":      {pipedAll + "S: 550 no\nS: 550 b\nS: 354 y\nC: [.]\nS: 554 none", "u@d.test 550 550 no", ""},
		"pipelined DATA 451": {pipedAll + "S: 250 a\nS: 250 b\nS: 451 y\nC: RSET\nS: 250 ok", "u@d.test 451 451 y", ""},
		"pipelined drop":     {pipedAll + "S: 250 a\nS: 250 b\ndrop", "u@d.test 451 Connection closed unexpectedly", ""},
		"SIZE too small": {hello + "S: 250-mx\nS: 250 SIZE 10\nC: QUIT\nS: 221 bye",
			"u@d.test 552 Message is larger than the remote host accepts", ""},
		"SIZE": {hello + "S: 250-mx\nS: 250 SIZE 0\nC: MAIL FROM:<a@b.test> SIZE=24\nS: 550 x", "u@d.test 550 550 x", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.mx("d.test", "10 mx.d.test 192.0.2.1")
			w.hosts["192.0.2.1:25"] = play(tt.script)
			w.run(func(e *Engine) {
				e.Submit(t.Context(), w.message(&config.Relay{}, "u@d.test"))
				w.wait(1)
			})
			if got := strings.TrimSpace(w.results()); got != strings.TrimSpace(tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if !strings.Contains(w.text(), tt.log) {
				t.Errorf("log has no %q:\n%s", tt.log, w.text())
			}
		})
	}
}

// What keeps mail from a host is in the line for people, and decides the code
// for programs.
func TestCause(t *testing.T) {
	const first, second = "mx.d.test (192.0.2.1): ", "b.d.test (192.0.2.2): "
	const plain = "S: 220 mx\nC: EHLO me.test\nS: 250 mx"
	tests := map[string]struct {
		action        config.Relay
		one, two      string // scripts; empty: refused
		status, cause string // cause: without the text of the failure
	}{
		"refused":        {config.Relay{}, "", "", "4.4.1", first + "IO Error: Connection refused; " + second + "IO Error: Connection refused"},
		"silent":         {config.Relay{}, "hang", "", "4.4.1", first + "Connection timeout; " + second + "IO Error: Connection refused"},
		"banner":         {config.Relay{}, "S: 554 5.7.1 go away", "", "4.7.1", first + "BANNER rejected: 554 5.7.1 go away; " + second + "IO Error: Connection refused"},
		"banner, no enh": {config.Relay{}, "S: 554 go away", "S: 421 4.3.2 busy", "4.4.1", first + "BANNER rejected: 554 go away; " + second + "BANNER rejected: 421 4.3.2 busy"},
		"no TLS":         {config.Relay{TLS: true}, plain, "S: 554 no", "4.7.4", first + "TLS required but not supported by remote host; " + second + "BANNER rejected: 554 no"},
		"broken TLS": {config.Relay{TLS: true}, "S: 220 mx\nC: EHLO me.test\nS: 250-mx\nS: 250 STARTTLS\nC: STARTTLS\nS: 220 go\nS: nonsense",
			"", "4.7.5", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.mx("d.test", "10 mx.d.test 192.0.2.1", "20 b.d.test 192.0.2.2")
			for addr, script := range map[string]string{"192.0.2.1:25": tt.one, "192.0.2.2:25": tt.two} {
				if script != "" {
					w.hosts[addr] = play(script)
				}
			}
			w.run(func(e *Engine) {
				e.Submit(t.Context(), w.message(&tt.action, "u@d.test"))
				w.wait(1)
			})
			r := w.reports[0]
			if got := fmt.Sprintf("%d.%d.%d", r.Status.Enh[0], r.Status.Enh[1], r.Status.Enh[2]); got != tt.status {
				t.Errorf("status %s, want %s", got, tt.status)
			}
			cause, ok := strings.CutPrefix(r.Line, "Network error on destination MXs: ")
			if !ok || r.Stat != "Network error on destination MXs" || !strings.HasSuffix(r.Line, r.Status.Text) ||
				(tt.cause != "" && cause != tt.cause) {
				t.Errorf("stat %q, line %q, text %q", r.Stat, r.Line, r.Status.Text)
			}
		})
	}
}
