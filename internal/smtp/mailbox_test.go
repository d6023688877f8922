package smtp

import (
	"testing"

	"smtpd/internal/config"
	"smtpd/internal/mail"
)

// TestOneCopy: two envelopes are one copy when they go to one place for sure,
// and never when they may go to two.
func TestOneCopy(t *testing.T) {
	actions := map[string]*config.Action{
		"mbox":    {Name: "mbox", Method: config.MethodMbox},
		"maildir": {Name: "maildir", Method: config.MethodMaildir},
		"split":   {Name: "split", Method: config.MethodMaildir, Path: "/m/%{dest.domain}"},
		"wrapped": {Name: "wrapped", Method: config.MethodMbox, Wrapper: "w"},
		"mda":     {Name: "mda", Method: config.MethodMDA},
	}
	to := func(action, user, dest, sub, exec string) mail.Envelope {
		return mail.Envelope{Kind: mail.KindMDA, Dispatcher: action, User: user, Dest: mail.SplitAddress(dest), SubAddr: sub, Exec: exec}
	}
	far := func(dest string) mail.Envelope {
		return mail.Envelope{Kind: mail.KindMTA, Dispatcher: "out", Dest: mail.SplitAddress(dest)}
	}
	tests := map[string]struct {
		a, b  mail.Envelope
		delim string
		one   bool
	}{
		"same user":               {to("maildir", "alice", "alice@x", "", ""), to("maildir", "alice", "team@x", "", ""), "+", true},
		"two users":               {to("maildir", "alice", "team@x", "", ""), to("maildir", "bob", "team@x", "", ""), "+", false},
		"two actions":             {to("maildir", "alice", "a@x", "", ""), to("mbox", "alice", "a@x", "", ""), "+", false},
		"a folder":                {to("maildir", "alice", "alice@x", "", ""), to("maildir", "alice", "alice+t@x", "", ""), "+", false},
		"a folder by -":           {to("maildir", "alice", "alice@x", "", ""), to("maildir", "alice", "alice-t@x", "", ""), "-", false},
		"another sign":            {to("maildir", "a+t", "a+t@x", "", ""), to("maildir", "a+t", "team@x", "", ""), "-", true},
		"two ways to a folder":    {to("maildir", "alice", "alice+t@x", "", ""), to("maildir", "alice", "team@x", "t", ""), "+", true},
		"alias to a folder":       {to("maildir", "alice", "alice@x", "", ""), to("maildir", "alice", "team@x", "t", ""), "+", false},
		"mbox has no folders":     {to("mbox", "alice", "alice@x", "", ""), to("mbox", "alice", "alice+t@x", "", ""), "+", true},
		"mbox, by an alias":       {to("mbox", "alice", "alice@x", "", ""), to("mbox", "alice", "team@x", "t", ""), "+", true},
		"path by the domain":      {to("split", "v", "v@a", "", ""), to("split", "v", "v@b", "", ""), "+", false},
		"wrapper":                 {to("wrapped", "v", "v@a", "", ""), to("wrapped", "v", "v@b", "", ""), "+", false},
		"command of the action":   {to("mda", "v", "v@a", "", ""), to("mda", "v", "w@a", "", ""), "+", false},
		"command of a .forward":   {to("mbox", "a", "a@x", "", "|cat"), to("mbox", "a", "team@x", "", "|cat"), "+", true},
		"a tag for the command":   {to("mbox", "a", "a@x", "", "|cat"), to("mbox", "a", "a+t@x", "", "|cat"), "+", false},
		"a command with a format": {to("mbox", "a", "a@x", "", "|cat %{dest}"), to("mbox", "a", "b@x", "", "|cat %{dest}"), "+", false},
		"file":                    {to("mbox", "a", "a@x", "", "/f"), to("mbox", "a", "a+t@x", "", "/f"), "+", true},
		"two files":               {to("mbox", "a", "a@x", "", "/f"), to("mbox", "a", "a@x", "", "/g"), "+", false},
		"relayed, domain's case":  {far("a@x.org"), far("a@X.org"), "+", true},
		"relayed, user's case":    {far("a@x.org"), far("A@x.org"), "+", false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := &Config{Actions: actions, SMTP: config.SMTP{SubAddrDelim: tt.delim}}
			tx := &transaction{}
			tx.add([]mail.Envelope{tt.a}, c)
			last := tx.add([]mail.Envelope{tt.b}, c)
			want := 2
			if tt.one {
				want = 1
			}
			if last != want || len(tx.envelopes) != want {
				t.Errorf("%d envelopes, the last is number %d; want %d", len(tx.envelopes), last, want)
			}
		})
	}
}
