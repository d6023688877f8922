// Command smtp hands one message from standard input to a server: a small
// client for scripts and for trying servers out. It keeps nothing and tries
// nothing again.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/user"
	"strings"

	"smtpd/internal/config"
	"smtpd/internal/mail"
)

const usage = "usage: smtp [-Chnv] [-a authfile] [-F from] [-H helo] [-s server] [-T params] [recipient ...]"

// maxMessage bounds the message, in octets. Ours: it is kept in memory, so that
// the next address of a server can have it too.
const maxMessage = 256 << 20

// options is the command line, read.
type options struct {
	server  config.RelayURL
	auth    string // user:password; empty: none
	from    string
	helo    string
	tls     tlsParams
	check   bool // the server's certificate
	connect bool // and no more
	verbose bool
	rcpts   []string
}

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stderr))
}

// run is main with its surroundings as parameters.
func run(ctx context.Context, args []string, in io.Reader, errw io.Writer) int {
	o, err := parse(args)
	if err != nil {
		if text := err.Error(); text != "" {
			fmt.Fprintln(errw, "smtp: "+text)
		}
		fmt.Fprintln(errw, usage)
		return 1
	}
	var text []byte
	if !o.connect {
		if text, err = io.ReadAll(io.LimitReader(in, maxMessage+1)); err != nil {
			fmt.Fprintln(errw, "smtp: read the message: "+err.Error())
			return 1
		}
		if len(text) > maxMessage {
			fmt.Fprintln(errw, "smtp: the message is too long")
			return 1
		}
	}
	c := &client{options: o, out: errw, text: text}
	if err := c.run(ctx); err != nil {
		fmt.Fprintln(errw, "smtp: "+err.Error())
		return 1
	}
	return 0
}

// errUsage has no more to say than the usage.
var errUsage = errors.New("")

func parse(args []string) (options, error) {
	o := options{check: true}
	fs := flag.NewFlagSet("smtp", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	noCheck := fs.Bool("C", false, "")
	fs.BoolVar(&o.connect, "n", false, "")
	fs.BoolVar(&o.verbose, "v", false, "")
	authFile := fs.String("a", "", "")
	fs.StringVar(&o.from, "F", "", "")
	fs.StringVar(&o.helo, "H", "", "")
	server := fs.String("s", "localhost", "")
	params := fs.String("T", "", "")
	if err := fs.Parse(split(args)); err != nil {
		return o, errUsage
	}
	o.check = !*noCheck
	o.rcpts = fs.Args()
	o.verbose = o.verbose || o.connect
	var err error
	if o.server, err = serverURL(*server); err != nil {
		return o, fmt.Errorf("server: %w", err)
	}
	if o.tls, err = parseTLS(*params); err != nil {
		return o, err
	}
	if *authFile != "" {
		if o.auth, err = credentials(*authFile, o.server.Label); err != nil {
			return o, err
		}
	}
	if o.helo == "" {
		if o.helo, err = os.Hostname(); err != nil {
			o.helo = "localhost"
		}
	}
	if o.from == "" {
		o.from = "root"
		if u, err := user.Current(); err == nil {
			o.from = u.Username
		}
		o.from += "@" + o.helo
	}
	o.from = path(o.from)
	for i, r := range o.rcpts {
		o.rcpts[i] = path(r)
	}
	return o, o.sendable()
}

// path is an address without the angle brackets that a user may put around it.
func path(s string) string {
	if strings.HasPrefix(s, "<") && strings.HasSuffix(s, ">") {
		return s[1 : len(s)-1]
	}
	return s
}

// sendable refuses what would end an argument or a command and begin another.
func (o *options) sendable() error {
	if strings.ContainsFunc(o.helo, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return fmt.Errorf("%q cannot be a name: it holds a blank or a control character", mail.Clean(o.helo, 64))
	}
	for _, a := range append([]string{o.from}, o.rcpts...) {
		if !mail.FitPath(a) {
			return fmt.Errorf("%q cannot be an address: it holds a blank, a bracket or a control character", mail.Clean(a, 64))
		}
	}
	return nil
}

// serverURL reads the server. With -a a label is not needed, and without TLS it
// is refused as in a relay URL.
func serverURL(s string) (config.RelayURL, error) {
	if !strings.Contains(s, "://") {
		s = "smtp://" + s
	}
	return config.ParseRelayURL(s)
}

// split takes flags without an argument apart that were given as one word:
// -nv is -n -v.
func split(args []string) []string {
	var out []string
	for i, a := range args {
		if len(a) < 2 || a[0] != '-' || a == "--" {
			return append(out, args[i:]...)
		}
		rest := a[1:]
		for rest != "" && strings.ContainsRune("Chnv", rune(rest[0])) {
			out, rest = append(out, "-"+rest[:1]), rest[1:]
		}
		if rest == "" {
			continue
		}
		out = append(out, "-"+rest[:1])
		if len(rest) > 1 {
			out = append(out, rest[1:])
		} else if i+1 < len(args) {
			return append(append(out, args[i+1]), split(args[i+2:])...)
		}
	}
	return out
}

// maxAuthFile bounds the file of credentials, in octets. Ours.
const maxAuthFile = 1 << 20

// credentials are user:password from a file: its only line, or as in a secrets
// table the value of the line that begins with the label.
func credentials(path, label string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxAuthFile))
	if err != nil {
		return "", err
	}
	login := ""
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		value := line
		if label != "" {
			fields := strings.Fields(line)
			if len(fields) != 2 || strings.TrimSuffix(fields[0], ":") != label {
				continue
			}
			value = fields[1]
		}
		u, p, ok := strings.Cut(value, ":")
		switch {
		case !ok || p == "" || u == "" || strings.ContainsAny(u, " \t") || strings.ContainsAny(value, "\x00\r"):
			return "", errors.New(path + ": want user:password")
		case label == "" && login != "":
			return "", errors.New(path + ": more than one line, and no label in the server's URL says which")
		case login == "":
			login = value
		}
	}
	if login == "" {
		return "", errors.New(path + ": no credentials")
	}
	return login, nil
}
