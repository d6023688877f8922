package parser

import (
	"errors"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"smtpd/internal/config"
)

// maxWarn is how many delays of bounce warn-interval are used.
const maxWarn = 4

// setting carries out a directive that sets one thing. A later one replaces an
// earlier one.
func (c *checker) setting(st *stmt, s *settingStmt) {
	cfg := c.cfg
	var arg *token
	if len(s.args) > 0 {
		arg = s.args[0]
	}
	switch s.key {
	case "admd":
		if !isPrintable(arg.text) {
			c.errorf(arg.pos, "not a valid admd: %q", arg.text)
		}
		cfg.ADMD = arg.text
	case "bounce warn-interval":
		c.warnInterval(s.args)
	case "bounce full-message":
		cfg.Bounce.Full = true
	case "bounce from":
		cfg.Bounce.From = c.hostname(arg)
	case "mda wrapper":
		c.wrapper(arg, s.args[1])
	case "mda limit", "scheduler limit", "smtp limit":
		c.limits(s, nil)
	case "mta max-deferred":
		cfg.MTA.MaxDeferred = c.count(arg)
	case "mta limit":
		c.mtaLimits(s)
	case "mta tls":
		cfg.MTA.TLS = c.table(s.table, use{what: "mta tls", hash: true, service: "tlspolicy"})
	case "queue compression":
		cfg.Queue.Compression = true
	case "queue encryption":
		c.queueKey(st, arg)
	case "queue retry mda":
		cfg.Queue.RetryMDA = c.retry(s.args, s.tail != "")
	case "queue retry mta":
		cfg.Queue.RetryMTA = c.retry(s.args, s.tail != "")
	case "queue ttl":
		if d, ok := c.delay(arg, "invalid ttl delay: %s"); ok {
			cfg.Queue.TTL = d
		}
	case "smtp ciphers":
		cfg.SMTP.Ciphers = c.ciphers(arg)
	case "smtp max-message-size":
		c.messageSize(arg)
	case "smtp sub-addr-delim":
		c.delimiter(arg)
	case "resolver":
		c.resolvers(s.args)
	case "srs key":
		cfg.SRS.Key = config.Secret(arg.text)
		c.secretInFile(arg.pos)
	case "srs key backup":
		cfg.SRS.Backup = config.Secret(arg.text)
	case "srs ttl":
		c.srsTTL(arg)
	}
}

func isPrintable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return s != ""
}

func (c *checker) warnInterval(args []*token) {
	var list []time.Duration
	for i, a := range args {
		d, ok := c.delay(a, "invalid bounce delay: %s")
		if i == maxWarn {
			c.warnf(a.pos, "only %d warn-intervals are used, %q and later ones are ignored", maxWarn, a.text)
		}
		if ok && i < maxWarn {
			list = append(list, d)
		}
	}
	c.cfg.Warn = list
}

// maxRetries bounds the delays of a list. Ours: the last one repeats.
const maxRetries = 64

// retry is when failed attempts are repeated: after delays, the last of which
// repeats, or at times that grow as squares.
func (c *checker) retry(args []*token, quadratic bool) (r config.Retry) {
	for i, a := range args {
		d, ok := c.delay(a, "invalid retry delay: %s")
		switch {
		case !ok:
		case i == maxRetries:
			c.errorf(a.pos, "too many retry delays, at most %d", maxRetries)
		case quadratic:
			r.Base = d
		case i < maxRetries:
			r.Delays = append(r.Delays, d)
		}
	}
	return r
}

// delay reads a number with a unit.
func (c *checker) delay(t *token, format string) (time.Duration, bool) {
	d, ok := parseDelay(t.text)
	if !ok {
		c.errorf(t.pos, format+"%s", t.text, ", expected a number and one of s, m, h, d, such as 4d")
	}
	return d, ok
}

// parseDelay reads "4d": at least 1 s, at most 2^31-1 s.
func parseDelay(s string) (time.Duration, bool) {
	if len(s) < 2 {
		return 0, false
	}
	unit := map[byte]int64{'s': 1, 'm': 60, 'h': 3600, 'd': 86400}[s[len(s)-1]]
	digits := s[:len(s)-1]
	n, err := strconv.ParseUint(digits, 10, 31)
	if unit == 0 || err != nil || n == 0 || int64(n) > math.MaxInt32/unit {
		return 0, false
	}
	return time.Duration(int64(n)*unit) * time.Second, true
}

