package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"

	"smtpd/internal/auth"
)

// encrypt prints the hash of its argument, or of each line of standard input.
func encrypt(p *program, _ context.Context, params []string) error {
	return p.encrypt(auth.Algorithms()[0], params)
}

// encryptWith is encrypt with the algorithm that its first parameter names.
func encryptWith(p *program, _ context.Context, params []string) error {
	a, ok := auth.ParseAlgorithm(params[0])
	if !ok {
		return failed("unknown algorithm %q; known are %v", params[0], auth.Algorithms())
	}
	return p.encrypt(a, params[1:])
}

func (p *program) encrypt(a auth.Algorithm, words []string) error {
	if err := p.becomeNobody(); err != nil {
		return err
	}
	hash := func(password string) error {
		h, err := auth.Hash(password, a)
		if err != nil {
			return failed("%v", err)
		}
		_, err = fmt.Fprintln(p.stdout, h)
		return err
	}
	if len(words) > 0 {
		return hash(words[0])
	}
	in := bufio.NewScanner(p.stdin)
	in.Buffer(nil, auth.MaxPassword+2)
	for in.Scan() {
		if err := hash(in.Text()); err != nil {
			return err
		}
		if err := p.stdout.Flush(); err != nil { // somebody may be typing
			return err
		}
	}
	if errors.Is(in.Err(), bufio.ErrTooLong) {
		return failed("password too long")
	}
	return in.Err()
}
