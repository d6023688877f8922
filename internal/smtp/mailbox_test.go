package smtp

import (
	"strconv"
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
	to := func(action, user, dest, sub, exec string) mail.Branch {
		return mail.Branch{Kind: mail.KindMDA, Dispatcher: action, User: user, Dest: mail.SplitAddress(dest), SubAddr: sub, Exec: exec}
	}
	far := func(dest string) mail.Branch {
		return mail.Branch{Kind: mail.KindMTA, Dispatcher: "out", Dest: mail.SplitAddress(dest)}
	}
	tests := map[string]struct {
		a, b  mail.Branch
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
			tx.add(mail.Recipient{}, []mail.Branch{tt.a}, c)
			last := tx.add(mail.Recipient{}, []mail.Branch{tt.b}, c)
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

// TestTwins: a message to more recipients than there is room for, some of them
// twice, and places whose hashes are the same by chance.
func TestTwins(t *testing.T) {
	c := &Config{}
	far := func(n int) []mail.Branch {
		return []mail.Branch{{Kind: mail.KindMTA, Dispatcher: "out", Dest: mail.Address{User: "u" + strconv.Itoa(n), Domain: "x.org"}}}
	}
	for range 3 { // the second is given the room of the first
		tx := &transaction{ahead: make([]mail.Recipient, 1)}
		for i := range 3 * maxAhead {
			to := mail.Recipient{Address: mail.Address{User: "r" + strconv.Itoa(i)}}
			if last := tx.add(to, far(i), c); last != i+1 {
				t.Fatalf("place %d; want %d", last, i+1)
			}
			if last := tx.add(to, far(i/2), c); last != i/2+1 {
				t.Fatalf("again: place %d; want %d", last, i/2+1)
			}
		}
		for i, e := range tx.envelopes {
			if e.Dest != far(i)[0].Dest || e.Rcpt.User != "r"+strconv.Itoa(i) {
				t.Fatalf("envelope %d: %+v", i, e)
			}
		}
		e := mail.Envelope{}
		e.Follow(&far(1000)[0])
		tx.boxes[mailboxOf(&e, nil, "").hash(tx.seed)] = 1 // that of the first
		for range 2 {
			if last := tx.add(mail.Recipient{}, far(1000), c); last != 3*maxAhead+1 {
				t.Fatalf("one hash: place %d", last)
			}
		}
		room := tx.room
		tx.release()
		if *room != [maxAhead + 1]mail.Envelope{} {
			t.Fatal("something is left in the room")
		}
	}
}