// parseSize reads a size as scan_scaled does: a number, perhaps with a fraction,
// and a unit of a power of 1024.
func parseSize(s string) (int64, bool) {
	if s == "" {
		return 0, false
	}
	shift := uint(0)
	if i := strings.IndexByte("BKMGTPE", upper(s[len(s)-1])); i >= 0 {
		shift, s = uint(10*i), s[:len(s)-1]
	}
	whole, frac, _ := strings.Cut(s, ".")
	if whole+frac == "" || len(frac) > 18 || !allDigits(whole) || !allDigits(frac) {
		return 0, false
	}
	n, err := strconv.ParseFloat("0"+whole+"."+frac+"0", 64)
	if err != nil {
		return 0, false
	}
	if frac == "" {
		i, err := strconv.ParseInt("0"+whole, 10, 64)
		if err != nil || i > math.MaxInt64>>shift {
			return 0, false
		}
		return i << shift, true
	}
	if n *= float64(int64(1) << shift); n >= math.MaxInt64 {
		return 0, false
	}
	return int64(n), true
}

func upper(c byte) byte {
	if c >= 'a' && c <= 'z' {
		return c - 'a' + 'A'
	}
	return c
}

func allDigits(s string) bool {
	for i := range len(s) {
		if !isDigit(int(s[i])) {
			return false
		}
	}
	return true
}

func (c *checker) wrapper(name, command *token) {
	if _, ok := c.cfg.Wrappers[name.text]; ok {
		c.errorf(name.pos, "mda wrapper already declared with that name: %s", name.text)
		return
	}
	c.format(command, true)
	c.cfg.Wrappers[name.text] = command.text
}

// count reads a number that may not be negative.
func (c *checker) count(t *token) int {
	n := t.number()
	switch {
	case n < 0:
		c.errorf(t.pos, "a limit cannot be negative: %s", t.text)
	case n > math.MaxInt32:
		c.errorf(t.pos, "%q invalid number: too large", t.text)
	}
	return int(min(max(n, 0), math.MaxInt32))
}

func (c *checker) messageSize(t *token) {
	n, ok := parseSize(t.text)
	if t.kind == tokNumber {
		n, ok = t.number(), t.number() >= 0
	}
	if !ok {
		c.errorf(t.pos, "invalid size: %s, expected a number of bytes or one such as 35M", t.text)
		return
	}
	if n == 0 {
		c.errorf(t.pos, "max-message-size cannot be 0: no mail would be taken")
		return
	}
	c.cfg.SMTP.MaxMessageSize = n
}

func (c *checker) delimiter(t *token) {
	switch {
	case len(t.text) != 1:
		c.errorf(t.pos, "subaddressing-delimiter must be one character, found %q", t.text)
	case t.text[0] <= ' ' || t.text[0] > '~' || t.text == "@":
		c.errorf(t.pos, "subaddressing-delimiter uses invalid character %q", t.text)
	default:
		c.cfg.SMTP.SubAddrDelim = t.text
	}
}

func (c *checker) srsTTL(t *token) {
	d, ok := c.delay(t, "ttl delay %q is invalid")
	const day = 24 * time.Hour
	switch {
	case !ok:
	case d < day:
		c.errorf(t.pos, "ttl delay %q is too short, it must be a day or more", t.text)
	case d%day != 0:
		c.errorf(t.pos, "ttl delay %q is not a number of whole days", t.text)
	default:
		c.cfg.SRS.TTL = d
	}
}

// Bounds of the resolvers: resolv.conf knows three, and more are no help.
const (
	maxResolvers = 8
	dnsPort      = 53
)

// resolvers are the DNS servers to ask, with their ports.
func (c *checker) resolvers(args []*token) {
	c.cfg.Resolvers = nil
	for i, a := range args {
		at, err := parseServer(a.text)
		switch {
		case err != nil:
			c.errorf(a.pos, "invalid resolver: %s, expected an address, or address:port, such as \"[::1]:53\"", a.text)
		case i == maxResolvers:
			c.errorf(a.pos, "too many resolvers, at most %d", maxResolvers)
		default:
			c.cfg.Resolvers = append(c.cfg.Resolvers, at.String())
		}
	}
}

