package table

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"smtpd/internal/config"
	"smtpd/internal/mail"
)

// errValue is wrapped by every complaint about a value.
var errValue = errors.New("invalid value")

// Account is what a Userinfo value says.
type Account struct {
	UID, GID uint32
	Home     string
}

// String is the value as a table holds it: uid:gid:home.
func (a Account) String() string { return fmt.Sprintf("%d:%d:%s", a.UID, a.GID, a.Home) }

// ParseAccount reads uid:gid:home; home is an absolute path.
func ParseAccount(value string) (Account, error) {
	uid, rest, _ := strings.Cut(value, ":")
	gid, home, _ := strings.Cut(rest, ":")
	u, err1 := strconv.ParseUint(strings.TrimSpace(uid), 10, 32)
	g, err2 := strconv.ParseUint(strings.TrimSpace(gid), 10, 32)
	home = strings.TrimSpace(home)
	if err1 != nil || err2 != nil || !strings.HasPrefix(home, "/") || len(home) > mail.MaxLocalPart*4 {
		return Account{}, fmt.Errorf("%w: not uid:gid:/directory", errValue)
	}
	return Account{UID: uint32(u), GID: uint32(g), Home: home}, nil
}

// ParseCredentials reads user:secret. Without a colon the key is the user and
// the value the secret, and so when the value begins as a verifier for SCRAM
// (RFC 5803), which has colons of its own; a colon at either end is a mistake.
func ParseCredentials(key, value string) (user, secret string, err error) {
	user, secret, ok := strings.Cut(value, ":")
	if !ok || strings.HasPrefix(value, "SCRAM-") {
		user, secret = key, value
	}
	if user == "" || secret == "" {
		return "", "", fmt.Errorf("%w: not user:secret", errValue)
	}
	return user, secret, nil
}

// ParseAddr reads an address as tables, logs and RFC 5321 section 4.1.3 write
// it: bare, in brackets, with "IPv6:" before it. An IPv4 address inside IPv6
// becomes IPv4.
func ParseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(bareAddr(s))
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("%w: not an address", errValue)
	}
	return a.Unmap(), nil
}

// bareAddr takes off brackets and the IPv6 tag.
func bareAddr(s string) string {
	if len(s) > 1 && s[0] == '[' && s[len(s)-1] == ']' {
		s = s[1 : len(s)-1]
	}
	if rest, ok := cutPrefixFold(s, "ipv6:"); ok {
		s = rest
	}
	return s
}

// parseNet reads an address or a network in CIDR form, brackets around the
// whole or the address.
func parseNet(s string) (netip.Prefix, error) {
	addr, bits, isNet := strings.Cut(bareAddr(s), "/")
	a, err := ParseAddr(addr)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%w: not an address or network", errValue)
	}
	if !isNet {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	n, err := strconv.Atoi(strings.TrimSuffix(bits, "]"))
	if err == nil {
		var p netip.Prefix
		if p, err = a.Prefix(n); err == nil {
			return p, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("%w: not an address or network", errValue)
}

// ParseMailaddrs reads the comma list of a Mailaddrmap value.
func ParseMailaddrs(value string) ([]string, error) {
	var list []string
	for w := range strings.SplitSeq(value, ",") {
		w = Fold(strings.TrimSpace(w))
		if w == "" {
			continue
		}
		if err := checkMailaddr(w); err != nil || (strings.Contains(w, "*") && w[0] == '*') {
			return nil, fmt.Errorf("%w: not a list of mail addresses", errValue)
		}
		list = append(list, w)
	}
	return list, nil
}

// checkMailaddr checks an entry of a list of mail addresses: user@domain, user,
// @domain, or "" and "@" alone; the domain may hold '*'.
func checkMailaddr(entry string) error {
	user, domain, _ := cutLast(entry, '@')
	if (user != "" && !addressUser(user)) || (domain != "" && !all(domain, "*-._:[]", mail.MaxDomain)) {
		return fmt.Errorf("%w: not a mail address", errValue)
	}
	return nil
}

// cutLast is strings.Cut at the last sep; without one all of s comes before it.
func cutLast(s string, sep byte) (before, after string, found bool) {
	if i := strings.LastIndexByte(s, sep); i >= 0 {
		return s[:i], s[i+1:], true
	}
	return s, "", false
}

// CheckEntry checks one entry of a table, key and value, against a service, for
// those who read a configuration: what it refuses would never match or make
// every lookup of the key fail. A list's entries have no value.
func CheckEntry(s Service, key, value string) error {
	switch s {
	case Netaddr:
		if key == "local" {
			return nil
		}
		_, err := parseNet(key)
		return err
	case Mailaddr:
		return checkMailaddr(key)
	case Regex:
		_, err := compileRegex(key)
		return err
	case Alias:
		_, err := ParseItems(value)
		return err
	case Source, Relayhost:
		if value == "" {
			value = key
		}
	}
	_, err := normalize(s, key, value)
	return err
}

// normalize checks a value against its service and gives it one form. Whatever
// the backend, no value holds an octet that could end a line.
func normalize(s Service, key, value string) (string, error) {
	if len(value) > MaxValue || hasControl(strings.ReplaceAll(value, "\t", " ")) {
		return "", errValue
	}
	var err error
	switch s {
	case Credentials:
		var user, secret string
		if user, secret, err = ParseCredentials(key, value); err == nil {
			value = user + ":" + secret
		}
	case Userinfo:
		var a Account
		if a, err = ParseAccount(value); err == nil {
			value = a.String()
		}
	case Source:
		var a netip.Addr
		if a, err = ParseAddr(value); err == nil {
			value = a.String()
		}
	case Addrname:
		if value == "" || strings.ContainsAny(value, " \t") || len(value) > mail.MaxDomain {
			err = fmt.Errorf("%w: not a host name", errValue)
		}
	case Mailaddrmap:
		_, err = ParseMailaddrs(value)
	case Relayhost:
		if _, err = config.ParseRelayURL(value); err != nil {
			err = fmt.Errorf("%w: %w", errValue, err)
		}
	}
	return value, err
}
