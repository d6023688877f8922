package parser

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp/syntax"
	"strconv"
	"strings"

	"smtpd/internal/config"
)

// maxBadValues bounds what is said of the values of one table.
const maxBadValues = 20

// checkValues looks at the values of a table once for each service it is used
// for. What the configuration holds itself must be right; of a file, which may
// change while the daemon runs, the lines are reported as warnings.
func (c *checker) checkValues(t *tableInfo, u use, e *tableExpr) {
	check := valueChecks[u.service]
	if check == nil || t.checked[u.service] {
		return
	}
	t.checked[u.service] = true
	bad := 0
	for _, x := range t.entries {
		err := check(x.key, x.value)
		if err == nil {
			continue
		}
		if bad++; bad > maxBadValues {
			c.warnf(e.pos, "table %q: more lines of %s are wrong", t.cfg.Name, t.path)
			return
		}
		c.warnf(e.pos, "table %q: %s:%d: %v", t.cfg.Name, t.path, x.line, err)
	}
	if t.inline == nil {
		return
	}
	for i, k := range t.inline.keys {
		value := ""
		if t.inline.values != nil {
			value = t.inline.values[i].text
		}
		err := check(k.text, value)
		switch {
		case err == nil:
		case c.in.dialect.kind != modern && u.wantsAddrs():
			c.warnf(k.pos, "%v", err)
		default:
			c.errorf(k.pos, "%v", err)
		}
	}
}

// valueChecks are what the entries of a table must look like, by service. A
// list has keys and empty values.
var valueChecks = map[string]func(key, value string) error{
	"netaddr":    checkNetaddr,
	"source":     func(k, _ string) error { return checkAddr(k) },
	"addrname":   checkAddrname,
	"regex":      func(k, _ string) error { return checkRegex(k) },
	"relayhost":  checkRelayhost,
	"domainhost": func(_, v string) error { return checkURL(v) },
	"userinfo":   checkUserinfo,
	"password":   checkPassword,
	"login":      checkLogin,
}

func checkNetaddr(k, _ string) error {
	if k == "local" {
		return nil
	}
	addr, bits, hasBits := strings.Cut(k, "/")
	if in, ok := strings.CutPrefix(k, "["); ok {
		addr, bits, hasBits = strings.Cut(strings.TrimSuffix(in, "]"), "/")
		if rest, found := strings.CutSuffix(addr, "]"); found {
			addr = rest
		} else if !strings.HasSuffix(in, "]") {
			return fmt.Errorf("invalid address or network: %q, no ] after [", k)
		}
	}
	a, err := netip.ParseAddr(strings.TrimPrefix(addr, "IPv6:"))
	if err != nil {
		return fmt.Errorf("invalid address or network: %q", k)
	}
	if n, err := strconv.ParseUint(bits, 10, 8); hasBits && (err != nil || int(n) > a.BitLen()) {
		return fmt.Errorf("invalid network: %q, the prefix is 0 to %d", k, a.BitLen())
	}
	return nil
}

func checkAddr(k string) error {
	s := k
	if in, ok := strings.CutPrefix(k, "["); ok {
		s = strings.TrimPrefix(strings.TrimSuffix(in, "]"), "IPv6:")
	}
	if _, err := netip.ParseAddr(s); err != nil {
		return fmt.Errorf("invalid source address: %q", k)
	}
	return nil
}

func checkAddrname(k, v string) error {
	if err := checkAddr(k); err != nil {
		return fmt.Errorf("%q is no address", k)
	}
	if !validName(v) {
		return fmt.Errorf("%q is no host name", v)
	}
	return nil
}

// checkRegex compiles a POSIX extended expression; (?i) before it ignores case.
func checkRegex(s string) error {
	expr, fold := strings.CutPrefix(s, "(?i)")
	flags := syntax.POSIX
	if fold {
		flags |= syntax.FoldCase
	}
	if _, err := syntax.Parse(expr, flags); err != nil {
		if se, ok := errors.AsType[*syntax.Error](err); ok {
			return fmt.Errorf("invalid regular expression %q: %s %q", s, se.Code, se.Expr)
		}
		return fmt.Errorf("invalid regular expression %q", s)
	}
	return nil
}

func checkRelayhost(k, _ string) error { return checkURL(k) }

func checkURL(s string) error {
	if _, err := config.ParseRelayURL(s); err != nil {
		return fmt.Errorf("invalid url: %s: %w", s, err)
	}
	return nil
}

func checkUserinfo(k, v string) error {
	f := strings.SplitN(v, ":", 3)
	if len(f) == 3 && strings.HasPrefix(f[2], "/") {
		_, uerr := strconv.ParseUint(f[0], 10, 32)
		_, gerr := strconv.ParseUint(f[1], 10, 32)
		if uerr == nil && gerr == nil {
			return nil
		}
	}
	return fmt.Errorf("user %q: expected uid:gid:/directory", k)
}

// checkLogin looks at credentials for a relay, and never shows them.
func checkLogin(k, v string) error {
	if i := strings.IndexByte(v, ':'); v == "" || i == 0 || i > 0 && strings.HasSuffix(v, ":") && i == len(v)-1 {
		return fmt.Errorf("credentials of %q: expected user:password", k)
	}
	return nil
}

// checkPassword looks at what is to be an encrypted password.
func checkPassword(k, v string) error {
	for _, p := range []string{"$1$", "$2a$", "$2b$", "$2y$", "$5$", "$6$", "$y$", "$argon2id$", "$SCRAM-SHA-256$"} {
		if strings.HasPrefix(v, p) {
			return nil
		}
	}
	return fmt.Errorf("password of %q is not in an encrypted form known here, use smtpctl encrypt", k)
}