// parseServer reads address, [address], address:port or [address]:port.
func parseServer(s string) (netip.AddrPort, error) {
	bare := s
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		bare = s[1 : len(s)-1]
	}
	if a, err := netip.ParseAddr(bare); err == nil {
		return netip.AddrPortFrom(a, dnsPort), nil
	}
	at, err := netip.ParseAddrPort(s)
	if err == nil && at.Port() == 0 {
		err = errors.New("port 0")
	}
	return at, err
}

// queueKey takes the key, or notes that it is to be asked for.
func (c *checker) queueKey(st *stmt, key *token) {
	q := &c.cfg.Queue
	q.EncryptionKey, q.AskKey = "", ""
	switch {
	case key == nil:
		q.AskKey = "prompt"
	case key.text == "stdin" || key.text == "-":
		q.AskKey = "stdin"
	case len(key.text) != 32:
		c.errorf(key.pos, "invalid key for queue encryption: it has %d characters, not 32", len(key.text))
	default:
		q.EncryptionKey = config.Secret(key.text)
		c.secretInFile(st.pos)
	}
}

// secretInFile warns of a file that holds a secret and that others can read.
func (c *checker) secretInFile(at pos) {
	if at.file < 0 || at.file == 0 && c.o.Text != nil {
		return
	}
	name := c.diags.sources[at.file].name
	if fi, err := c.o.System.Stat(name); err == nil && fi.Mode.Perm()&0o004 != 0 {
		c.warnf(at, "%s holds a secret and is readable by others, chmod 600 it", name)
	}
}

// limits sets what the words of a limit name: numbers, and times in seconds.
func (c *checker) limits(s *settingStmt, l *config.MTALimits) {
	ints, delays := c.intLimits(s.key), map[string]*time.Duration(nil)
	what := s.key
	switch s.key {
	case "mta limit":
		ints, delays = mtaIntLimits(l), mtaDelays(l)
	case "smtp limit":
		what, delays = "session limit", c.smtpDelays()
	}
	for i := 0; i < len(s.limits); i++ {
		word := s.limits[i]
		if word.kind == tokWord && (word.text == "inet4" || word.text == "inet6") && l != nil {
			l.Family = word.text
			continue
		}
		i++
		if word.kind == tokWord && word.text == "prefer" && l != nil {
			l.Prefer = s.limits[i].text
			continue
		}
		switch value := s.limits[i]; {
		case s.key == "smtp limit" && needed[word.text] && value.kind == tokNumber && value.number() == 0:
			c.errorf(value.pos, "%s cannot be 0: no mail would be taken", word.text)
		case ints[word.text] != nil:
			*ints[word.text] = c.count(value)
			if l != nil && word.text == "max-conn-per-source" {
				l.SourceLimitGiven = true
			}
		case delays[word.text] != nil:
			*delays[word.text] = time.Duration(c.count(value)) * time.Second
		default:
			known := append(keys(ints), keys(delays)...)
			c.errorf(word.pos, "invalid %s keyword: %s%s", what, word.text, suggestion(word.text, known))
		}
	}
}

// needed are the smtp limits that are no bound but an end when they are 0.
var needed = map[string]bool{"max-rcpt": true, "max-mails": true, "max-commands": true, "max-line": true, "max-header": true,
	"max-header-fields": true, "command-timeout": true, "handshake-timeout": true, "data-timeout": true}

// intLimits are the words of a limit with what they set.
func (c *checker) intLimits(key string) map[string]*int {
	switch key {
	case "smtp limit":
		s := &c.cfg.SMTP
		return map[string]*int{
			"max-rcpt": &s.MaxRcpt, "max-mails": &s.MaxMails,
			"max-sessions": &s.MaxSessions, "max-sessions-per-addr": &s.MaxSessionsPerAddr,
			"max-sessions-per-net": &s.MaxSessionsPerNet, "max-conn-rate": &s.MaxConnRate,
			"max-commands": &s.MaxCommands, "max-errors": &s.MaxErrors,
			"max-auth-failures": &s.MaxAuthFailures, "max-line": &s.MaxLine,
			"max-header": &s.MaxHeader, "max-header-fields": &s.MaxHeaderFields, "min-rate": &s.MinRate,
		}
	case "mda limit":
		m := &c.cfg.MDA
		return map[string]*int{
			"max-session": &m.MaxSession, "max-session-per-user": &m.MaxSessionPerUser,
			"task-hiwat": &m.TaskHiwat, "task-lowat": &m.TaskLowat, "task-release": &m.TaskRelease,
		}
	}
	if key != "scheduler limit" {
		return nil
	}
	s := &c.cfg.Scheduler
	return map[string]*int{
		"max-inflight": &s.MaxInflight, "max-evp-batch-size": &s.MaxEvpBatchSize,
		"max-msg-batch-size": &s.MaxMsgBatchSize, "max-schedule": &s.MaxSchedule,
	}
}

