package filter

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"smtpd/internal/config"
	"smtpd/internal/mail"
)

// What a program says is either refused or reads back as it was written.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"filter-result|d1b09b09f5836e5c|77a6b43f64612eb0|proceed",
		"filter-result|d1b09b09f5836e5c|77a6b43f64612eb0|reject|550 5.7.1 no|way",
		"filter-result|d1b09b09f5836e5c|77a6b43f64612eb0|report|x",
		"filter-dataline|d1b09b09f5836e5c|77a6b43f64612eb0|line|with|pipes",
		"filter-dataline|d1b09b09f5836e5c|77a6b43f64612eb0|",
		"report|1795216888.867398|smtp-in|d1b09b22efddab7c|my own report text",
		"filter-result|d1b09b09f5836e5c|77a6b43f64612eb0|frobnicate", "garbage line", "",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		s, err := parse(line)
		if err != nil {
			return
		}
		ids := fmt.Sprintf("%016x|%016x|", uint64(s.session), s.token)
		var back string
		switch {
		case s.kind == kindLine:
			back = "filter-dataline|" + ids + string(s.text)
		case s.kind == kindReport:
			f := strings.SplitN(string(line), "|", 5)
			back = "report|" + f[1] + "|" + f[2] + "|" + ids[:17] + string(s.text)
		case s.report:
			back = "filter-result|" + ids + "report|" + string(s.text)
		case s.verdict == Proceed, s.verdict == Junk:
			back = "filter-result|" + ids + s.verdict.String()
			line = line[:min(len(line), len(back))] // what follows is not looked at
		default:
			back = "filter-result|" + ids + s.verdict.String() + "|" + string(s.text)
		}
		if !strings.EqualFold(back[:min(len(back), 60)], string(line[:min(len(line), 60)])) || !bytes.HasSuffix(line, s.text) {
			t.Errorf("%q reads as %q", line, back)
		}
		v := Verdict{s.verdict, string(s.text)}.Checked()
		if strings.ContainsAny(v.Text, "\r\n\x00") || len(v.Text) > MaxText+64 {
			t.Errorf("%q: text %q", line, v.Text)
		}
		if (v.Action == Reject || v.Action == Disconnect) && !ValidReply(v.Text) {
			t.Errorf("%q: reply %q", line, v.Text)
		}
	})
}

// Whatever a line holds, one line goes out, and it names its session.
func FuzzAppend(f *testing.F) {
	f.Add("a@b.org", uint64(1))
	f.Add("x\r\nfilter-result|", uint64(1<<63))
	f.Fuzz(func(t *testing.T, text string, id uint64) {
		n := Note{Event: ProtocolClient, Tail: text}
		b := appendReport(nil, In, mail.SessionID(id), &n)
		b = appendAsk(b, n.Time, MailFrom, mail.SessionID(id), id, text)
		if bytes.Count(b, []byte{'\n'}) != 2 || b[len(b)-1] != '\n' || bytes.Count(b, fmt.Appendf(nil, "|%016x|", id)) < 2 {
			t.Errorf("%q", b)
		}
	})
}

// A rule decides without fault whatever its facts are, and its opposite decides
// the opposite, but where there is nothing to look at.
func FuzzRule(f *testing.F) {
	f.Add("connect", "rdns", "mail.example.org", "pass", true, true)
	f.Add("rcpt-to", "rcpt-to", "", "", false, false)
	f.Fuzz(func(t *testing.T, phase, cond, fact, fcrdns string, inTable, withTable bool) {
		c := config.Filter{Name: "r", Phase: phase, Cond: cond, Decision: "junk"}
		if withTable {
			c.Match.Table = "t"
		}
		facts := Facts{Host: fact, FCrDNS: fcrdns, Source: fact, Helo: fact, User: fact, Sender: fact, Rcpt: fact}
		decide := func(not bool) Action {
			c.Match.Not = not
			r, ok := NewRule(&c)
			if !ok {
				t.Skip()
			}
			q, turn := r.Begin(t.Context(), r.phase, &facts, nil)
			answers := make([]bool, len(q))
			for i := range answers {
				answers[i] = inTable
			}
			d, err := turn.Decide(t.Context(), r.phase, &facts, answers)
			if err != nil {
				t.Fatal(err)
			}
			return d.Verdict.Action
		}
		if decide(false) == decide(true) {
			t.Errorf("%s %s %q: the same with and without !", phase, cond, fact)
		}
	})
}
