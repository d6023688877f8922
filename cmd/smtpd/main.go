// Command smtpd is the mail server: the parent, and by re-execution of itself
// every other process. This file reads the command line; roles.go leads from
// the name of a process to its code.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	osuser "os/user"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"smtpd/internal/ctl"
	"smtpd/internal/log"
	"smtpd/internal/privsep"
	"smtpd/internal/proc/parent"
	"smtpd/parser"
	"smtpd/table"
)

func main() { os.Exit(run(os.Args, os.Stdout, os.Stderr)) }

// run is main with its surroundings as parameters; the result is the exit
// status.
func run(args []string, stdout, stderr io.Writer) int {
	if role, ok := privsep.RoleOf(args[0]); ok {
		return runRole(role)
	}
	f, err := parseFlags(args[1:])
	if err != nil {
		fmt.Fprintf(stderr, "smtpd: %v\n%s", err, usageText)
		return failed(args)
	}
	for _, w := range f.warnings {
		fmt.Fprintf(stderr, "smtpd: warning: %s\n", w)
	}
	if f.help {
		fmt.Fprintf(stderr, "version: smtpd %s\n%s", ctl.Version, usageText)
		return 1
	}
	ctx := context.Background()
	o, err := f.parseOptions()
	if err != nil {
		fmt.Fprintf(stderr, "smtpd: %v\n", err)
		return failed(args)
	}
	if f.check {
		return check(ctx, f, o, stdout, stderr)
	}
	return start(ctx, f, o, stderr)
}

// failed is the exit status when nothing could be done: 1, but for those who
// ask what becomes of mail, to whom that means refused.
func failed(args []string) int {
	for _, a := range args {
		if a == "--explain" || a == "--cases" || strings.HasPrefix(a, "--cases=") {
			return exitError
		}
	}
	return 1
}

// findConfig is the configuration file when none was named: the first that
// exists, or the first of the places when none does.
func findConfig() string {
	for _, dir := range ctl.ConfDirs() {
		path := filepath.Join(dir, "smtpd.conf")
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return filepath.Join(ctl.ConfDirs()[0], "smtpd.conf")
}

// parseOptions is what the parser is asked.
func (f *flags) parseOptions() (parser.Options, error) {
	o := parser.Options{
		File: f.file, Macros: f.macros, Verbose: f.verbose, CheckOnly: f.check,
		Asking:       f.explain || f.cases != "" || f.modern,
		Unprivileged: os.Geteuid() != 0, Now: time.Now, Libexec: table.LibexecDirs()[0],
	}
	if f.rootless != "" {
		if err := f.useRootless(&o); err != nil {
			return o, err
		}
	}
	if o.File == "" {
		o.File = findConfig()
	}
	return o, nil
}

// How much a check collects of its garbage. It ends soon, and its memory with
// it, so that most of that is time lost: a third of it in a file of 100,000
// lines. Ours.
const (
	checkGarbage = 800 // percent, where Go has 100
	checkMemory  = 1 << 30
)

// check is smtpd -n.
func check(ctx context.Context, f *flags, o parser.Options, stdout, stderr io.Writer) int {
	debug.SetMemoryLimit(checkMemory)
	debug.SetGCPercent(checkGarbage)
	if f.modern {
		text, diags := parser.Modern(ctx, o)
		printDiagnostics(stderr, diags)
		if diags.Failed() {
			return 1
		}
		fmt.Fprint(stdout, text)
		return 0
	}
	conf, diags := parser.Parse(ctx, o)
	printDiagnostics(stderr, diags)
	if conf == nil || diags.Failed() {
		if f.explain || f.cases != "" {
			return exitError
		}
		return 1
	}
	switch {
	case f.explain:
		return explainMail(ctx, f, conf, stdout, stderr)
	case f.cases != "":
		return cases(ctx, f, conf, stdout, stderr)
	}
	troubles := parent.CheckMailboxes(conf)
	if o.Unprivileged { // whose mailboxes the parser has looked at
		troubles = parent.CheckSpool(cmp.Or(f.spool, ctl.Spool))
	}
	if troubles != nil {
		fmt.Fprintf(stderr, "smtpd: warning: %v\n", troubles)
	}
	if f.verbose {
		parser.Describe(stdout, conf)
	}
	fmt.Fprintln(stderr, "configuration OK")
	return 0
}

func printDiagnostics(w io.Writer, diags parser.Diagnostics) {
	for _, d := range diags {
		fmt.Fprintln(w, d)
	}
}

// identity finds a user that processes run as.
func identity(name string) (uid, gid int, err error) {
	u, err := osuser.Lookup(name)
	if err != nil {
		return 0, 0, fmt.Errorf("user %s does not exist: add it, or build with another name", name)
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err := errors.Join(err1, err2); err != nil {
		return 0, 0, fmt.Errorf("user %s: %w", name, err)
	}
	return uid, gid, nil
}

// logger is the daemon's log, the form of its children's lines, and who takes
// these; nil: the children write to standard error themselves.
func (f *flags) logger(stderr io.Writer) (*log.Logger, log.Form, func(int, []byte)) {
	if f.debug {
		l := log.New(stderr, log.FormPlain)
		l.SetVerbose(f.verbose)
		return l, log.FormPlain, nil
	}
	s := log.NewSyslog("/dev/log", stderr, time.Now)
	l := log.New(s, log.FormSeverity)
	l.SetVerbose(f.verbose)
	return l, log.FormSeverity, s.Lines
}

// smtpctlPath is the smtpctl beside this program, or where it is installed.
func smtpctlPath() string {
	if exe, err := os.Executable(); err == nil {
		p := filepath.Join(filepath.Dir(exe), "smtpctl")
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	for _, dir := range strings.Fields("/usr/sbin /usr/local/sbin /usr/bin") {
		p := filepath.Join(dir, "smtpctl")
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	return ""
}
