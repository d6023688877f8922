// Command mail.local appends a message to the system mailboxes of users: for
// scripts, and for root. It is a face of package mda; started by root it becomes
// each user in turn, by starting itself again.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"runtime"
	"strconv"
	"syscall"

	"smtpd/internal/mail"
	"smtpd/mda"
)

const (
	name = "mail.local"
	// Of sysexits(3).
	exUsage    = 64
	exNoUser   = 67
	exOSErr    = 71
	exTempfail = 75
	exNoPerm   = 77
	// spoolVar names another folder of mailboxes, for tests; it counts only
	// where the program has no more rights than its caller.
	spoolVar = "MAIL_LOCAL_SPOOL"
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Getenv, os.Stdin, os.Stderr))
}

// run is main with its surroundings as parameters. Of several failures it gives
// the last.
func run(ctx context.Context, args []string, env func(string) string, in io.Reader, errw io.Writer) int {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	from := fs.String("f", "", "")
	if err := fs.Parse(args); err != nil || fs.NArg() == 0 {
		fmt.Fprintf(errw, "usage: %s [-f from] user ...\n", name)
		return exUsage
	}
	if *from == "" {
		*from = sender(env)
	}
	text, done, err := mda.ReadText(in)
	if err != nil {
		fmt.Fprintf(errw, "%s: %v\n", name, err)
		return exTempfail
	}
	defer done()
	spool := env(spoolVar)
	if spool == "" || os.Getuid() != os.Geteuid() || os.Getgid() != os.Getegid() {
		spool = mda.DefaultSpoolDir
	}
	status := 0
	for _, u := range fs.Args() {
		if s := deliver(ctx, u, *from, spool, text, errw); s != 0 {
			status = s
		}
	}
	return status
}

// sender is who the mail is from when nobody says so: who runs this.
func sender(env func(string) string) string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return env("LOGNAME")
}

func deliver(ctx context.Context, who, from, spool string, text mda.Text, errw io.Writer) int {
	u, err := user.Lookup(who)
	if err != nil {
		fmt.Fprintf(errw, "%s: %s: no such user\n", name, mail.Clean(who, 64))
		return exNoUser
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err1 != nil || err2 != nil {
		fmt.Fprintf(errw, "%s: %s: not an account of a Unix system\n", name, who)
		return exOSErr
	}
	switch me := os.Geteuid(); {
	case me == uid:
	case me == 0:
		return become(ctx, uid, gid, who, from, spool, text, errw)
	default:
		fmt.Fprintf(errw, "%s: %s: only root delivers to others\n", name, who)
		return exNoPerm
	}
	d := mda.New(mda.Options{UID: uid, SpoolDir: spool, Report: func(line string) { fmt.Fprintln(errw, line) }})
	defer d.Close()
	v := &mda.Delivery{Method: mda.Mbox, Values: mda.Values{User: u.Username, Home: u.HomeDir, Sender: mail.SplitAddress(from)}}
	if from == "<>" || from == "MAILER-DAEMON" {
		v.Sender = mail.Address{}
	}
	return mda.Program(ctx, d, name, v, textReader(text), errw)
}

func textReader(t mda.Text) io.Reader {
	if t.File == nil {
		return bytes.NewReader(t.Data)
	}
	return io.NewSectionReader(t.File, 0, t.Size)
}

// become starts this program again as a user, who may also be in the group that
// owns the folder of mailboxes.
func become(ctx context.Context, uid, gid int, who, from, spool string, text mda.Text, errw io.Writer) int {
	exe, err := os.Executable()
	if err != nil {
		fmt.Fprintf(errw, "%s: %v\n", name, err)
		return exOSErr
	}
	if runtime.GOOS == "linux" {
		exe = "/proc/self/exe" // the very file, even when it has been replaced
	}
	groups := []uint32{uint32(gid)}
	if g, ok := mda.SpoolGroup(spool); ok {
		groups = append(groups, uint32(g))
	}
	cmd := exec.CommandContext(ctx, exe, "-f", from, who)
	cmd.Args[0] = name
	cmd.Env = []string{spoolVar + "=" + spool}
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stderr = textReader(text), errw
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid), Groups: groups}}
	err = cmd.Run()
	if cmd.ProcessState != nil && cmd.ProcessState.Exited() {
		return cmd.ProcessState.ExitCode()
	}
	fmt.Fprintf(errw, "%s: %v\n", name, err)
	return exTempfail
}
