package mta

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/log"
	"smtpd/internal/mail"
)

const (
	// maxRejects ends a session after so many transactions without success.
	maxRejects = 10
)

// session is one connection, run by one goroutine.
type session struct {
	e         *Engine
	relay     *relay
	connector *connector
	route     *route
	to        candidate
	next      chan *task // room for one; see Engine.start
	id        mail.SessionID
	limits    *config.MTALimits // as they were at the start, as is secret
	secret    secret
	group     *group

	giveUp func() // ends it at once, before it is ready

	// Under the engine's lock.
	started         time.Time
	connected       bool
	isReady, ended  bool
	givenUp         bool
	slow, uncounted bool // see slowConnect and slowSource

	conn    net.Conn
	in      replyReader
	w       writer
	unhook  func() bool          // of the closing at the end of the engine
	tls     *tls.ConnectionState // nil: in clear
	ext     extensions
	helo    string
	source  string // local address, as logged
	peer    string // relay= of the log
	tracing bool
	told    Told         // of the connection; nil: nobody is
	telling *transaction // that was told to have begun

	starting *task          // in begin
	current  *transaction   // under way
	begun    []*transaction // their commands follow the text of the one before
	gone     bool           // the host said that it ends the session
	parts    []string       // of a command, kept for the next
	worked   bool           // a transaction went to its end
	mails    int            // accepted
	rejected int            // transactions in a row without success
	refused  int            // recipients in a row
}

// extensions are what the host offers after EHLO.
type extensions struct {
	pipelining, eightBit, dsn, utf8, starttls, requireTLS bool
	chunking                                              bool
	hasSize                                               bool
	size                                                  int64 // 0: no limit
	auth                                                  []string
	rcptMax                                               int // LIMITS (RFC 9422); 0: not said
}

func newSession(e *Engine, r *relay, c *connector, rt *route, to candidate) *session {
	if r.group != nil {
		r.group.refs++
	}
	return &session{e: e, relay: r, connector: c, route: rt, to: to, group: r.group, next: make(chan *task, 1),
		id: mail.SessionID(rand.Uint64()), limits: r.limits, secret: r.secret, source: "-", tracing: e.opt.Observer.Tracing()}
}

// spent reports whether the session has done enough; max 0: there is no bound.
func (s *session) spent(max int) bool { return max > 0 && s.mails >= max }

// run is what a session does, until it is over or life ends.
func (s *session) run(life context.Context) {
	defer s.recovered()
	defer s.giveUp()
	err := s.connectAndGreet(life)
	if err == nil && !s.e.becameReady(s) {
		err = errTimeout
	}
	if err != nil {
		if life.Err() != nil && s.e.hard.Err() == nil { // given up
			err = &setupError{errTimeout, blameRoute}
		}
		s.logError(err)
		s.close()
		s.e.ended(s, err)
		return
	}
	err = s.serve()
	if err == nil {
		s.quit("quit")
	} else {
		s.logError(err)
	}
	s.close()
	s.e.ended(s, nil)
}

// recovered ends a session that panicked, and only that: what was under way is
// tried again later.
func (s *session) recovered() {
	p := recover()
	if p == nil {
		return
	}
	s.e.opt.Observer.Note(fmt.Sprintf("warn: smtp-out: session %s: panic: %v: %s", s.id, p, debug.Stack()))
	if x := s.current; x != nil {
		s.closeText(x)
		s.abandon(x, errPanic)
	}
	s.dropBegun(errPanic)
	if t := s.starting; t != nil {
		s.abandon(&transaction{task: t, rcpts: t.envs}, errPanic)
	}
	s.close()
	s.e.ended(s, &setupError{errPanic, blameRoute})
}

// errPanic is what is left of a session that panicked.
const errPanic said = "Internal error"

