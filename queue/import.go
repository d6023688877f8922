package queue

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"smtpd/internal/mail"
)

// Bounds of an import. Ours.
const (
	maxOldEnvelope = 64 << 10   // octets of an envelope file
	maxOldMessage  = 1 << 30    // octets of a message, unpacked
	importStep     = 1000       // messages between two lines of progress
	importedDir    = "imported" // where the old spool's messages go once they are here
)

// Import is how to take over the spool of an OpenSMTPD 5.4 to 7.x.
type Import struct {
	// Dir is its folder: the spool, or queue below it.
	Dir string
	// Edit completes an envelope; nil: nothing is done.
	Edit func(*mail.Envelope)
	// Done is told of the envelopes of each message that is here; nil: nobody is.
	Done func([]mail.Envelope)
	// Report takes lines of progress and of what was left; nil: nobody does.
	Report func(line string)
}

// ImportResult counts.
type ImportResult struct {
	Messages, Envelopes int
	Left                int            // messages that stay in the old spool; reported
	Dispatchers         map[string]int // envelopes by action; those of version 2 name none and get one of actionOf
}

// Run takes over what can be read. A message that is here goes to the folder
// imported/ of the old spool, so that it is not taken twice, nor sent by both.
// An error of the store ends it; it can be run again.
func (im *Import) Run(ctx context.Context, s Store) (ImportResult, error) {
	r := ImportResult{Dispatchers: map[string]int{}}
	dir := im.Dir
	if st, err := os.Stat(filepath.Join(dir, "queue")); err == nil && st.IsDir() {
		dir = filepath.Join(dir, "queue")
	}
	messages, err := OldMessages(dir)
	if err != nil {
		return r, err
	}
	for i, name := range messages {
		if err := ctx.Err(); err != nil {
			return r, err
		}
		if i > 0 && i%importStep == 0 {
			im.report("%d of %d messages", i, len(messages))
		}
		envs, err := im.message(ctx, s, filepath.Join(dir, name[:2], name), name)
		var old *oldError
		switch {
		case errors.As(err, &old):
			r.Left++
			im.report("%s left: %v", name, old)
			continue
		case err != nil:
			return r, fmt.Errorf("import %s: %w", name, err)
		}
		r.Messages++
		r.Envelopes += len(envs)
		for _, e := range envs {
			r.Dispatchers[e.Dispatcher]++
		}
		if im.Done != nil {
			im.Done(envs)
		}
		if err := putAway(dir, name); err != nil {
			im.report("%s is here, and could not be moved to %s in the old spool: %v", name, importedDir, plain(err))
		}
	}
	return r, nil
}

func (im *Import) report(format string, args ...any) {
	if im.Report != nil {
		im.Report(fmt.Sprintf(format, args...))
	}
}

// oldError is what is wrong with a message in an old spool.
type oldError struct{ err error }

func (e *oldError) Error() string { return e.err.Error() }

func badOld(format string, args ...any) error { return &oldError{fmt.Errorf(format, args...)} }

// OldMessages lists what OpenSMTPD left in its queue folder: the names of the
// folders aa/aabbccdd.
func OldMessages(dir string) ([]string, error) {
	top, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var l []string
	for _, d := range top {
		if len(d.Name()) != 2 || !d.IsDir() {
			continue
		}
		sub, err := os.ReadDir(filepath.Join(dir, d.Name()))
		if err != nil {
			return nil, err
		}
		for _, m := range sub {
			if _, err := mail.ParseMessageID(m.Name()); err == nil && m.IsDir() && m.Name()[:2] == d.Name() {
				l = append(l, m.Name())
			}
		}
	}
	return l, nil
}

func putAway(dir, name string) error {
	to := filepath.Join(dir, importedDir)
	if err := os.Mkdir(to, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.Rename(filepath.Join(dir, name[:2], name), filepath.Join(to, name))
}

// message takes one message over, under its old id when that is free.
func (im *Import) message(ctx context.Context, s Store, dir, name string) ([]mail.Envelope, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, badOld("%w", plain(err))
	}
	m := &Message{}
	for _, f := range files {
		if _, err := mail.ParseEnvelopeID(f.Name()); err != nil {
			continue
		}
		b, err := readOld(filepath.Join(dir, f.Name()), maxOldEnvelope)
		if err != nil {
			return nil, badOld("%s: %w", f.Name(), err)
		}
		e, err := parseOldEnvelope(b)
		if err != nil {
			return nil, badOld("%s: %w", f.Name(), err)
		}
		if im.Edit != nil {
			im.Edit(&e)
		}
		if m.Arrival.IsZero() || e.Created.Before(m.Arrival) {
			m.Arrival = e.Created
		}
		m.Envelopes = append(m.Envelopes, e)
	}
	if len(m.Envelopes) == 0 {
		return nil, badOld("it has no envelope")
	}
	if m.ID, err = mail.ParseMessageID(name); err != nil {
		return nil, badOld("%w", err)
	}
	err = acceptOld(ctx, s, m, filepath.Join(dir, "message"))
	if errors.Is(err, ErrExists) {
		if m.ID, err = s.Reserve(ctx, 1); err == nil {
			err = acceptOld(ctx, s, m, filepath.Join(dir, "message"))
		}
	}
	if errors.Is(err, ErrInvalid) {
		return nil, badOld("%w", err)
	}
	return m.Envelopes, err
}

