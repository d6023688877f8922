package smtp

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"net/netip"
	"strings"
	"testing"
)

// v2 makes a header of version 2.
func v2(command, family byte, block string) string {
	var n [2]byte
	binary.BigEndian.PutUint16(n[:], uint16(len(block)))
	return proxySignature + string([]byte{command, family}) + string(n[:]) + block
}

const (
	block4 = "\xc0\x00\x02\x01\xc6\x33\x64\x02\x9c\x40\x00\x19" // 192.0.2.1 to 198.51.100.2, 40000 to 25
	block6 = "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x9c\x40\x00\x19"
)

// summed adds the checksum to a header.
func summed(block string) string {
	whole := []byte(v2(proxyProxy, proxyTCP4, block+"\x03\x00\x04\x00\x00\x00\x00"))
	binary.BigEndian.PutUint32(whole[len(whole)-4:], crc32.Checksum(whole, crc32.MakeTable(crc32.Castagnoli)))
	return string(whole)
}

func TestProxy(t *testing.T) {
	tests := map[string]struct {
		header string
		want   string // address in the greeting; empty: refused
	}{
		"v1":                 {"PROXY TCP4 192.0.2.1 198.51.100.2 40000 25\r\n", "[192.0.2.1]"},
		"v1, IPv6":           {"PROXY TCP6 2001:db8::1 2001:db8::2 40000 25\r\n", "[2001:db8::1]"},
		"v1, unknown":        {"PROXY UNKNOWN whatever follows\r\n", "[127.0.0.1]"},
		"v1, no address":     {"PROXY TCP4 x 198.51.100.2 40000 25\r\n", ""},
		"v1, wrong family":   {"PROXY TCP4 2001:db8::1 198.51.100.2 40000 25\r\n", ""},
		"v1, port":           {"PROXY TCP4 192.0.2.1 198.51.100.2 65536 25\r\n", ""},
		"v1, odd port":       {"PROXY TCP4 192.0.2.1 198.51.100.2 040 25\r\n", ""},
		"v1, fields":         {"PROXY TCP4 192.0.2.1 198.51.100.2 40000\r\n", ""},
		"v1, long":           {"PROXY UNKNOWN " + strings.Repeat("x", 200) + "\r\n", ""},
		"v1, bare LF":        {"PROXY UNKNOWN\n" + strings.Repeat("x", 200), ""},
		"v2":                 {v2(proxyProxy, proxyTCP4, block4), "[192.0.2.1]"},
		"v2, IPv6":           {v2(proxyProxy, proxyTCP6, block6), "[2001:db8::1]"},
		"v2, extension":      {v2(proxyProxy, proxyTCP4, block4+"\x04\x00\x01x"), "[192.0.2.1]"},
		"v2, checksum":       {summed(block4), "[192.0.2.1]"},
		"v2, bad checksum":   {v2(proxyProxy, proxyTCP4, block4+"\x03\x00\x04\x00\x00\x00\x01"), ""},
		"v2, cut extension":  {v2(proxyProxy, proxyTCP4, block4+"\x04\x00\x09x"), ""},
		"v2, local":          {v2(proxyLocal, proxyNone, ""), "[127.0.0.1]"},
		"v2, unspecified":    {v2(proxyProxy, proxyNone, "xyz"), "[127.0.0.1]"},
		"v2, datagrams":      {v2(proxyProxy, 0x12, block4), ""},
		"v2, version":        {v2(0x31, proxyTCP4, block4), ""},
		"v2, short":          {v2(proxyProxy, proxyTCP4, block4[:11]), ""},
		"v2, long":           {v2(proxyProxy, proxyTCP4, block4+strings.Repeat("x", 5000)), ""},
		"none":               {"EHLO client.test\r\nQUIT\r\n", ""},
		"no place":           {"PROXY TCP4 192.0.2.66 198.51.100.2 40000 25\r\n", ""},
		"mapped, as one was": {v2(proxyProxy, proxyTCP6, strings.Repeat("\x00", 10)+"\xff\xff\xc0\x00\x02\x01"+block6[16:]), "[192.0.2.1]"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			u := newSetup()
			u.l.ProxyV2 = true
			c := u.dial(t)
			c.send(tt.header + "HELO c\r\nQUIT\r\n")
			if tt.want == "" {
				if got := c.reply(); got != "" && got[:4] != "421 " {
					t.Fatalf("got %q", got)
				}
				c.wait()
				if !strings.Contains(u.log.String(), "smtp proxy-refused address=127.0.0.1") || strings.Contains(u.log.String(), "smtp connected") {
					t.Errorf("log: %s", u.log)
				}
			} else {
				c.reply()
				if got, want := c.reply(), "250 mx.example.org Hello c "+tt.want+", pleased to meet you"; got != want {
					t.Fatalf("got %q; want %q", got, want)
				}
				c.wait()
			}
			if u.b.inside != 0 {
				t.Errorf("%d are still counted", u.b.inside)
			}
		})
	}
}

