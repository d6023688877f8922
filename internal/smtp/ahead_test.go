package smtp

import (
	"slices"
	"strings"
	"testing"
)

// Recipients that come in together are asked about together, and are answered
// as if they had come one by one.
func TestAhead(t *testing.T) {
	rcpts := []string{
		"<alice@example.org>", "<bob@example.org> NOTIFY=NEVER", "<nosuch@example.org>", "<team@example.org>",
		"<alice@example.org>", "oops", "<carol@example.org>", "<tmp@example.org>", "<postmaster@example.org>",
	}
	talk := func(whole bool) (replies []string, asked []int, kept []stored) {
		u := newSetup()
		c := u.dial(t)
		c.reply()
		c.must("EHLO x", "MAIL FROM:<a@b.test>")
		var all strings.Builder
		for i, r := range rcpts {
			cmd := "RCPT TO:" + r
			if i == 3 {
				cmd = "rcpt to:" + r + "  "
			}
			if whole {
				all.WriteString(cmd + "\r\n")
			} else {
				replies = append(replies, c.cmd(cmd))
			}
		}
		if whole {
			c.send(all.String() + "NOOP\r\nRCPT TO:<bob@md.test>\r\n")
			for range len(rcpts) + 2 {
				replies = append(replies, c.reply())
			}
		} else {
			replies = append(replies, c.cmd("NOOP"), c.cmd("RCPT TO:<bob@md.test>"))
		}
		c.must("DATA")
		c.send("Subject: x\r\n\r\nhi\r\n.\r\nQUIT\r\n")
		replies = append(replies, c.reply())
		c.reply()
		c.wait()
		return replies, u.b.asked, u.b.messages
	}
	one, asked, kept := talk(false)
	if want := []int{1, 1, 1, 1, 1, 1, 1, 1, 1}; !slices.Equal(asked, want) {
		t.Errorf("one by one: asked %v; want %v", asked, want)
	}
	all, asked, keptAll := talk(true)
	if want := []int{5, 3, 1}; !slices.Equal(asked, want) {
		t.Errorf("together: asked %v; want %v", asked, want)
	}
	if !slices.Equal(one, all) {
		t.Errorf("got %q; want %q", all, one)
	}
	if len(kept) != 1 || len(keptAll) != 1 || !slices.Equal(kept[0].envelopes, keptAll[0].envelopes) {
		t.Errorf("kept %+v; want %+v", keptAll, kept)
	}
}

// What a transaction asked ahead is not used in the next one.
func TestAheadReset(t *testing.T) {
	u := newSetup()
	c := u.dial(t)
	c.reply()
	c.must("EHLO x")
	c.send("MAIL FROM:<a@b.test>\r\nRCPT TO:<alice@example.org>\r\nRCPT TO:<bob@example.org>\r\nRSET\r\n" +
		"MAIL FROM:<>\r\nRCPT TO:<bob@example.org>\r\nDATA\r\nSubject: x\r\n\r\nhi\r\n.\r\nQUIT\r\n")
	c.wait()
	if len(u.b.messages) != 1 || u.b.messages[0].envelopes[0].Sender.User != "" {
		t.Errorf("kept %+v", u.b.messages)
	}
}

// A limit on recipients counts those asked ahead as it counts the others.
func TestAheadLimit(t *testing.T) {
	u := newSetup()
	u.c.SMTP.MaxRcpt = 3
	c := u.dial(t)
	c.reply()
	c.must("EHLO x", "MAIL FROM:<a@b.test>")
	c.send(strings.Repeat("RCPT TO:<alice@md.test>\r\n", 6))
	var ok int
	for range 6 {
		if strings.HasPrefix(c.reply(), "250") {
			ok++
		}
	}
	if ok != 3 || !slices.Equal(u.b.asked, []int{3}) {
		t.Errorf("%d accepted, asked %v", ok, u.b.asked)
	}
}

// With filters recipients that come in together are asked about together as well:
// one that a filter refuses is passed over, and once it rewrites one nothing more
// is asked ahead in that transaction.
func TestAheadFiltered(t *testing.T) {
	talk := func(rcpts map[string]Verdict) (replies string, asked []int, to []string) {
		u, c := filtered(t, &recorder{rcpts: rcpts})
		c.reply()
		c.must("EHLO x", "MAIL FROM:<a@b.test>")
		c.send("RCPT TO:<alice@example.org>\r\nRCPT TO:<bob@example.org>\r\nRCPT TO:<carol@example.org>\r\n" +
			"RCPT TO:<team@example.org>\r\nDATA\r\nSubject: x\r\n\r\nhi\r\n.\r\nQUIT\r\n")
		for range 4 {
			replies += c.reply()[:3] + " "
		}
		c.wait()
		if len(u.b.messages) != 1 {
			t.Fatalf("kept %+v", u.b.messages)
		}
		for _, e := range u.b.messages[0].envelopes {
			to = append(to, e.Rcpt.User)
		}
		return replies, u.b.asked, slices.Compact(to)
	}
	tests := map[string]struct {
		rcpts   map[string]Verdict
		replies string
		asked   []int
		to      []string
	}{
		"all pass":     {nil, "250 250 250 250 ", []int{4}, []string{"alice", "bob", "carol"}},
		"one refused":  {map[string]Verdict{"bob@example.org": {Reject, "550 no"}}, "250 550 250 250 ", []int{4}, []string{"alice", "carol", "team"}},
		"last refused": {map[string]Verdict{"team@example.org": {Reject, "550 no"}}, "250 250 250 550 ", []int{4}, []string{"alice", "bob", "carol"}},
		"one rewritten": {map[string]Verdict{"bob@example.org": {Rewrite, "<carol@example.org>"}}, "250 250 250 250 ",
			[]int{4, 1, 1}, []string{"alice", "carol", "team"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			replies, asked, to := talk(tt.rcpts)
			if replies != tt.replies || !slices.Equal(asked, tt.asked) || !slices.Equal(to, tt.to) {
				t.Errorf("got %q, asked %v, to %v; want %q, %v, %v", replies, asked, to, tt.replies, tt.asked, tt.to)
			}
		})
	}
}
