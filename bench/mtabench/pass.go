package main

import (
	"bufio"
	"bytes"
	"io"
	"os"
)

// passPhases are those that cmdPass decides.
var passPhases = []string{"connect", "helo", "ehlo", "starttls", "auth", "mail-from", "rcpt-to", "data", "data-line",
	"rset", "quit", "noop", "commit"}

// cmdPass is a filter program (smtpd-filters(7)) that is told every event, is
// asked at every phase and gives every line back as it came.
func cmdPass([]string) error {
	in, out := bufio.NewReaderSize(os.Stdin, 64<<10), bufio.NewWriterSize(os.Stdout, 64<<10)
	for {
		if in.Buffered() == 0 {
			if err := out.Flush(); err != nil {
				return err
			}
		}
		line, err := in.ReadBytes('\n')
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		// filter|version|time|smtp-in|phase|session|token|parameter
		switch f := bytes.SplitN(line, []byte("|"), 8); {
		case string(line) == "config|ready\n":
			out.WriteString("register|report|smtp-in|*\n")
			for _, p := range passPhases {
				out.WriteString("register|filter|smtp-in|" + p + "\n")
			}
			out.WriteString("register|ready\n")
		case len(f) < 8 || string(f[0]) != "filter":
		case string(f[4]) == "data-line":
			for _, b := range [][]byte{[]byte("filter-dataline"), f[5], f[6]} {
				out.Write(b)
				out.WriteByte('|')
			}
			out.Write(f[7])
		default:
			for _, b := range [][]byte{[]byte("filter-result"), f[5], f[6]} {
				out.Write(b)
				out.WriteByte('|')
			}
			out.WriteString("proceed\n")
		}
	}
}