func TestProxyAllowed(t *testing.T) {
	list := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	tests := []struct {
		from []netip.Prefix
		peer string
		want bool
	}{
		{nil, "127.0.0.1", true}, {nil, "10.1.2.3", true}, {nil, "fe80::1", true}, {nil, "fd00::1", true},
		{nil, "192.0.2.1", false}, {nil, "2001:db8::1", false},
		{list, "192.0.2.1", true}, {list, "127.0.0.1", false}, {list, "10.0.0.1", false},
	}
	for _, tt := range tests {
		if got := proxyAllowed(tt.from, netip.MustParseAddr(tt.peer)); got != tt.want {
			t.Errorf("%v %s: got %v", tt.from, tt.peer, got)
		}
	}
	u := newSetup()
	u.l.ProxyV2 = true
	u.client = netip.MustParseAddrPort("198.51.100.9:99")
	c := u.dial(t)
	c.send("PROXY UNKNOWN\r\n")
	if got := c.reply(); got != "" {
		t.Errorf("got %q", got)
	}
}

// FuzzProxy: no more is read than the header, and both addresses are of one
// family or there are none.
func FuzzProxy(f *testing.F) {
	f.Add([]byte("PROXY TCP4 192.0.2.1 198.51.100.2 40000 25\r\nEHLO"))
	f.Add([]byte(v2(proxyProxy, proxyTCP6, block6) + "EHLO"))
	f.Add([]byte(summed(block4)))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		src, dst, err := readProxyHeader(r)
		if err != nil {
			return
		}
		if src.IsValid() != dst.IsValid() || src.Addr().Is4() != dst.Addr().Is4() {
			t.Fatalf("%q gives %s and %s", in, src, dst)
		}
		if used := len(in) - r.Len(); used < 15 || used > 16+proxyMaxBlock {
			t.Fatalf("%q: read %d octets", in, used)
		}
	})
}

func TestConversation(t *testing.T) {
	for name, change := range map[string]func(*setup){
		"listener": func(u *setup) { u.l.LogConversation = true },
		"topic":    func(u *setup) { u.c.Log.SetTrace(map[string]bool{"smtp": true}) },
		"client":   func(u *setup) { u.c.Traced = func(c *Client) bool { return c.Addr == u.client } },
	} {
		t.Run(name, func(t *testing.T) {
			u := newSetup()
			change(u)
			c := u.dial(t)
			c.reply()
			c.must("HELO c", "QUIT")
			c.wait()
			for _, want := range []string{`smtp dialogue server="220 mx.example.org ESMTP smtpd"`, `smtp dialogue client="HELO c"`, `smtp dialogue server="221 2.0.0 Bye"`} {
				if !strings.Contains(u.log.String(), want) {
					t.Errorf("log lacks %s:\n%s", want, u.log)
				}
			}
		})
	}
}
