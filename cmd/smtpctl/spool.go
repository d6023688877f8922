package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"smtpd/internal/ctl"
	"smtpd/queue"
)

// spoolDB is the file without which a folder is no queue.
const spoolDB = "queue.db"

// openSpool opens the queue below the spool folder while no daemon has it. Root
// becomes the user who owns it first, for good: the store admits no one else,
// and whatever it may have to mend keeps its owner.
func (p *program) openSpool(spool string) (spoolReader, error) {
	dir := filepath.Join(spool, "queue")
	st, err := os.Stat(filepath.Join(dir, spoolDB))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, failed("%v", ctl.ErrNotRunning) // and never was
	}
	if err != nil {
		return nil, failed("spool: %v", err)
	}
	if err := p.becomeOwner(st); err != nil {
		return nil, err
	}
	s, err := queue.Open(dir, queue.Options{Now: p.now})
	if err != nil && strings.Contains(err.Error(), "is encrypted") {
		key, kerr := p.askKey()
		if kerr != nil {
			return nil, kerr
		}
		s, err = queue.Open(dir, queue.Options{Now: p.now, Key: key})
	}
	if err != nil {
		return nil, failed("%v", err)
	}
	return s, nil
}

func (p *program) becomeOwner(st fs.FileInfo) error {
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok || p.who.euid != 0 || sys.Uid == 0 {
		return nil
	}
	gid, uid := int(sys.Gid), int(sys.Uid)
	err := errors.Join(syscall.Setgroups([]int{gid}), syscall.Setregid(gid, gid), syscall.Setreuid(uid, uid))
	if err != nil {
		return fmt.Errorf("drop privileges: %w", err)
	}
	p.who = standingNow()
	return nil
}

// askKey reads the key of an encrypted queue from standard input.
func (p *program) askKey() ([]byte, error) {
	fmt.Fprint(p.stderr, "key> ")
	in := bufio.NewScanner(p.stdin)
	if !in.Scan() {
		return nil, failed("no key")
	}
	key := in.Text()
	if len(key) != queue.KeySize {
		return nil, failed("the key has %d characters, not %d", len(key), queue.KeySize)
	}
	return []byte(key), nil
}