// acceptOld stores a message with the body that is in a file of the old spool.
func acceptOld(ctx context.Context, s Store, m *Message, name string) error {
	r, closer, err := openOld(name)
	if err != nil {
		return badOld("message: %w", plain(err))
	}
	defer closer.Close()
	head, err := io.ReadAll(io.LimitReader(r, MaxInline+1))
	if err != nil {
		return badOld("message: %w", err)
	}
	if len(head) <= MaxInline {
		m.Body, m.InFile, m.Size = head, false, int64(len(head))
		return s.Accept(ctx, m)
	}
	f, err := s.NewBody(m.ID)
	if err != nil {
		return err
	}
	n, err := io.Copy(f, io.LimitReader(io.MultiReader(bytes.NewReader(head), r), maxOldMessage+1))
	err = errors.Join(err, f.Close())
	if err == nil && n > maxOldMessage {
		err = badOld("message: %w", errSize)
	}
	if err != nil {
		s.DropBody(m.ID)
		return err
	}
	m.Body, m.InFile, m.Size = nil, true, n
	return s.Accept(ctx, m)
}

// openOld opens a file of an old spool, compressed or not.
func openOld(name string) (io.Reader, io.Closer, error) {
	f, err := os.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, nil, err
	}
	var head [2]byte
	n, _ := f.ReadAt(head[:], 0)
	switch {
	case n == 2 && head == [2]byte{0x1f, 0x8b}:
		z, err := gzip.NewReader(f)
		if err != nil {
			f.Close()
			return nil, nil, err
		}
		return z, f, nil
	case n > 0 && head[0] < ' ' && head[0] != '\t' && head[0] != '\n' && head[0] != '\r':
		f.Close()
		return nil, nil, errors.New("it is encrypted: have the old smtpd rewrite its queue without encryption, or send it")
	}
	return f, f, nil
}

func readOld(name string, max int64) ([]byte, error) {
	r, c, err := openOld(name)
	if err != nil {
		return nil, plain(err)
	}
	defer c.Close()
	b, err := io.ReadAll(io.LimitReader(r, max+1))
	if err == nil && int64(len(b)) > max {
		err = errSize
	}
	return b, err
}

// parseOldEnvelope reads an envelope file of version 2 or 3: lines "name: value".
func parseOldEnvelope(b []byte) (mail.Envelope, error) {
	old := map[string]string{}
	for line := range strings.Lines(string(b)) {
		name, value, ok := strings.Cut(strings.TrimRight(line, "\n"), ":")
		name = strings.ToLower(strings.TrimSpace(name))
		if !ok || name == "" {
			return mail.Envelope{}, fmt.Errorf("not a line of an envelope: %.40q", line)
		}
		if _, twice := old[name]; twice {
			return mail.Envelope{}, fmt.Errorf("%q twice", name)
		}
		old[name] = strings.TrimSpace(value)
	}
	if v := old["version"]; v != "2" && v != "3" {
		return mail.Envelope{}, fmt.Errorf("version %.10q is not known", v)
	}
	p := &oldParser{old: old}
	e := p.envelope()
	if p.err == nil {
		p.err = checkText(&e)
	}
	if p.err == nil {
		_, p.err = appendEnvelope(nil, &e)
	}
	return e, p.err
}

// oldParser reads fields; the first that is wrong is its error.
type oldParser struct {
	old map[string]string
	err error
}

func (p *oldParser) number(name string, max uint64) uint64 {
	s := p.old[name]
	if s == "" {
		return 0
	}
	v, err := strconv.ParseUint(s, 10, 64)
	if (err != nil || v > max) && p.err == nil {
		p.err = fmt.Errorf("%s: %.40q", name, s)
	}
	return v
}

func (p *oldParser) time(name string) time.Time {
	if v := p.number(name, 1<<40); v != 0 {
		return time.Unix(int64(v), 0)
	}
	return time.Time{}
}

// word finds the value of a field among words; none is 0.
func word[T ~uint8](p *oldParser, name string, words map[string]T) T {
	s := strings.ToLower(p.old[name])
	if s == "" || s == "0" {
		return 0
	}
	v, ok := words[s]
	if !ok && p.err == nil {
		p.err = fmt.Errorf("%s: %.40q", name, s)
	}
	return v
}

func (p *oldParser) address(name string) mail.Address {
	s := strings.TrimSuffix(strings.TrimPrefix(p.old[name], "<"), ">")
	if s == "@" { // how the null reverse-path is written
		return mail.Address{}
	}
	return mail.SplitAddress(s)
}

// oldORcpt completes what 6.x keeps of ORCPT: the address, of the only type that
// it takes.
func oldORcpt(s string) string {
	switch {
	case s == "" || s == "@":
		return ""
	case strings.Contains(s, ";"):
		return s
	}
	return "rfc822;" + s
}

