package smtp

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"strings"
	"testing"
)

// A certificate logs in who is in the listener's table, and only when the
// listener names the authority: those that all the world trusts give one to
// anybody.
func TestExternal(t *testing.T) {
	tests := map[string]struct {
		ca, table, name, mail, identity string
		verified, deaf                  bool
		want                            string // of AUTH; empty: it is not offered
	}{
		"by common name":    {ca: "ours", table: "t", name: "alice", verified: true, want: "235"},
		"by address":        {ca: "ours", table: "t", name: "x", mail: "alice", verified: true, want: "235"},
		"says who":          {ca: "ours", table: "t", name: "alice", identity: "alice", verified: true, want: "235"},
		"says somebody":     {ca: "ours", table: "t", name: "alice", identity: "bob", verified: true, want: "535"},
		"not in the table":  {ca: "ours", table: "t", name: "mallory", verified: true, want: "535"},
		"table gone":        {ca: "ours", table: "t", name: "alice", verified: true, deaf: true, want: "454"},
		"any authority":     {table: "t", name: "alice", verified: true},
		"system logins":     {ca: "ours", name: "alice", verified: true},
		"not verified":      {ca: "ours", table: "t", name: "alice"},
		"without a name":    {ca: "ours", table: "t", verified: true},
		"with control char": {ca: "ours", table: "t", name: "ali\nce", verified: true},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			u := newSetup()
			u.l.Auth, u.l.CA, u.l.AuthTable, u.b.deaf = true, tc.ca, tc.table, tc.deaf
			cert := &x509.Certificate{Subject: pkix.Name{CommonName: tc.name}}
			if tc.mail != "" {
				cert.EmailAddresses = []string{tc.mail}
			}
			c := u.dialAs(t, &tlsFacts{cipher: "none", verified: tc.verified, cert: cert})
			c.reply()
			offered := strings.Contains(c.cmd("EHLO x"), " EXTERNAL")
			if offered != (tc.want != "") {
				t.Fatalf("offered: %v", offered)
			}
			identity := "="
			if tc.identity != "" {
				identity = base64.StdEncoding.EncodeToString([]byte(tc.identity))
			}
			want := tc.want
			if want == "" {
				want = "504"
			}
			if got := c.cmd("AUTH EXTERNAL " + identity); !strings.HasPrefix(got, want) {
				t.Errorf("got %q; want %s", got, want)
			}
		})
	}
}
