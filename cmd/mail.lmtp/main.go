// Command mail.lmtp hands a message to a store that speaks LMTP: for .forward
// files, scripts and wrappers. It is a face of package mda.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"

	"smtpd/internal/mail"
	"smtpd/mda"
)

const (
	name    = "mail.lmtp"
	exUsage = 64 // sysexits(3)
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Getenv, os.Stdin, os.Stderr))
}

// run is main with its surroundings as parameters.
func run(ctx context.Context, args []string, env func(string) string, in io.Reader, errw io.Writer) int {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	dest := fs.String("d", "", "")
	from := fs.String("f", env("SENDER"), "")
	hello := fs.String("l", "", "")
	rcpt := fs.Bool("r", false, "")
	user := fs.Bool("u", false, "")
	if err := fs.Parse(args); err != nil || *dest == "" || fs.NArg() > 1 || (*rcpt && *user) {
		fmt.Fprintf(errw, "usage: %s -d destination [-f from] [-l name] [-r | -u] [recipient]\n", name)
		return exUsage
	}
	v := &mda.Delivery{Method: mda.LMTP, Path: mda.Literal(*dest), Hello: *hello, RcptTo: *rcpt || fs.NArg() == 1,
		Values: mda.Values{User: env("USER"), Home: env("HOME"), Sender: mail.SplitAddress(*from), Dest: mail.SplitAddress(env("RECIPIENT"))}}
	if fs.NArg() == 1 {
		v.Dest = mail.SplitAddress(fs.Arg(0))
	}
	if *from == "<>" || *from == "MAILER-DAEMON" {
		v.Sender = mail.Address{}
	}
	d := mda.New(mda.Options{UID: os.Geteuid()})
	defer d.Close()
	return mda.Program(ctx, d, name, v, in, errw)
}
