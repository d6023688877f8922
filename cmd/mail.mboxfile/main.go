// Command mail.mboxfile appends a message to an mbox file: for .forward files,
// scripts and wrappers. It is a face of package mda.
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
	name    = "mail.mboxfile"
	exUsage = 64 // sysexits(3)
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Getenv, os.Stdin, os.Stderr))
}

// run is main with its surroundings as parameters.
func run(ctx context.Context, args []string, env func(string) string, in io.Reader, errw io.Writer) int {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	from := fs.String("f", env("SENDER"), "")
	if err := fs.Parse(args); err != nil || fs.NArg() != 1 {
		fmt.Fprintf(errw, "usage: %s [-f from] file\n", name)
		return exUsage
	}
	cwd, err := os.Getwd()
	if err != nil {
		cwd = env("HOME")
	}
	v := &mda.Delivery{Method: mda.File, Path: mda.Literal(fs.Arg(0)),
		Values: mda.Values{User: env("USER"), Home: cwd, Sender: mail.SplitAddress(*from)}}
	d := mda.New(mda.Options{UID: os.Geteuid(), Report: func(line string) { fmt.Fprintln(errw, line) }})
	defer d.Close()
	return mda.Program(ctx, d, name, v, in, errw)
}
