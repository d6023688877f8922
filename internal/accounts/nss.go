package accounts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// Bounds of questions to the name service switch.
const (
	getentTime  = 5 * time.Second // ours: a directory that takes longer is away
	getentMax   = 8               // ours: questions at a time
	getentWords = 64 << 10        // ours: octets of an answer
	getentNone  = 2               // getent(1): the key is not there
	getentTrust = 24 * time.Hour  // ours: for so long a name that was found vouches for the directory
)

var errNameService = errors.New("the name service gives no answer")

// nameService asks for accounts that are in no file of this host: a directory,
// by way of getent(1), as a program without the C library cannot load the
// modules of nsswitch.conf(5). It is safe for concurrent use.
type nameService struct {
	getent []string // where the program may be
	conf   string   // nsswitch.conf
	passwd string
	homed  string // there is one while systemd-homed knows accounts
	slots  chan struct{}

	mu    sync.Mutex
	known map[string]found // by database the name found last: while it is not, the directory is away
	now   func() time.Time
}

type found struct {
	name string
	when time.Time
}

func newNameService(now func() time.Time) *nameService {
	return &nameService{getent: []string{"/usr/bin/getent", "/bin/getent"}, conf: "/etc/nsswitch.conf", passwd: "/etc/passwd",
		homed: "/run/systemd/userdb/io.systemd.Home", slots: make(chan struct{}, getentMax), known: map[string]found{}, now: now}
}

// asked reports whether there may be accounts elsewhere: nsswitch.conf names
// more than files, or passwd has a line that begins with '+'.
func (n *nameService) asked() bool {
	text, err := os.ReadFile(n.conf)
	if err != nil {
		text, err = os.ReadFile(n.passwd)
		return err == nil && strings.Contains("\n"+string(text), "\n+")
	}
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		db, sources, _ := strings.Cut(line, ":")
		if strings.TrimSpace(db) != "passwd" {
			continue
		}
		for _, word := range strings.Fields(sources) {
			switch {
			case word == "files", strings.HasPrefix(word, "["):
			case word == "systemd": // on every system with it, and for nothing without homed
				if _, err := os.Stat(n.homed); err == nil {
					return true
				}
			default:
				return true
			}
		}
	}
	return false
}

// user finds an account.
func (n *nameService) user(ctx context.Context, name string) (User, error) {
	line, err := n.entry(ctx, "passwd", name)
	if err != nil || line == "" {
		return User{Name: name}, err
	}
	f := strings.Split(line, ":")
	if len(f) < 7 {
		return User{}, fmt.Errorf("user %s: %w", name, errNameService)
	}
	return newUser(f[0], f[2], f[3], f[4], f[5])
}

// entry is the line of a database for a name; empty: it has none. That is not
// believed while a name that was found before is not found either: getent does
// not tell a directory that is away from one that says no.
func (n *nameService) entry(ctx context.Context, db, name string) (string, error) {
	if !entryName(name) {
		return "", nil
	}
	ctx, cancel := context.WithTimeout(ctx, getentTime)
	defer cancel()
	select {
	case n.slots <- struct{}{}:
		defer func() { <-n.slots }()
	case <-ctx.Done():
		return "", errNameService
	}
	line, err := n.ask(ctx, db, name)
	if err != nil {
		return "", err
	}
	n.mu.Lock()
	known := n.known[db]
	if line != "" {
		n.known[db] = found{name, n.now()}
	}
	n.mu.Unlock()
	if line != "" || known.name == "" || n.now().Sub(known.when) > getentTrust {
		return line, nil
	}
	if still, err := n.ask(ctx, db, known.name); err != nil || still == "" {
		return "", errNameService
	}
	return "", nil
}

// entryName reports a name that an account can have: getent takes it for
// neither an option nor a number, and a line for no other.
func entryName(name string) bool {
	if name == "" || len(name) > 256 || strings.HasPrefix(name, "-") || strings.HasPrefix(name, "+") ||
		strings.Trim(name, "0123456789") == "" {
		return false
	}
	return !strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == ':' || r == ',' || r == '/' || r == 0x7f })
}

// ask runs getent once.
func (n *nameService) ask(ctx context.Context, db, name string) (string, error) {
	program := ""
	for _, path := range n.getent {
		if _, err := os.Stat(path); err == nil {
			program = path
			break
		}
	}
	if program == "" {
		return "", nil // a system without it: nothing but the files
	}
	cmd := exec.CommandContext(ctx, program, db, name)
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	cmd.WaitDelay = time.Second
	var out strings.Builder
	cmd.Stdout = &limited{&out, getentWords}
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == getentNone {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("%w: %w", errNameService, err)
	}
	line, _, _ := strings.Cut(out.String(), "\n")
	got, _, ok := strings.Cut(line, ":")
	if !ok || !strings.EqualFold(got, name) { // directories may not tell case apart
		return "", nil
	}
	return line, nil
}

// limited takes so many octets and no more.
type limited struct {
	to   *strings.Builder
	left int
}

// Write implements io.Writer.
func (l *limited) Write(b []byte) (int, error) {
	if len(b) > l.left {
		return 0, errNameService
	}
	l.left -= len(b)
	return l.to.Write(b)
}