// serve carries out tasks until there are none for long enough, or the
// connection fails.
func (s *session) serve() error {
	t := s.await() // becameReady has made it idle
	if t == nil {
		return nil
	}
	for {
		x := s.popBegun()
		if x == nil {
			if t == nil {
				t = s.nextTask()
			}
			if t == nil {
				return nil
			}
			x = s.begin(t)
			if t = nil; x == nil {
				continue
			}
		}
		s.current = x
		err := s.transaction(x)
		s.current = nil
		if err == nil && s.tooManyRefused() && len(s.begun) == 0 {
			err = said(failTooMany.text)
		}
		switch {
		case err != nil:
			s.dropBegun(err)
			return err
		case s.rejected >= maxRejects && len(s.begun) == 0:
			s.event("mta host-rejects-all-mails")
			return nil
		}
		if delay := s.limits.SessionTransactionDelay; delay > 0 {
			s.pause(delay)
		}
	}
}

// tooManyRefused reports max-failures-per-session recipients refused in a row.
func (s *session) tooManyRefused() bool {
	max := s.limits.MaxFailuresPerSession
	return max > 0 && s.refused >= max
}

// pause waits between transactions.
func (s *session) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.e.soft.Done():
	}
}

// nextTask waits for a task, as long as an idle connection is kept; nil: the
// session shall end.
func (s *session) nextTask() *task {
	t, on := s.e.take(s, true)
	if t != nil || !on {
		return t
	}
	return s.await()
}

// await waits while the session is idle.
func (s *session) await() *task {
	linger := s.e.opt.Timeouts.Linger
	keep := s.limits.SessionKeepalive
	timer := time.NewTimer(min(linger, keep))
	defer timer.Stop()
	last := keep > linger
	for {
		select {
		case t := <-s.next:
			return t
		case <-timer.C:
		}
		switch s.e.leave(s, last) {
		case idleLeaves:
			return nil
		case idleHanded:
			return <-s.next
		case idleStays:
			last = false
			s.w.shrink()
			timer.Reset(keep - linger)
		}
	}
}

// connectAndGreet makes the session ready for transactions. An opportunistic
// handshake that fails is followed by one more connection, in clear.
func (s *session) connectAndGreet(life context.Context) error {
	policy := s.relay.policy
	err := s.greet(life, policy.need)
	if se, ok := errors.AsType[*setupError](err); ok && se.blame == blameTLS && policy.need == tlsIfCan {
		s.e.opt.Observer.Note("smtp-out: Error on session " + s.id.String() +
			": opportunistic TLS failed, downgrading to plain")
		s.close()
		err = s.greet(life, tlsNever)
	}
	return err
}

// greet connects, and speaks up to the point where MAIL may come.
func (s *session) greet(life context.Context, need tlsNeed) error {
	if err := s.dial(life); err != nil {
		return err
	}
	if need == tlsImplicit {
		if err := s.startTLS(); err != nil {
			return err
		}
	}
	if err := s.banner(); err != nil {
		return err
	}
	if err := s.hello(need == tlsNever || need == tlsIfCan); err != nil {
		return err
	}
	if need == tlsRequired || (need == tlsIfCan && s.ext.starttls) {
		if err := s.upgrade(need); err != nil {
			return err
		}
	}
	if s.relay.requireTLS && !s.ext.requireTLS {
		return &setupError{coded{failRequireTLS.text, failRequireTLS.enh}, blameFit} // RFC 8689 section 4.2.1
	}
	if s.relay.authLabel != "" {
		return s.authenticate()
	}
	return nil
}

