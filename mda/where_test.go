package mda

import (
	"testing"

	"smtpd/internal/mail"
)

func TestDestination(t *testing.T) {
	values := Values{User: "alice", Home: "/home/alice", Dest: mail.Address{User: "Info+x", Domain: "b.org"}, Delim: "+"}
	tests := map[string]struct {
		d    Delivery
		want string
	}{
		"mbox":           {Delivery{Method: Mbox}, "/var/mail/alice"},
		"maildir":        {Delivery{Method: Maildir}, "/home/alice/Maildir"},
		"maildir, path":  {Delivery{Method: Maildir, Path: "/v/%{dest.domain}/%{dest.user:lowercase|strip}"}, "/v/b.org/info"},
		"file":           {Delivery{Method: File, Path: "~/box"}, "/home/alice/box"},
		"lmtp":           {Delivery{Method: LMTP, Path: "127.0.0.1:24"}, "127.0.0.1:24"},
		"command":        {Delivery{Method: Command, Command: "x -u %{user.username}"}, "x -u alice"},
		"wrapped":        {Delivery{Method: Pipe, Command: "y", Wrapper: "nice %{mda}"}, "nice y"},
		"cannot be told": {Delivery{Method: Maildir, Path: "/v/%{sender[3]}"}, "!"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tt.d.Values = values
			got, err := tt.d.Destination("")
			if err != nil {
				got = "!"
			}
			if got != tt.want {
				t.Errorf("got %q, %v, want %q", got, err, tt.want)
			}
		})
	}
}
