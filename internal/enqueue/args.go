// Package enqueue is sendmail's intake: it reads the command line, completes a
// message from standard input, hands it to the local listener, or keeps it for
// a daemon that is down. It owns the message while it is under way, and a
// temporary file when it is large. It must never pass on a line end or NUL that
// came in an argument or address, and never lose a message it said it has.
package enqueue

import (
	"errors"
	"fmt"
	"strings"

	"smtpd/internal/mail"
)

// Exit statuses of sendmail, from sysexits(3).
const (
	ExitOK          = 0
	ExitUsage       = 1  // as OpenSMTPD, not 64
	ExitNoHost      = 68 // the name of this host cannot be told
	ExitUnavailable = 69 // i/o error, or the daemon has no room
	ExitSoftware    = 70 // refused, or nothing to be done
	ExitTempFail    = 75 // kept until the daemon is back
)

// Options are what sendmail's command line asks for.
type Options struct {
	Sender     string   // -f, -r: the reverse-path as given, maybe in angle brackets
	SenderSet  bool     // it was given, maybe empty
	Name       string   // -F: the full name
	FromHeader bool     // -t: recipients of To, Cc and Bcc as well
	Verbose    bool     // -v
	Notify     string   // -N
	Ret        string   // -R
	EnvID      string   // -V
	Resubmit   bool     // -S: a message kept offline; it is not kept again
	Queue      bool     // -bp: the queue is to be listed
	Recipients []string // as given, each maybe a list with commas
}

// Errors of ParseArgs that are no mistakes of the user.
var (
	// ErrQueueRun is -q: nothing to do, the daemon runs its queue by itself.
	ErrQueueRun = errors.New("queue run")
)

// UsageError is a command line that cannot be used.
type UsageError struct{ Text string } // empty: the usage says enough

// Error is the text before the usage.
func (e *UsageError) Error() string { return e.Text }

// Options that take an argument, in the same or the next word; ones whose
// argument is optional and in the same word; and ones without.
const (
	withArg  = "ABFLNRVbefopr"
	optional = "E"
	without  = "Simtvx"
)

// ParseArgs reads the words after the program's name. Options may stand between
// recipients; "--" ends them. A word with a line end or NUL is refused, as is a
// parameter that the dialogue could not carry.
func ParseArgs(args []string) (*Options, error) {
	for _, a := range args {
		if strings.ContainsAny(a, "\r\n\x00") {
			return nil, illegal(a)
		}
	}
	o := &Options{}
	for i := 0; i < len(args); i++ {
		a := args[i]
		if a == "--" {
			o.Recipients = append(o.Recipients, args[i+1:]...)
			break
		}
		if len(a) < 2 || a[0] != '-' {
			o.Recipients = append(o.Recipients, a)
			continue
		}
		used, err := o.word(a[1:], args[i+1:])
		if err != nil {
			return nil, err
		}
		i += used
	}
	for _, p := range []string{o.Notify, o.Ret, o.EnvID} {
		if strings.ContainsFunc(p, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
			return nil, illegal(p)
		}
	}
	if mail.HasControl(o.Name) {
		return nil, illegal(o.Name)
	}
	return o, nil
}

// word takes one word of options; rest are the words that follow. used is how
// many of those were arguments.
func (o *Options) word(w string, rest []string) (used int, err error) {
	for j := range len(w) {
		c, tail := w[j], w[j+1:]
		switch {
		case c == 'q':
			return 0, ErrQueueRun
		case strings.IndexByte(without, c) >= 0:
			o.flag(c)
		case strings.IndexByte(optional, c) >= 0:
			return 0, nil // the rest of the word
		case c == 'J':
			return 0, &UsageError{}
		case strings.IndexByte(withArg, c) < 0:
			return 0, &UsageError{fmt.Sprintf("invalid option -- '%c'", c)}
		case tail != "":
			o.set(c, tail)
			return 0, nil
		case len(rest) == 0:
			return 0, &UsageError{fmt.Sprintf("option requires an argument -- '%c'", c)}
		default:
			o.set(c, rest[0])
			return 1, nil
		}
	}
	return 0, nil
}

// flag and set know the options that mean something here; the others are
// accepted for programs that pass them to any sendmail.
func (o *Options) flag(c byte) {
	switch c {
	case 't':
		o.FromHeader = true
	case 'v':
		o.Verbose = true
	case 'S':
		o.Resubmit = true
	}
}

func (o *Options) set(c byte, arg string) {
	switch c {
	case 'f', 'r':
		o.Sender, o.SenderSet = arg, true
	case 'F':
		o.Name = arg
	case 'N':
		o.Notify = arg
	case 'R':
		o.Ret = arg
	case 'V':
		o.EnvID = arg
	case 'b':
		o.Queue = strings.HasPrefix(arg, "p")
	}
}

// Aliases reports whether the words ask for newaliases: -bi.
func Aliases(args []string) bool {
	for _, a := range args {
		if a == "--" {
			return false
		}
		if strings.HasPrefix(a, "-bi") {
			return true
		}
	}
	return false
}

func illegal(s string) error {
	return &Refused{mail.Clean(s, len(s)) + " contains illegal character"}
}

// Refused is a message that cannot be handed in, in the words for the user;
// exit status ExitSoftware.
type Refused struct{ Text string }

// Error is the text.
func (e *Refused) Error() string { return e.Text }
