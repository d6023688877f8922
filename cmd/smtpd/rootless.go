package main

import (
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"smtpd/parser"
)

// rootlessConf is the configuration of --rootless: a server for one user, on
// loopback, with everything below one folder.
//
//go:embed rootless.conf
var rootlessConf []byte

// useRootless puts spool, socket and mailboxes below the folder of --rootless
// and takes the built-in configuration unless -f names another. Its macros can
// be set with -D: port, dir.
func (f *flags) useRootless(o *parser.Options) error {
	dir, err := filepath.Abs(f.rootless)
	if err != nil {
		return err
	}
	if strings.ContainsAny(dir, "\"\\\n%") {
		return fmt.Errorf("--rootless %s: the name of the folder holds a character that a configuration cannot", dir)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("--rootless: %w", err)
	}
	if o.File == "" {
		o.File, o.Text = "rootless.conf", rootlessConf
	}
	if _, set := o.Macros["mailbox"]; !set {
		o.Macros["mailbox"] = `"` + filepath.Join(dir, "Maildir") + `"`
	}
	if f.spool == "" {
		f.spool = filepath.Join(dir, "spool")
	}
	if f.socket == "" {
		f.socket = filepath.Join(dir, "smtpd.sock")
	}
	return nil
}
