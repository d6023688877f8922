package parser

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"smtpd/internal/auth"
	"smtpd/internal/config"
	"smtpd/table"
)

// maxBadValues bounds what is said of the values of one table.
const maxBadValues = 20

// checkValues looks at the values of a table once for each service it is used
// for. What the configuration holds itself must be right; of a file, which may
// change while the daemon runs, the lines are reported as warnings.
func (c *checker) checkValues(t *tableInfo, u use, e *tableExpr) {
	check := valueChecks[u.service]
	if check == nil || slices.Contains(t.checked, u.service) {
		return
	}
	t.checked = append(t.checked, u.service)
	bad, entries := 0, t.entries
	switch {
	case t.cfg.Backend == "passwd" && u.service == "userinfo":
		entries = t.users
	case t.cfg.Backend == "passwd" && u.service != "password":
		return
	case t.cfg.Backend == "db":
		entries = c.mapEntries(t, e.pos)
	}
	for _, x := range entries {
		err := check(x.key, x.value)
		if err == nil {
			continue
		}
		if bad++; bad > maxBadValues {
			c.warnf(e.pos, "table %q: more lines of %s are wrong", t.cfg.Name, t.path)
			return
		}
		if x.line == 0 {
			c.warnf(e.pos, "table %q: %s: %v", t.cfg.Name, t.path, err)
			continue
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
		case !mustBeRight[u.service], c.in.dialect.kind != modern && u.wantsAddrs():
			c.warnf(k.pos, "%v", err)
		default:
			c.errorf(k.pos, "%v", err)
		}
	}
}

// valueChecks are what the entries of a table must look like, by service. A
// list has keys and empty values.
var valueChecks = map[string]func(key, value string) error{
	"alias":      entryCheck(table.Alias, "alias %[1]q"),
	"netaddr":    entryCheck(table.Netaddr, "invalid address or network: %[1]q"),
	"source":     entryCheck(table.Source, "invalid source address: %[1]q"),
	"mailaddr":   entryCheck(table.Mailaddr, "invalid mail address: %[1]q"),
	"senders":    entryCheck(table.Mailaddrmap, "senders of %[1]q"),
	"regex":      entryCheck(table.Regex, "invalid regular expression: %[1]q"),
	"userinfo":   entryCheck(table.Userinfo, "user %[1]q"),
	"login":      entryCheck(table.Credentials, "credentials of %[1]q"),
	"addrname":   checkAddrname,
	"relayhost":  func(k, _ string) error { return checkURL(k) },
	"domainhost": func(_, v string) error { return checkURL(v) },
	"tlspolicy":  checkTLSWish,
	"password":   checkPassword,
}

// mustBeRight are the services whose values in the configuration itself are
// errors when they are wrong.
var mustBeRight = map[string]bool{"netaddr": true, "source": true, "regex": true,
	"relayhost": true, "domainhost": true, "tlspolicy": true}

// entryCheck asks the package that will look the entry up. Values can be
// secrets, so only keys are shown.
func entryCheck(s table.Service, format string) func(key, value string) error {
	return func(key, value string) error {
		err := table.CheckEntry(s, key, value)
		if err == nil {
			return nil
		}
		why := strings.TrimPrefix(err.Error(), "invalid value: ")
		why = strings.TrimPrefix(why, "not a regular expression: error parsing regexp: ")
		return fmt.Errorf(format+": %[2]s", key, why)
	}
}

func checkAddrname(k, v string) error {
	if _, err := table.ParseAddr(k); err != nil {
		return fmt.Errorf("%q is no address", k)
	}
	if !validName(v) {
		return fmt.Errorf("%q is no host name", v)
	}
	return nil
}

// relaySchemes are those of relay URLs, for those who misspell them.
var relaySchemes = []string{"smtp", "smtp+tls", "smtp+notls", "smtps", "lmtp"}

func checkURL(s string) error {
	if _, err := config.ParseRelayURL(s); err != nil {
		hint := ""
		if scheme, _, ok := strings.Cut(s, "://"); ok && strings.HasPrefix(err.Error(), "unknown scheme") {
			hint = suggestion(strings.ToLower(scheme), relaySchemes)
		}
		return fmt.Errorf("invalid url: %s: %w%s", s, err, hint)
	}
	return nil
}

// checkTLSWish looks at what mta tls says of a domain.
func checkTLSWish(k, v string) error {
	if _, ok := config.ParseTLSWish(v); !ok {
		return fmt.Errorf("tls for %s: %q is none of %s", k, v, config.TLSWishes)
	}
	return nil
}

// checkPassword asks the package that will check logins whether it could.
func checkPassword(k, v string) error {
	_, hash, err := table.ParseCredentials(k, v)
	if err == nil {
		err = auth.Check(hash)
	}
	switch {
	case errors.Is(err, auth.ErrForm):
		return fmt.Errorf("password of %q is not in an encrypted form known here, use smtpctl encrypt", k)
	case err != nil:
		return fmt.Errorf("password of %q: %w", k, err)
	}
	return nil
}
