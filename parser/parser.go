// Package parser turns smtpd.conf into a checked config.Config. It reads three
// generations of the language with one lexer and a grammar each; the older two
// are translated on the tree into the present one, which alone is given a
// meaning. Checking opens the files a configuration names and looks at
// interfaces, users and names, through System; it writes nothing, listens
// nowhere and starts no program. The package keeps no state between calls.
package parser

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"time"

	"smtpd/internal/config"
)

// Where the host says things about itself, unless Options say otherwise.
const (
	defaultMailname = "/etc/mail/mailname"
	defaultCertDir  = "/etc/mail/certs"
	defaultLibexec  = "/usr/local/libexec/smtpd"
)

// Options say what to read and on whose behalf. The zero value of every field
// but File is of use.
type Options struct {
	File   string            // path, or a name for Text
	Text   []byte            // not nil: the configuration itself; File is then only a name
	Macros map[string]string // from -D; they win over those of the file

	Unprivileged bool // the daemon runs as an ordinary user: what needs another identity is refused, by a check told
	Verbose      bool // report macros that are not used, and show old statements in their present form
	Asking       bool // nobody will run what is parsed here: what an ordinary user cannot deliver is only told
	// Wait reports a word of `listen on` that may have no address yet; nil: none
	// may. The daemon waits for it.
	Wait       func(word string) bool
	Given      bool // listening sockets come from the service manager: any port will do
	CheckOnly  bool // for -n: also warn of what is allowed and hardly meant
	MapsToCome bool // for newaliases: maps (db:) are not opened, they are about to be made

	Now      func() time.Time // nil: time.Now
	System   System           // nil: the host
	Libexec  string           // first folder to look for programs in; empty: /usr/local/libexec/smtpd
	Mailname string           // file with the server name; empty: /etc/mail/mailname
	CertDir  string           // certificates by name of old configurations; empty: /etc/mail/certs

	server string // how this host calls itself
}

func (o *Options) fill(ctx context.Context) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.System == nil {
		o.System = host{}
	}
	o.System = newCache(o.System)
	for _, d := range []struct {
		s     *string
		value string
	}{{&o.Libexec, defaultLibexec}, {&o.Mailname, defaultMailname}, {&o.CertDir, defaultCertDir}} {
		if *d.s == "" {
			*d.s = d.value
		}
	}
	o.server = serverName(ctx, o)
}

// serverName is how this host calls itself: the first line of the mailname
// file, else its host name.
func serverName(ctx context.Context, o *Options) string {
	if data, err := o.System.ReadFile(o.Mailname, 4096); err == nil {
		name, _, _ := strings.Cut(string(data), "\n")
		if name = strings.TrimSpace(name); name != "" {
			return name
		}
	}
	if name, err := o.System.Hostname(ctx); err == nil && name != "" {
		return name
	}
	return "localhost"
}

// Parse reads and checks a configuration. All mistakes are reported in one
// run; the Config is nil when there is any. It waits for nothing but the
// resolver, which ctx bounds.
func Parse(ctx context.Context, o Options) (*config.Config, Diagnostics) {
	o.fill(ctx)
	in := load(&o)
	if in.written == nil {
		return nil, in.diags.sorted()
	}
	c := newChecker(&o, in)
	c.check(ctx)
	if in.diags.errors > 0 {
		return nil, in.diags.sorted()
	}
	return c.cfg, in.diags.sorted()
}

// SplitMacro reads the argument of -D: name=value, split at the last =. False
// means that there is none, or no name; the argument is then ignored with a
// warning.
func SplitMacro(arg string) (name, value string, ok bool) {
	i := strings.LastIndexByte(arg, '=')
	if i < 1 {
		return "", "", false
	}
	return arg[:i], arg[i+1:], true
}

// input is a configuration as text and tree.
type input struct {
	lex     *lexer
	diags   *diagList
	dialect dialect
	written *tree // in the language of the file
	tree    *tree // in the present language

	hostname *token // server name by an older file; nil: none
}

// load reads the text into a tree of the present language. There is none when
// the file cannot be read.
func load(o *Options) *input {
	d := &diagList{sources: []source{{name: o.File, parent: -1}}}
	in := &input{diags: d, lex: newLexer(o.System, d, o.Macros)}
	in.lex.sources = d.sources
	text := o.Text
	if text == nil {
		var err error
		if text, err = o.System.ReadFile(o.File, maxInput); err != nil {
			why := "cannot read"
			if errors.Is(err, fs.ErrNotExist) {
				why = "cannot open"
			}
			d.errorf(noPos(), "%s %s: %v", why, o.File, cause(err))
			return in
		}
	}
	in.lex.file(0, string(text))
	in.lex.finish(o.Verbose)
	in.dialect = detect(in.lex.tokens)
	s := &statements{toks: in.lex.tokens, comments: in.lex.comments, diags: d, dialect: in.dialect, o: o}
	s.parse()
	in.written, in.tree = s.tree, s.tree
	if in.dialect.kind != modern {
		in.tree = translate(o, in)
	}
	return in
}
