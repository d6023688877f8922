package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"smtpd/internal/config"
)

// queueKeyLen is the length of the key of queue encryption, in octets.
const queueKeyLen = 32

var (
	errQueueKey = errors.New("invalid key for queue encryption: it must have 32 characters")
	errNoTTY    = errors.New("queue encryption: the key is to be typed, and there is no terminal; " +
		`give it on the standard input (queue encryption "stdin") or in the file`)
	errKeyLater = errors.New("queue encryption: the key is asked for when the daemon starts, restart it")
)

// askQueueKey reads the key that the configuration does not hold: from stdin, or
// from the terminal, where it does not show. In the background it always comes
// from stdin, where the process that was started by hand puts it.
func askQueueKey(q *config.Queue, background bool, stdin io.Reader) error {
	if q.AskKey == "" {
		return nil
	}
	read := func() (string, error) { return firstLine(stdin) }
	if q.AskKey == "prompt" && !background {
		read = typedKey
	}
	key, err := read()
	if err != nil {
		return err
	}
	if len(key) != queueKeyLen {
		return errQueueKey
	}
	q.EncryptionKey = config.Secret(key)
	return nil
}

// keepQueueKey gives a configuration read again the key that was asked for at
// start.
func keepQueueKey(q, before *config.Queue) error {
	if q.AskKey == "" {
		return nil
	}
	if before.AskKey == "" || before.EncryptionKey == "" {
		return errKeyLater
	}
	q.EncryptionKey = before.EncryptionKey
	return nil
}

// firstLine reads a line, of which no more than a key and its line end counts.
func firstLine(r io.Reader) (string, error) {
	line, err := bufio.NewReader(io.LimitReader(r, 4*queueKeyLen)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("queue encryption: read the key: %w", err)
	}
	return strings.TrimRight(line, "\r\n"), nil
}

// typedKey asks at the terminal.
func typedKey() (string, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return "", errNoTTY
	}
	defer tty.Close()
	restore, err := noEcho(int(tty.Fd())) // before anybody is asked to type
	if err != nil {
		return "", fmt.Errorf("queue encryption: terminal: %w", err)
	}
	defer fmt.Fprintln(tty)
	defer restore()
	fmt.Fprint(tty, "queue key: ")
	return firstLine(tty)
}

// noEcho keeps what is typed from being shown, until restore.
func noEcho(fd int) (restore func(), err error) {
	before, err := unix.IoctlGetTermios(fd, getTermios)
	if err != nil {
		return nil, err
	}
	silent := *before
	silent.Lflag &^= unix.ECHO
	silent.Lflag |= unix.ICANON | unix.ISIG
	if err := unix.IoctlSetTermios(fd, setTermios, &silent); err != nil {
		return nil, err
	}
	return func() { _ = unix.IoctlSetTermios(fd, setTermios, before) }, nil // the terminal may be gone
}