// mtaLimits sets limits for all domains, or for one: that begins with those
// that hold at this line.
func (c *checker) mtaLimits(s *settingStmt) {
	l := &c.cfg.MTA.Default
	if s.domain != nil {
		c.limitDomain(s.domain)
		name := config.LimitName(s.domain.text)
		if l = c.cfg.MTA.Domain[name]; l == nil {
			l = new(config.MTALimits)
			*l = c.cfg.MTA.Default
			c.cfg.MTA.Domain[name] = l
		}
	}
	c.limits(s, l)
}

// limitDomain warns of limits for what is no destination.
func (c *checker) limitDomain(t *token) {
	name := config.LimitName(t.text)
	if _, err := netip.ParseAddr(name); err == nil {
		return
	}
	const with = "no destination is called %q, so these limits hold for none; write %s"
	if _, err := netip.ParsePrefix(name); err == nil {
		c.warnf(t.pos, with, t.text, "one address for each line")
		return
	}
	if below, ok := strings.CutPrefix(name, "*."); ok {
		c.warnf(t.pos, with, t.text, below+", which holds for relay hosts and mail exchangers below it too")
		return
	}
	name = name[strings.LastIndexByte(name, '@')+1:]
	u, err := config.ParseRelayURL(name)
	switch {
	case err != nil:
		c.warnf(t.pos, with, t.text, "the domain or host alone")
	case config.LimitName(u.Host) != config.LimitName(t.text):
		c.warnf(t.pos, with, t.text, strings.ToLower(u.Host))
	}
}

func (c *checker) smtpDelays() map[string]*time.Duration {
	s := &c.cfg.SMTP
	return map[string]*time.Duration{
		"command-timeout": &s.CommandTimeout, "handshake-timeout": &s.HandshakeTimeout,
		"data-timeout": &s.DataTimeout, "data-time": &s.DataTime, "auth-delay": &s.AuthDelay,
	}
}

func mtaIntLimits(l *config.MTALimits) map[string]*int {
	return map[string]*int{
		"max-conn-per-host": &l.MaxConnPerHost, "max-conn-per-route": &l.MaxConnPerRoute,
		"max-conn-per-source": &l.MaxConnPerSource, "max-conn-per-connector": &l.MaxConnPerConnector,
		"max-conn-per-relay": &l.MaxConnPerRelay, "max-conn-per-domain": &l.MaxConnPerDomain,
		"session-mail-max": &l.SessionMailMax, "max-failures-per-session": &l.MaxFailuresPerSession,
		"task-hiwat": &l.TaskHiwat, "task-lowat": &l.TaskLowat, "task-release": &l.TaskRelease,
		"max-conn-per-group": &l.MaxConnPerGroup, "max-mails-per-domain": &l.MaxMailsPerDomain,
		"max-mails-per-group": &l.MaxMailsPerGroup,
	}
}

func mtaDelays(l *config.MTALimits) map[string]*time.Duration {
	return map[string]*time.Duration{
		"conn-delay-host": &l.ConnDelayHost, "conn-delay-route": &l.ConnDelayRoute,
		"conn-delay-source": &l.ConnDelaySource, "conn-delay-connector": &l.ConnDelayConnector,
		"conn-delay-relay": &l.ConnDelayRelay, "conn-delay-domain": &l.ConnDelayDomain,
		"reconn-delay-route": &l.ReconnDelayRoute, "session-transaction-delay": &l.SessionTransactionDelay,
		"session-keepalive": &l.SessionKeepalive,
		"mail-delay-domain": &l.MailDelayDomain, "mail-delay-group": &l.MailDelayGroup,
	}
}
