package config

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Scheme says how a relay is spoken to, and is what a relay URL begins with.
type Scheme string

// The schemes of a relay URL.
const (
	SchemeSMTP       Scheme = "smtp"       // STARTTLS when offered; the default
	SchemeSMTPTLS    Scheme = "smtp+tls"   // STARTTLS or nothing
	SchemeSMTPNoTLS  Scheme = "smtp+notls" // never TLS
	SchemeSMTPS      Scheme = "smtps"      // TLS from the first octet
	SchemeLMTP       Scheme = "lmtp"       // RFC 2033; the port is always given
	maxRelayURL             = 1024         // ours: a label, a name and some room
	maxRelayHostName        = 255          // RFC 5321 section 4.5.3.1.2
)

// RelayURL is a relay as an action or a table names it:
// [scheme://[label@]]host[:port]. The zero value is no relay.
type RelayURL struct {
	Scheme Scheme
	Label  string // key into the table of credentials; empty: none are used
	Host   string // a name, or an address without brackets
	Port   uint16 // 0: DefaultPort
}

var errRelayHost = errors.New("the host is not a name or an address")

// ParseRelayURL reads a relay URL; case does not matter in the scheme. The
// spellings of older releases are taken for what they mean today (see
// IsOldRelayURL), always with TLS where there are credentials. An error says
// what is wrong, without repeating s.
func ParseRelayURL(s string) (RelayURL, error) {
	if len(s) > maxRelayURL {
		return RelayURL{}, errors.New("longer than 1024 octets")
	}
	u := RelayURL{Scheme: SchemeSMTP}
	rest := s
	if scheme, after, ok := strings.Cut(s, "://"); ok {
		rest = after
		at := strings.LastIndexByte(rest, '@')
		if at == 0 {
			return RelayURL{}, errors.New("nothing before the @")
		}
		if at > 0 {
			u.Label, rest = rest[:at], rest[at+1:]
		}
		port := rest[strings.LastIndexByte(rest, ':')+1:]
		if u.Scheme, ok = relayScheme(strings.ToLower(scheme), port); !ok {
			return RelayURL{}, fmt.Errorf("unknown scheme %q", scheme)
		}
	}
	if err := u.setHostPort(rest); err != nil {
		return RelayURL{}, err
	}
	if strings.ContainsFunc(u.Label, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return RelayURL{}, errors.New("the label holds a blank or a control character")
	}
	if u.Label != "" && u.Scheme != SchemeSMTPTLS && u.Scheme != SchemeSMTPS {
		return RelayURL{}, errors.New("a label needs smtp+tls or smtps")
	}
	if u.Scheme == SchemeLMTP && u.Port == 0 {
		return RelayURL{}, errors.New("lmtp needs a port")
	}
	return u, nil
}

// IsOldRelayURL reports whether s begins with a scheme of an older release that
// ParseRelayURL reads as one of today's.
func IsOldRelayURL(s string) bool {
	scheme, _, ok := strings.Cut(s, "://")
	if !ok {
		return false
	}
	switch Scheme(strings.ToLower(scheme)) {
	case SchemeSMTP, SchemeSMTPTLS, SchemeSMTPNoTLS, SchemeSMTPS, SchemeLMTP:
		return false
	}
	return true
}

// relayScheme is what a scheme means. "secure" tried SMTPS and then STARTTLS;
// the port says which of the two it can have been.
func relayScheme(s, port string) (Scheme, bool) {
	switch s {
	case "smtp", "smtp+tls", "smtp+notls", "smtps", "lmtp":
		return Scheme(s), true
	case "tls", "tls+auth", "smtp+auth", "smtp+tls+auth":
		return SchemeSMTPTLS, true
	case "smtps+auth":
		return SchemeSMTPS, true
	case "secure", "secure+auth":
		if n, err := strconv.Atoi(port); err == nil && n != 465 {
			return SchemeSMTPTLS, true
		}
		return SchemeSMTPS, true
	}
	return "", false
}

func (u *RelayURL) setHostPort(s string) error {
	host, port, hasPort := s, "", false
	if strings.HasPrefix(s, "[") {
		end := strings.IndexByte(s, ']')
		if end < 0 {
			return errors.New("no ] after the address")
		}
		host = strings.TrimPrefix(s[1:end], "IPv6:")
		if _, err := netip.ParseAddr(host); err != nil {
			return errRelayHost
		}
		if rest := s[end+1:]; rest != "" {
			if rest[0] != ':' {
				return errors.New("no port after the address")
			}
			port, hasPort = rest[1:], true
		}
	} else {
		host, port, hasPort = strings.Cut(s, ":")
		if !validRelayName(host) {
			return errRelayHost
		}
	}
	u.Host = host
	if !hasPort {
		return nil
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return errors.New("the port is not a number from 1 to 65535")
	}
	u.Port = uint16(n)
	return nil
}

func validRelayName(s string) bool {
	if s == "" || len(s) > maxRelayHostName || s[0] == '.' || s[0] == '-' ||
		strings.Contains(s, "..") {
		return false
	}
	for _, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case c == '-', c == '.', c == '_':
		default:
			return false
		}
	}
	return true
}

// DefaultPort is the port to connect to: the one given, else 465 for smtps and
// 25 for the rest.
func (u RelayURL) DefaultPort() uint16 {
	switch {
	case u.Port != 0:
		return u.Port
	case u.Scheme == SchemeSMTPS:
		return 465
	}
	return 25
}

// String is the URL in its present form, scheme always written. Parsing it
// again gives the same value.
func (u RelayURL) String() string {
	s := string(u.Scheme) + "://"
	if u.Label != "" {
		s += u.Label + "@"
	}
	if strings.Contains(u.Host, ":") {
		s += "[" + u.Host + "]"
	} else {
		s += u.Host
	}
	if u.Port != 0 {
		s += ":" + strconv.Itoa(int(u.Port))
	}
	return s
}