// dial connects. A connection that is made is closed when life ends.
func (s *session) dial(life context.Context) error {
	t := s.e.opt.Timeouts
	rt := s.route
	s.e.askName(rt.host)
	scheme := s.relay.policy.scheme(s.relay.lmtp)
	dst := netip.AddrPortFrom(rt.host.addr, rt.key.port)
	s.event("mta connecting", slog.String("address", string(scheme)+"://"+addrText(dst.Addr())+":"+
		strconv.Itoa(int(dst.Port()))), slog.String("host", s.e.nameOf(rt.host)))
	s.peer = s.e.hostText(rt.host)
	ctx, cancel := context.WithTimeout(s.e.soft, t.Connect)
	defer cancel()
	defer context.AfterFunc(life, cancel)()
	conn, err := s.e.opt.Dialer.Dial(ctx, rt.key.src, dst)
	if err != nil {
		if s.e.soft.Err() != nil {
			return &setupError{errClosed, blameUs}
		}
		if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOBUFS) {
			s.e.opt.Observer.Note("warn: smtp-out: " + readError(err).Error())
			return &setupError{readError(err), blameUs}
		}
		return &setupError{readError(err), blameRoute}
	}
	s.use(conn)
	s.unhook = context.AfterFunc(life, func() { conn.Close() })
	s.e.answered(s)
	if local, ok := conn.LocalAddr().(*net.TCPAddr); ok {
		a := local.AddrPort().Addr().Unmap()
		s.source = addrText(a)
		if s.e.isBlocked(a, s.relay.domain) {
			conn.Close()
			return &setupError{coded{failBlocked.text, failBlocked.enh}, blameRelay}
		}
	}
	s.event("mta connected")
	s.tellConnect(conn)
	return nil
}

// use makes conn what the session speaks on.
func (s *session) use(conn net.Conn) {
	s.conn = conn
	s.in = replyReader{conn: conn, text: s.in.text}
	s.w = writer{conn: conn, out: s.w.out[:0]}
}

func (s *session) banner() error {
	rep, err := s.reply(s.e.opt.Timeouts.Greeting)
	if err != nil {
		return &setupError{err, blameRoute}
	}
	if !rep.ok() {
		return &setupError{rejected("BANNER", &rep), blameSMTP}
	}
	s.tellGreeting(&rep)
	return nil
}

// rejected is "WHAT rejected: 550 reply".
func rejected(what string, rep *reply) error {
	st := rep.status()
	return coded{what + " rejected: " + st.String(), st.Enh}
}

// hello introduces us: EHLO, and HELO when that is refused and will do. LMTP
// has its own word (RFC 2033 section 4.1).
func (s *session) hello(mayHelo bool) error {
	name, err := s.heloName()
	if err != nil {
		return &setupError{err, blameRelay}
	}
	word := "EHLO "
	if s.relay.lmtp {
		word = "LHLO "
	}
	if err := s.w.command(word, name); err != nil {
		return &setupError{err, blameRelay}
	}
	s.traceOut(word + name)
	s.tellIdentify(word[:4], name)
	rep, err := s.exchange(s.e.opt.Timeouts.Hello, true)
	if err != nil {
		return &setupError{err, blameRoute}
	}
	if rep.ok() {
		s.ext = parseExtensions(rep.lines)
		s.ext.pipelining = s.ext.pipelining && s.told == nil
		return nil
	}
	if !mayHelo || s.relay.lmtp || s.relay.authLabel != "" || s.tls != nil || rep.code == 421 {
		return &setupError{rejected("EHLO", &rep), blameSMTP}
	}
	s.ext = extensions{}
	if err := s.w.command("HELO ", name); err != nil {
		return &setupError{err, blameRelay}
	}
	s.traceOut("HELO " + name)
	s.tellIdentify("HELO", name)
	if rep, err = s.exchange(s.e.opt.Timeouts.Hello, false); err != nil {
		return &setupError{err, blameRoute}
	}
	if !rep.ok() {
		return &setupError{rejected("HELO", &rep), blameSMTP}
	}
	return nil
}

// heloName is the name we go by: of the action, of its table by our address, or
// the server's.
func (s *session) heloName() (string, error) {
	switch {
	case s.helo != "":
	case s.relay.helo != "":
		s.helo = s.relay.helo
	case s.relay.heloTable != "":
		key := strings.Trim(s.source, "[]")
		value, found, err := s.e.opt.Tables.Lookup(s.e.soft, s.relay.heloTable, "addrname", key)
		if err != nil || !found {
			return "", said("could not retrieve helo string")
		}
		s.helo = value
	default:
		s.helo = s.e.serverName()
	}
	return s.helo, nil
}

