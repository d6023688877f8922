// Package mda is the engine of local delivery: it puts one message into a
// Maildir, an mbox, an LMTP store or the standard input of a command, as the
// user that the process runs as. It owns the files and connections of the
// deliveries under way and a bounded number of open folders and idle
// connections between them. It must never follow a name that another user can
// swap, nor report a delivery before it is on disk.
package mda

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"smtpd/internal/mail"
)

// Method says what becomes of a message. The first four are those of actions;
// file and pipe are items of alias tables and .forward files.
type Method string

// The methods.
const (
	Maildir Method = "maildir" // Path: the folder, empty for ~/Maildir
	Mbox    Method = "mbox"    // the system mailbox of User
	LMTP    Method = "lmtp"    // Path: "/socket" or "host[:port]"
	Command Method = "mda"     // Command, by /bin/sh
	File    Method = "file"    // Path: an mbox file
	Pipe    Method = "pipe"    // Command, by /bin/sh
)

// Delivery is one message for one user.
type Delivery struct {
	ID      mail.EnvelopeID // its message names the file in a Maildir; 0: a random name
	Created time.Time       // of the envelope; part of that name
	Retry   uint16          // attempts before this one
	UTF8    bool            // the transaction used SMTPUTF8

	Method  Method
	Path    string // formats are expanded
	Command string // formats are expanded
	Wrapper string // command around the delivery, Mbox aside, or empty; formats are expanded
	Junk    bool   // Maildir: mail marked as spam goes to .Junk
	OrigTo  bool   // an X-Original-To line is put in front
	RcptTo  bool   // LMTP: RCPT names the destination address, not the user
	Hello   string // LMTP: our name; empty: localhost

	Values          // User, Home and the addresses
	Hostname string // of this server, for names of Maildir files
	Text     Text
	AsIs     bool // nothing is put in front of the text, and loops are not looked for
}

// Options are what a Deliverer works with.
type Options struct {
	UID      int                // must own the mailboxes: os.Geteuid
	Now      func() time.Time   // nil: time.Now
	SpoolDir string             // system mailboxes; empty: /var/mail
	Libexec  []string           // where our own programs are, for wrappers; nil: DefaultLibexec
	Report   func(line string)  // told of locks that were broken; nil: nobody
	Hostname func() string      // to tell whose a lock is; nil: os.Hostname
	Alive    func(pid int) bool // nil: asks the system
	// Booted is when the machine was started that alone can write to an open
	// folder; zero: others can, or nobody knows. nil: asks the system.
	Booted func(dir int) time.Time

	// Start runs the function that starts a command, in the surroundings that
	// commands are to have; nil: as it is.
	Start func(func() error) error
	// Wide is told, once, before so many threads as Hands work at a time; nil:
	// nobody.
	Wide func()
}

// DefaultSpoolDir holds the system mailboxes (hier(7)).
const DefaultSpoolDir = "/var/mail"

// DefaultLibexec are the folders in which the programs that wrappers stand around
// are looked for: first the one that our own program is in, as it is before an
// installation.
func DefaultLibexec() []string {
	dirs := []string{"/usr/local/libexec/smtpd", "/usr/libexec/smtpd"}
	if exe, err := os.Executable(); err == nil {
		dirs = slices.Insert(dirs, 0, filepath.Dir(exe))
	}
	return dirs
}

// Deliverer delivers as the user that the process runs as. It is safe for
// concurrent use. Close it when it is no longer used.
type Deliverer struct {
	o     Options
	start time.Time
	pid   int

	folders folders
	boxes   boxes
	stores  stores
	copies  copies
	wide    sync.Once // Options.Wide

	fault func(step string) error // tests: fails or stops at a step
}

// New makes a Deliverer; it opens nothing yet.
func New(o Options) *Deliverer {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.SpoolDir == "" {
		o.SpoolDir = DefaultSpoolDir
	}
	if o.Report == nil {
		o.Report = func(string) {}
	}
	if o.Hostname == nil {
		o.Hostname = func() string { h, _ := os.Hostname(); return h }
	}
	if o.Alive == nil {
		o.Alive = alive
	}
	if o.Booted == nil {
		o.Booted = booted
	}
	if o.Wide == nil {
		o.Wide = func() {}
	}
	if o.Start == nil {
		o.Start = func(start func() error) error { return start() }
	}
	return &Deliverer{o: o, start: o.Now(), pid: os.Getpid()}
}

// Close closes what is kept open between deliveries. None may be under way.
func (d *Deliverer) Close() {
	d.folders.close()
	d.stores.close()
}

// Deliver makes one delivery and says how it ended. It blocks until the message
// is on disk, or the store or command has answered, or ctx ends: then the
// failure is temporary. Writing files is not interrupted by ctx.
func (d *Deliverer) Deliver(ctx context.Context, v *Delivery) Result {
	if !v.AsIs {
		looped, err := v.Text.looped(v.Dest.String())
		if err != nil {
			return failed(tempfail(exTempfail, "mail.local: ", "read the message", err))
		}
		if looped {
			return loopDetected()
		}
	}
	err := d.deliver(ctx, v)
	if err == nil {
		return delivered()
	}
	return failed(err)
}

func (d *Deliverer) deliver(ctx context.Context, v *Delivery) error {
	if v.Wrapper != "" && v.Method != Mbox {
		return d.command(ctx, v)
	}
	switch v.Method {
	case Maildir:
		return d.maildir(v)
	case Mbox:
		return d.mbox(ctx, v)
	case File:
		return d.file(ctx, v)
	case LMTP:
		return d.lmtp(ctx, v)
	case Command, Pipe:
		return d.command(ctx, v)
	}
	return &failure{text: fmt.Sprintf("nothing to deliver with: %s", v.Method)}
}

// path expands a path; one that is not absolute begins at home.
func (v *Delivery) path(p string) (string, error) {
	atHome := strings.HasPrefix(p, "~/")
	p, err := v.expand(p, usePath)
	if err != nil {
		return "", v.unexpanded("path", err)
	}
	if (atHome || !filepath.IsAbs(p)) && !filepath.IsAbs(v.Home) {
		return "", &failure{text: "the user has no home folder"}
	}
	if !filepath.IsAbs(p) {
		p = v.Home + "/" + p
	}
	return filepath.Clean(p), nil
}

// unexpanded is the failure of a format: permanent when only the values can
// have caused it and they will not change.
func (v *Delivery) unexpanded(what string, err error) error {
	perm := errors.Is(err, errTooLong) || errors.Is(err, errEscapes)
	return &failure{perm: perm, text: what + " could not be expanded: " + err.Error()}
}

// tag is the sub-address of the item that led to the user, or else of the
// destination.
func (v *Delivery) tag() string {
	if v.SubAddr != "" {
		return v.SubAddr
	}
	_, tag := v.Dest.SplitTag(v.Delim)
	return tag
}

// step lets a test fail, or stop, where a machine could.
func (d *Deliverer) step(name string) error {
	if d.fault == nil {
		return nil
	}
	return d.fault(name)
}

// buffers are the texts on their way to disk.
var buffers = sync.Pool{New: func() any { b := make([]byte, 0, bufferSize); return &b }}

// bufferSize holds an inline message and what is put in front; larger ones pass
// through in pieces of this size.
const bufferSize = 68 << 10