func (p *oldParser) envelope() mail.Envelope {
	o := p.old
	e := mail.Envelope{
		Kind:       word(p, "type", map[string]mail.Kind{"mda": mail.KindMDA, "mta": mail.KindMTA, "bounce": mail.KindBounce}),
		Dispatcher: o["dispatcher"], Tag: o["tag"], SMTPName: o["smtpname"], Helo: o["helo"], Host: o["hostname"],
		Client: oldClient(o["sockaddr"]), Username: o["username"],
		Sender: p.address("sender"), Rcpt: p.address("rcpt"), Dest: p.address("dest"),
		Created: p.time("ctime"), LastTry: p.time("last-try"), Retry: uint16(p.number("retry", 1<<16-1)),
		LastError: mail.Clean(o["errorline"], maxText), User: o["mda-user"],
	}
	e.TTL = time.Duration(p.number("ttl", 1<<32)+p.number("expire", 1<<32)) * time.Second
	p.flags(&e)
	e.DSN = mail.DSN{EnvID: o["dsn-envid"], ORcpt: oldORcpt(o["dsn-orcpt"]),
		Ret: word(p, "dsn-ret", map[string]mail.Ret{"full": mail.RetFull, "hdrs": mail.RetHeaders})}
	if o["dsn-notify"] != "" {
		e.DSN.Notify = p.notify()
	}
	if class, code := p.number("esc-class", 5), p.number("esc-code", 999); class != 0 {
		e.LastStatus = mail.Status{Code: int(class) * 100, Enh: [3]uint8{uint8(class), uint8(code / 10), uint8(code % 10)}}
		e.LastStatus.Code += 50
	}
	p.method(&e)
	if e.Dispatcher == "" {
		e.Dispatcher = p.actionOf(&e)
	}
	if e.Kind == mail.KindBounce {
		e.Notice = word(p, "bounce-type", map[string]mail.NoticeKind{"error": mail.NoticeFailed, "failed": mail.NoticeFailed,
			"warn": mail.NoticeDelayed, "delayed": mail.NoticeDelayed, "dsn": mail.NoticeDelivered, "delivered": mail.NoticeDelivered,
			"relayed": mail.NoticeRelayed})
		e.NoticeDelay = time.Duration(p.number("bounce-delay", 1<<32)) * time.Second
		if e.Notice == 0 {
			e.Notice = mail.NoticeFailed
		}
	}
	if e.Created.IsZero() && p.err == nil {
		p.err = errors.New("ctime is missing")
	}
	return e
}

// actionOf names an action for an envelope of version 2, which names none: one
// that an operator can configure, so that the mail goes out after all.
func (p *oldParser) actionOf(e *mail.Envelope) string {
	switch m := p.old["mda-method"]; {
	case e.Kind == mail.KindMTA:
		return "import-mta"
	case m == "mbox" || m == "maildir" || m == "lmtp":
		return "import-" + m
	}
	return "import-mda"
}

// method is where version 2 and 3 keep commands and files of local delivery
// that came from an alias or a .forward.
func (p *oldParser) method(e *mail.Envelope) {
	e.SubAddr = p.old["mda-subaddress"]
	if s := p.old["mda-exec"]; s != "" {
		e.Exec = s
		if s[0] != '/' && s[0] != '|' {
			e.Exec = "|" + s
		}
	}
	switch p.old["mda-method"] {
	case "filename":
		e.Exec = p.old["mda-buffer"]
	case "mda":
		e.Exec = "|" + p.old["mda-buffer"]
	}
}

func (p *oldParser) flags(e *mail.Envelope) {
	known := map[string]mail.Flags{"authenticated": mail.FlagAuthenticated, "bounce": mail.FlagBounce,
		"internal": mail.FlagInternal, "enqueued": 0}
	for _, w := range strings.FieldsFunc(p.old["flags"], func(r rune) bool { return strings.ContainsRune(" ,|", r) }) {
		f, ok := known[strings.ToLower(w)]
		if !ok && p.err == nil {
			p.err = fmt.Errorf("flags: %.40q", w)
		}
		e.Flags |= f
	}
}

// notify is a number of the bits that ours are too, or words.
func (p *oldParser) notify() mail.Notify {
	s := p.old["dsn-notify"]
	if v, err := strconv.ParseUint(s, 10, 4); err == nil {
		return mail.Notify(v)
	}
	var n mail.Notify
	for _, w := range strings.FieldsFunc(strings.ToLower(s), func(r rune) bool { return strings.ContainsRune(" ,|", r) }) {
		i := slices.Index([]string{"success", "failure", "delay", "never"}, w)
		if i < 0 {
			p.err = errors.Join(p.err, fmt.Errorf("dsn-notify: %.40q", w))
			return 0
		}
		n |= 1 << i
	}
	return n
}

// oldClient is a client's address as we write it.
func oldClient(s string) string {
	if v6, ok := strings.CutPrefix(strings.ToLower(s), "ipv6:"); ok {
		return "[" + v6 + "]"
	}
	if strings.Contains(s, ":") && !strings.HasPrefix(s, "[") {
		return "[" + s + "]"
	}
	return s
}
