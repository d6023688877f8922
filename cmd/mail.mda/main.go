// Command mail.mda gives a message to a command line on its standard input: for
// scripts and wrappers. It is a face of package mda, so the command has a time
// limit and a session of its own.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"smtpd/internal/mail"
	"smtpd/mda"
)

const (
	name    = "mail.mda"
	exUsage = 64 // sysexits(3)
	// timeLimit is that of every delivery.
	timeLimit = 300 * time.Second
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Getenv, os.Stdin, os.Stderr))
}

// run is main with its surroundings as parameters.
func run(ctx context.Context, args []string, env func(string) string, in io.Reader, errw io.Writer) int {
	if len(args) != 1 || strings.TrimSpace(args[0]) == "" || strings.HasPrefix(args[0], "-") {
		fmt.Fprintf(errw, "usage: %s command\n", name)
		return exUsage
	}
	v := &mda.Delivery{Method: mda.Command, Command: mda.Literal(args[0]), Values: mda.Values{User: env("USER"), Home: env("HOME"),
		Sender: mail.SplitAddress(env("SENDER")), Dest: mail.SplitAddress(env("RECIPIENT")),
		Rcpt: mail.SplitAddress(env("ORIGINAL_RECIPIENT"))}}
	if v.Rcpt.IsNull() && env("LOCAL") != "" {
		v.Rcpt = mail.Address{User: env("LOCAL"), Domain: env("DOMAIN")}
	}
	if tag := env("EXTENSION"); tag != "" {
		// The delimiter is not in the environment: it is what stands before the tag.
		if user, ok := strings.CutSuffix(v.Dest.User, tag); ok && user != "" {
			v.Delim = user[len(user)-1:]
		}
	}
	ctx, cancel := context.WithTimeout(ctx, timeLimit)
	defer cancel()
	d := mda.New(mda.Options{UID: os.Geteuid()})
	defer d.Close()
	return mda.Program(ctx, d, name, v, in, errw)
}
