// Command mail.maildir puts a message into a Maildir: for .forward files,
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
	name    = "mail.maildir"
	exUsage = 64 // sysexits(3)
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Getenv, os.Stdin, os.Stderr))
}

// run is main with its surroundings as parameters.
func run(ctx context.Context, args []string, env func(string) string, in io.Reader, errw io.Writer) int {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	junk := fs.Bool("j", false, "")
	if err := fs.Parse(args); err != nil || fs.NArg() > 1 {
		fmt.Fprintf(errw, "usage: %s [-j] [path]\n", name)
		return exUsage
	}
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	v := &mda.Delivery{Method: mda.Maildir, Path: mda.Literal(fs.Arg(0)), Junk: *junk, Hostname: host,
		Values: mda.Values{User: env("USER"), Home: env("HOME")}}
	if tag := env("EXTENSION"); tag != "" {
		v.Delim, v.Dest = "+", mail.Address{User: "+" + tag}
	}
	d := mda.New(mda.Options{UID: os.Geteuid(), Report: func(line string) { fmt.Fprintln(errw, line) }})
	defer d.Close()
	return mda.Program(ctx, d, name, v, in, errw)
}
