package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"smtpd/internal/auth"
	"smtpd/internal/config"
	"smtpd/internal/ctl"
	"smtpd/internal/imsg"
	"smtpd/internal/privsep"
	"smtpd/internal/proc/parent"
	"smtpd/parser"
)

// emptyDir is the root folder of the processes that need no files.
const emptyDir = "/var/empty"

// passwordChecks bounds the passwords of system users that are checked at a
// time: the hashes are made to be slow.
const passwordChecks = 2

// parse reads the configuration for a daemon that keeps it: what checking its
// tables took, which may be a hundred times as much, goes back to the system.
func parse(ctx context.Context, po parser.Options) (*config.Config, parser.Diagnostics) {
	defer debug.FreeOSMemory()
	return parser.Parse(ctx, po)
}

// start runs the daemon: here with -d or -F, in the background otherwise.
func start(ctx context.Context, f *flags, po parser.Options, stderr io.Writer) int {
	began := time.Now()
	privsep.KeepDescriptors()
	background := !f.debug && !f.foreground
	detached := background && os.Getenv(backgroundVar) != ""
	tell := func(line string) {
		if line != "" {
			fmt.Fprintln(stderr, line)
		}
	}
	if detached {
		tell = backgroundPipe()
		if abs, err := filepath.Abs(po.File); err == nil {
			po.File = abs // it is read again, from another folder
		}
	}
	fail := func(err error) int {
		tell("smtpd: " + err.Error())
		return 1
	}
	po.Given = os.Getenv("LISTEN_FDS") != ""
	po.Wait = func(string) bool { return true } // nobody is there when the system starts
	conf, diags := parse(ctx, po)
	printDiagnostics(stderr, diags)
	if conf == nil || diags.Failed() {
		if detached {
			tell("smtpd: the configuration has changed meanwhile, and has errors: see smtpd -n")
		}
		return 1
	}
	if err := askQueueKey(&conf.Queue, detached, os.Stdin); err != nil {
		return fail(err)
	}
	o, err := f.parentOptions(conf, po, stderr)
	if err != nil {
		return fail(err)
	}
	o.Began = began
	if background && !detached {
		return detach(conf, stderr)
	}
	if detached {
		if err := os.Chdir("/"); err != nil {
			return fail(err)
		}
	}
	o.Started = func() { tell("") }

	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, syscall.SIGHUP)
	useCores(&o)
	if err := parent.Run(ctx, o, reload); err != nil {
		return fail(err)
	}
	return 0
}

// useCores makes the parent use few cores but for what it computes.
func useCores(o *parent.Options) {
	cores, parse := privsep.UseCores(), o.Parse
	o.Passwords.Around = cores.All
	o.Parse = func(ctx context.Context) (conf *config.Config, err error) {
		cores.All(func() { conf, err = parse(ctx) })
		return conf, err
	}
}

// parentOptions puts together what the parent is told.
func (f *flags) parentOptions(conf *config.Config, po parser.Options, stderr io.Writer) (parent.Options, error) {
	// Later somebody is: what is waited for is what was waited for at the start.
	waits := map[string]bool{}
	for _, p := range conf.Pending {
		waits[p.Listener.Name] = true
	}
	po.Wait = func(word string) bool { return waits[word] }
	conf.Generation = 1
	o := parent.Options{
		Config: conf, Spool: f.spool, Socket: f.socket, Empty: emptyDir,
		Unprivileged: po.Unprivileged, Version: ctl.Version, Smtpctl: smtpctlPath(),
		Stderr: stderr, Now: time.Now,
	}
	var err error
	if o.Passwords, err = auth.NewPool(passwordChecks); err != nil {
		return o, err
	}
	asked := conf.Queue
	o.Parse = func(ctx context.Context) (*config.Config, error) {
		conf, diags := parse(ctx, po)
		if conf == nil || diags.Failed() {
			var lines []string
			for _, d := range diags {
				lines = append(lines, d.String())
			}
			return nil, errors.New(strings.Join(lines, "\n"))
		}
		for _, d := range diags {
			conf.Warnings = append(conf.Warnings, d.String())
		}
		return conf, keepQueueKey(&conf.Queue, &asked)
	}
	o.Renew = func(ctx context.Context, conf *config.Config, files bool) (*config.Config, error) {
		return parser.Renew(ctx, po, conf, files)
	}
	o.Sockets = givenSockets()
	if o.Spool == "" {
		o.Spool = ctl.Spool
	}
	if o.Socket == "" {
		o.Socket = ctl.Socket
	}
	// The processes do not share a working folder.
	for _, path := range []*string{&o.Spool, &o.Socket} {
		if *path, err = filepath.Abs(*path); err != nil {
			return o, err
		}
	}
	o.Switches = imsg.Switches{Verbose: f.verbose, Trace: f.trace}
	for _, p := range f.paused {
		switch p {
		case "mta":
			o.Switches.PauseMTA = true
		case "mda":
			o.Switches.PauseMDA = true
		case "smtp":
			o.Switches.PauseSMTP = true
		}
	}
	o.Log, o.Form, o.Lines = f.logger(stderr)
	o.Notify, o.Watchdog = serviceManager()
	if o.Unprivileged {
		return o, nil
	}
	if o.Daemon.UID, o.Daemon.GID, err = identity(ctl.DaemonUser); err != nil {
		return o, err
	}
	o.QueueUser.UID, o.QueueUser.GID, err = identity(ctl.QueueUser)
	return o, err
}

// backgroundVar marks the process that detach started.
const backgroundVar = "SMTPD_BACKGROUND"

// detach starts the daemon in the background and waits until it works or says
// why not: its last word is this process's.
func detach(conf *config.Config, stderr io.Writer) int {
	exe, err := os.Executable()
	if err != nil {
		fmt.Fprintf(stderr, "smtpd: %v\n", err)
		return 1
	}
	r, w, err := os.Pipe()
	if err != nil {
		fmt.Fprintf(stderr, "smtpd: %v\n", err)
		return 1
	}
	defer r.Close()
	cmd := exec.Command(exe, os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), backgroundVar+"=1")
	cmd.ExtraFiles = []*os.File{w}
	if conf.Queue.AskKey != "" {
		cmd.Stdin = strings.NewReader(string(conf.Queue.EncryptionKey) + "\n")
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		fmt.Fprintf(stderr, "smtpd: %v\n", err)
		return 1
	}
	line, err := bufio.NewReader(r).ReadString('\n')
	if err == nil && line == "\n" {
		return 0
	}
	fmt.Fprint(stderr, line)
	return 1
}

// backgroundPipe is the way back to detach; the first word ends it.
func backgroundPipe() func(string) {
	w := os.NewFile(3, "status")
	syscall.CloseOnExec(3)
	os.Unsetenv(backgroundVar)
	return func(line string) {
		if w != nil {
			fmt.Fprintln(w, line)
			w.Close()
			w = nil
		}
	}
}
