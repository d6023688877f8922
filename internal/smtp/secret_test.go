package smtp

import (
	"strings"
	"testing"

	"smtpd/internal/config"
)

// TestSecretsStayOut: whatever a client does with its login, log and dialogue
// have it not.
func TestSecretsStayOut(t *testing.T) {
	const login, user, password = "AGFsaWNlAHNlY3JldA==", "YWxpY2U=", "c2VjcmV0"
	hello := []string{"EHLO c"}
	tests := map[string][]string{
		"right":                 {"AUTH PLAIN " + login},
		"twice":                 {"AUTH PLAIN " + login, "AUTH PLAIN " + login},
		"small letters":         {"auth plain " + login},
		"two spaces":            {"AUTH  PLAIN  " + login},
		"a blank in front":      {" AUTH PLAIN " + login},
		"tabs":                  {"AUTH\tPLAIN\t" + login},
		"glued":                 {"AUTHPLAIN " + login},
		"without mechanism":     {"AUTH " + login},
		"unknown mechanism":     {"AUTH CRAM-MD5 " + login},
		"LOGIN":                 {"AUTH LOGIN", user, password},
		"LOGIN with the user":   {"AUTH LOGIN " + user, password},
		"LOGIN after refusal":   {"AUTH NTLM", user, password, "NOOP"},
		"LOGIN in a mail":       {"MAIL FROM:<a@b.org>", "AUTH LOGIN", user, password},
		"LOGIN when logged in":  {"AUTH PLAIN " + login, "AUTH LOGIN", user, password},
		"LOGIN after a failure": {"AUTH LOGIN", "!", password},
	}
	for name, lines := range tests {
		for _, mode := range []config.TLSMode{config.TLSNone, config.TLSImplicit} {
			t.Run(name+" "+string(mode), func(t *testing.T) {
				u := newSetup()
				u.l.LogConversation, u.l.Auth = true, true
				if mode != config.TLSNone {
					u.withTLS(t, mode)
				}
				c := u.dial(t)
				if mode != config.TLSNone {
					c.startTLS()
				}
				c.reply()
				for _, line := range append(hello, lines...) {
					c.cmd(line)
				}
				c.cmd("QUIT")
				<-c.done
				text := u.log.String()
				for _, secret := range []string{login, password, "secret"} {
					if i := strings.Index(text, secret); i >= 0 {
						t.Errorf("%q in %q", secret, text[max(0, i-100):i+len(secret)])
					}
				}
			})
		}
	}
}
