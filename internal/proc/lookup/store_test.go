package lookup

import (
	"strings"
	"sync/atomic"
	"testing"

	"smtpd/internal/config"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/mail"
)

// TestRootAlias checks for which actions the operator hears that root has no
// alias.
func TestRootAlias(t *testing.T) {
	const warning = "root has no alias: mail for root is refused by action"
	c := conf(t)
	h := start(t, c, false)
	next := conf(t)
	next.Tables["aliases"].Pairs = nil
	if h.log.has(warning) {
		t.Errorf("root has an alias: %q", h.log.all())
	}
	h.parent.mu.Lock()
	h.parent.users["root"] = &imsg.UserInfo{Found: true, Name: "root", Home: "/root"}
	h.parent.mu.Unlock()
	h.config <- next
	h.log.wait(t, warning+` "local" (`)
}

// TestStore checks what becomes of a recipient when the store is asked, and how
// often that is.
func TestStore(t *testing.T) {
	refused := mail.Status{Code: 552, Enh: [3]uint8{5, 2, 2}, Text: "<%> over quota"}
	tests := map[string]struct {
		rcpt     string
		answered bool
		status   mail.Status
		want     string // begin of the reply
		asked    int32  // in two tries
	}{
		"taken":        {rcpt: "alice@example.org", answered: true, status: mail.Status{Code: 250}, want: "250", asked: 1},
		"refused":      {rcpt: "alice@example.org", answered: true, status: refused, want: "552 5.2.2 over quota", asked: 1},
		"ends session": {rcpt: "alice@example.org", answered: true, status: mail.Status{Code: 421, Text: "bye"}, want: "451", asked: 1},
		"not there":    {rcpt: "alice@example.org", status: refused, want: "250", asked: 2},
		"list":         {rcpt: "pair@example.org", answered: true, status: refused, want: "250", asked: 0},
		"relay":        {rcpt: "x@else.test", answered: true, status: refused, want: "250", asked: 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := conf(t)
			c.Actions["local"].Method, c.Actions["local"].Dest, c.Actions["local"].VerifyRcpt = config.MethodLMTP, "/s", true
			c.Tables["aliases"].Pairs = append(c.Tables["aliases"].Pairs, [2]string{"pair", "alice, virt@localhost"})
			h := start(t, c, false)
			var asked atomic.Int32
			answer := func(r *ipc.Request) {
				if m, ok := r.Msg.(*imsg.StoreCheck); ok {
					asked.Add(1)
					st := tt.status
					st.Text = strings.ReplaceAll(st.Text, "%", m.Envelope.Dest.String())
					r.Reply(&imsg.StoreAnswer{Answered: tt.answered, Status: st}, nil)
				}
			}
			h.asMDA.Store(&answer)
			for range 2 {
				if got := show(ask[*imsg.RcptAnswer](t, h.smtp, rcpt(tt.rcpt))); !strings.HasPrefix(got, tt.want) {
					t.Errorf("got %s; want %s", got, tt.want)
				}
			}
			if n := asked.Load(); n != tt.asked {
				t.Errorf("asked %d times, want %d", n, tt.asked)
			}
		})
	}
}
