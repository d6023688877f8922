package config

import (
	"crypto/tls"
	"slices"
	"strings"
	"testing"
)

func TestParseCiphers(t *testing.T) {
	named := func(list string) []string {
		var out []string
		for w := range strings.FieldsSeq(list) {
			out = append(out, w)
		}
		return out
	}
	tests := map[string]struct {
		in      string
		suites  string // OpenSSL's names; empty: the library's choice
		unknown string
		err     bool
	}{
		"nothing":     {in: ""},
		"default":     {in: "HIGH:!aNULL:!MD5"},
		"libtls":      {in: "secure"},
		"strength":    {in: "ALL:@STRENGTH"},
		"tls 1.3":     {in: "TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"},
		"names":       {in: "ECDHE-RSA-AES128-GCM-SHA256:TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", suites: "ECDHE-RSA-AES128-GCM-SHA256 ECDHE-ECDSA-CHACHA20-POLY1305"},
		"case, comma": {in: "ecdhe-rsa-aes128-gcm-sha256, foo", suites: "ECDHE-RSA-AES128-GCM-SHA256", unknown: "foo"},
		"joined":      {in: "EECDH+AESGCM+aRSA", suites: "ECDHE-RSA-AES128-GCM-SHA256 ECDHE-RSA-AES256-GCM-SHA384"},
		"taken away":  {in: "ECDHE:!SHA:!AESGCM:!ECDSA", suites: "ECDHE-RSA-CHACHA20-POLY1305"},
		"for good":    {in: "!AES128:!SHA:!CHACHA20:HIGH", suites: "ECDHE-RSA-AES256-GCM-SHA384 ECDHE-ECDSA-AES256-GCM-SHA384"},
		"by name":     {in: "RC4-SHA", suites: "RC4-SHA"},
		"no insecure": {in: "RC4:AES128+AESGCM+ECDSA", suites: "ECDHE-ECDSA-AES128-GCM-SHA256"},
		"foreign":     {in: "DHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384", suites: "ECDHE-RSA-AES256-GCM-SHA384"},
		"none left":   {in: "DHE-RSA-AES256-GCM-SHA384", err: true},
		"empty class": {in: "aNULL", err: true},
		"all away":    {in: "HIGH:!HIGH", err: true},
		"misspelt":    {in: "HIHG", unknown: "HIHG"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ParseCiphers(tt.in)
			if (err != nil) != tt.err || strings.Join(got.Unknown, " ") != tt.unknown {
				t.Fatalf("%v, unknown %q", err, got.Unknown)
			}
			var ids []string
			for _, id := range got.Suites {
				ids = append(ids, OpenSSLName(tls.CipherSuiteName(id)))
			}
			want := named(tt.suites)
			slices.Sort(ids)
			slices.Sort(want)
			if !slices.Equal(ids, want) {
				t.Errorf("got %v, want %v", ids, want)
			}
		})
	}
	if !slices.Contains(CipherWords(), "HIGH") {
		t.Error("HIGH is no word")
	}
}