// upgrade is STARTTLS and what follows (RFC 3207).
func (s *session) upgrade(need tlsNeed) error {
	if !s.ext.starttls {
		missing := coded{"TLS required but not supported by remote host", failTLSWanted.enh}
		if s.relay.requireTLS {
			return &setupError{missing, blameFit}
		}
		return &setupError{missing, blameSMTP}
	}
	if err := s.w.command("STARTTLS"); err != nil {
		return &setupError{err, blameRelay}
	}
	s.traceOut("STARTTLS")
	rep, err := s.exchange(s.e.opt.Timeouts.Hello, false)
	if err != nil {
		return &setupError{err, blameTLS}
	}
	if !rep.ok() {
		if need == tlsIfCan && rep.code != 421 {
			return nil // in clear, as if it had not been offered
		}
		return &setupError{rejected("STARTTLS", &rep), blameSMTP}
	}
	if s.in.buffered() {
		return &setupError{errLeftover, blameTLS}
	}
	if err := s.startTLS(); err != nil {
		return err
	}
	return s.hello(false)
}

// startTLS does the handshake on the present connection.
func (s *session) startTLS() error {
	c, err := tlsConfig(s.relay, s.to.name, s.e.opt.Trust)
	if err != nil {
		return &setupError{err, blameRelay}
	}
	conn := tls.Client(s.conn, c)
	err = s.conn.SetDeadline(time.Now().Add(s.e.opt.Timeouts.TLS))
	if err == nil {
		err = conn.Handshake()
	}
	if err != nil {
		if ce, ok := errors.AsType[certError](err); ok {
			return &setupError{ce, blameTLS}
		}
		return &setupError{readError(err), blameTLS}
	}
	s.use(conn)
	cs := conn.ConnectionState()
	s.tls = &cs
	if s.told != nil && s.relay.policy.need == tlsImplicit {
		s.told.Tell(toldTLS, cipherText(&cs))
	}
	s.event("mta tls", slog.String("ciphers", cipherText(&cs)))
	result := "unverified"
	if s.relay.policy.verify {
		result = "valid"
	}
	s.event("mta cert-check", log.Quoted("result", result), log.Quoted("fingerprint", fingerprint(&cs)))
	return nil
}

// exchange writes what was gathered and reads one reply.
func (s *session) exchange(limit time.Duration, keep bool) (reply, error) {
	if err := s.w.flush(limit); err != nil {
		return reply{}, err
	}
	rep, err := s.in.read(limit, keep || s.told != nil)
	s.traceIn(&rep, err)
	return rep, err
}

// reply reads one reply.
func (s *session) reply(limit time.Duration) (reply, error) {
	rep, err := s.in.read(limit, s.told != nil)
	s.traceIn(&rep, err)
	return rep, err
}

// quit says goodbye and does not insist on an answer.
func (s *session) quit(reason string) {
	t := s.e.opt.Timeouts.Quit
	if s.w.command("QUIT") == nil && s.w.flush(t) == nil {
		s.traceOut("QUIT")
		s.reply(t)
	}
	s.event("mta disconnected", slog.String("reason", reason), slog.Int("messages", s.mails))
}

func (s *session) close() {
	s.tellDisconnect()
	if s.conn != nil {
		s.unhook()
		s.conn.Close()
		s.conn = nil
	}
	s.tls, s.ext = nil, extensions{}
}

// logError writes why a session failed.
func (s *session) logError(err error) {
	if se, ok := errors.AsType[*setupError](err); ok && se.blame == blameUs {
		return
	}
	text := mail.Clean(err.Error(), mail.MaxStatusText)
	if s.mails == 0 {
		s.event("mta error", log.Raw("reason", text))
		return
	}
	plural := "s"
	if s.mails == 1 {
		plural = ""
	}
	s.e.opt.Observer.Note(fmt.Sprintf("smtp-out: Error on session %s after %d message%s sent: %s",
		s.id, s.mails, plural, text))
}

