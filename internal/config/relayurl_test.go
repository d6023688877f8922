package config

import "testing"

func TestParseRelayURL(t *testing.T) {
	tests := map[string]struct {
		in   string
		want string // empty: refused
		port uint16
	}{
		"bare name":          {"mx.example.net", "smtp://mx.example.net", 25},
		"bare name and port": {"mx.example.net:2525", "smtp://mx.example.net:2525", 2525},
		"case":               {"SMTP+TLS://mx", "smtp+tls://mx", 25},
		"label":              {"smtp+tls://label@mx:587", "smtp+tls://label@mx:587", 587},
		"label with at":      {"smtps://u@example.org@mx", "smtps://u@example.org@mx", 465},
		"no tls":             {"smtp+notls://[::1]:2525", "smtp+notls://[::1]:2525", 2525},
		"address":            {"smtp://[192.0.2.1]", "smtp://192.0.2.1", 25},
		"lmtp":               {"lmtp://127.0.0.1:2003", "lmtp://127.0.0.1:2003", 2003},
		"old auth":           {"smtp+auth://user@mx", "smtp+tls://user@mx", 25},
		"old tls":            {"tls://mx:587", "smtp+tls://mx:587", 587},
		"old secure":         {"secure+auth://u@mx", "smtps://u@mx", 465},
		"old secure, port":   {"secure://mx:587", "smtp+tls://mx:587", 587},
		"unknown scheme":     {"gopher://mx", "", 0},
		"clear credentials":  {"smtp://label@mx", "", 0},
		"lmtp without port":  {"lmtp://mx", "", 0},
		"port 0":             {"mx:0", "", 0},
		"port too big":       {"mx:65536", "", 0},
		"no host":            {"smtp://", "", 0},
		"empty":              {"", "", 0},
		"empty label":        {"smtps://@mx", "", 0},
		"blank in name":      {"smtp://a b", "", 0},
		"open bracket":       {"smtp://[::1", "", 0},
		"no address":         {"smtp://[mx]", "", 0},
		"text after bracket": {"smtp://[::1]x", "", 0},
		"name with brackets": {"smtp://..", "", 0},
		"control in label":   {"smtps://a\nb@mx", "", 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			u, err := ParseRelayURL(tt.in)
			if tt.want == "" {
				if err == nil {
					t.Fatalf("got %v, want an error", u)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if u.String() != tt.want || u.DefaultPort() != tt.port {
				t.Errorf("got %v port %d, want %v port %d", u, u.DefaultPort(), tt.want, tt.port)
			}
		})
	}
}

func FuzzParseRelayURL(f *testing.F) {
	for _, s := range []string{"mx", "smtp+tls://l@[::1]:25", "secure://x:465", "lmtp://a:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := ParseRelayURL(s)
		if err != nil {
			return
		}
		again, err := ParseRelayURL(u.String())
		if err != nil || again != u {
			t.Errorf("%q gives %+v, printed and read again %+v, %v", s, u, again, err)
		}
	})
}