func (s *session) event(what string, attrs ...slog.Attr) {
	s.e.opt.Observer.Event(s.id, what, attrs...)
}

func (s *session) traceOut(line string) {
	if s.told != nil {
		s.told.Tell(toldClient, line)
	}
	if s.tracing {
		s.e.opt.Observer.Trace(s.id, ">>> "+mail.Clean(line, maxReplyLine))
	}
}

func (s *session) traceIn(rep *reply, err error) {
	s.tellReply(rep, err)
	switch {
	case !s.tracing:
	case err != nil:
		s.e.opt.Observer.Trace(s.id, "<<< "+err.Error())
	default:
		s.e.opt.Observer.Trace(s.id, "<<< "+rep.status().String())
	}
}

// parseExtensions reads the lines after EHLO; the first is a greeting. What is
// not known, or not well formed, is not offered.
func parseExtensions(lines []string) extensions {
	var x extensions
	for i, line := range lines {
		if i == 0 {
			continue
		}
		word, rest, _ := strings.Cut(line, " ")
		switch strings.ToUpper(word) {
		case "PIPELINING":
			x.pipelining = true
		case "8BITMIME":
			x.eightBit = true
		case "DSN":
			x.dsn = true
		case "CHUNKING":
			x.chunking = true
		case "SMTPUTF8":
			x.utf8 = true
		case "STARTTLS":
			x.starttls = true
		case "REQUIRETLS":
			x.requireTLS = true
		case "SIZE":
			x.hasSize = true
			if n, err := strconv.ParseInt(strings.TrimSpace(rest), 10, 64); err == nil && n > 0 {
				x.size = n
			}
		case "AUTH":
			x.auth = strings.Fields(strings.ToUpper(rest))
		case "LIMITS":
			x.rcptMax = rcptLimit(rest)
		}
	}
	return x
}

// rcptLimit is the RCPTMAX of a LIMITS line (RFC 9422), or 0.
func rcptLimit(s string) int {
	for _, w := range strings.Fields(s) {
		if v, ok := strings.CutPrefix(strings.ToUpper(w), "RCPTMAX="); ok {
			if n, err := strconv.Atoi(v); err == nil && n > 0 {
				return n
			}
		}
	}
	return 0
}

// askName asks for the reverse name of a host, once; it is for the log and for notices.
func (e *Engine) askName(h *host) {
	e.mu.Lock()
	asked := h.asked
	h.asked = true
	e.mu.Unlock()
	if asked {
		return
	}
	ctx, cancel := context.WithTimeout(e.soft, e.opt.Timeouts.Name)
	defer cancel()
	records, result := e.opt.DNS.Query(ctx, reverseName(h.addr), TypePTR)
	if result != DNSOK || len(records) == 0 {
		return
	}
	if name, ok := hostName(records[0].Data); ok {
		e.mu.Lock()
		h.ptr = name
		e.mu.Unlock()
	}
}

func (e *Engine) nameOf(h *host) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return h.name()
}

func (e *Engine) hostText(h *host) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return h.String()
}

func (e *Engine) isBlocked(a netip.Addr, domain string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.blocked(a, domain)
}

func (e *Engine) serverName() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.cfg.ServerName
}

// reverseName is the name under which the reverse of an address is found (RFC
// 1035 section 3.5, RFC 3596 section 2.5).
func reverseName(a netip.Addr) string {
	const hex = "0123456789abcdef"
	var b strings.Builder
	if a.Is4() {
		for _, c := range slices.Backward(a.AsSlice()) {
			b.WriteString(strconv.Itoa(int(c)) + ".")
		}
		return b.String() + "in-addr.arpa"
	}
	for _, c := range slices.Backward(a.AsSlice()) {
		b.Write([]byte{hex[c&15], '.', hex[c>>4], '.'})
	}
	return b.String() + "ip6.arpa"
}
