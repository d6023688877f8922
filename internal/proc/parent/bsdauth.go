package parent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Where BSD authentication is described: login.conf(5).
const (
	bsdPrograms = "/usr/libexec/auth/login_" // and the style
	bsdClasses  = "/etc/login.conf"
	bsdClassDir = "/etc/login.conf.d" // a file for a class, in place of its part of the above
	bsdClass    = "default"
	bsdStyle    = "passwd"
	bsdType     = "auth-smtp" // the capability asked for before "auth"

	bsdTime  = 30 * time.Second // ours: styles may ask a server
	bsdWords = 4096             // ours: octets of an answer
	bsdMax   = 16               // ours: programs at a time
	bsdDepth = 10               // ours: classes that refer to one another
)

var errStyle = errors.New("not an authentication style")

// bsdAuth checks passwords as auth_userokay(3) of OpenBSD does: a program for
// the authentication style of the account's login class is given the password
// on descriptor 3 and answers there. It is safe for concurrent use.
type bsdAuth struct {
	programs          string
	classes, classDir string
	slots             chan struct{}
}

func newBSDAuth() *bsdAuth {
	return &bsdAuth{programs: bsdPrograms, classes: bsdClasses, classDir: bsdClassDir, slots: make(chan struct{}, bsdMax)}
}

// check reports whether a password is right. An error means that this cannot be
// told.
func (b *bsdAuth) check(ctx context.Context, user, class, password string) (bool, error) {
	if user == "" || strings.HasPrefix(user, "-") || strings.ContainsRune(password, 0) {
		return false, nil
	}
	if class == "" {
		class = bsdClass
	}
	style, err := b.style(class)
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, bsdTime)
	defer cancel()
	select {
	case b.slots <- struct{}{}:
		defer func() { <-b.slots }()
	case <-ctx.Done():
		return false, ctx.Err()
	}
	words, err := b.run(ctx, style, user, class, password)
	if err != nil {
		return false, fmt.Errorf("login_%s: %w", style, err)
	}
	return authorized(words), nil
}

// style is how a login class authenticates: the first that it names.
func (b *bsdAuth) style(class string) (string, error) {
	for _, key := range []string{bsdType, "auth"} {
		list, err := b.capability(class, key)
		if err != nil {
			return "", err
		}
		style, _, _ := strings.Cut(list, ",")
		if style = strings.TrimSpace(style); style == "" {
			continue
		}
		if strings.Trim(style, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") != "" {
			return "", fmt.Errorf("%w: %q", errStyle, style)
		}
		return style, nil
	}
	return bsdStyle, nil
}

// run has the program of a style check a password. Descriptor 3 is a socket: the
// program reads a challenge, which is empty, and the answer to it, each ended by
// a NUL, and writes lines.
func (b *bsdAuth) run(ctx context.Context, style, user, class, password string) (string, error) {
	syscall.ForkLock.RLock()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		unix.CloseOnExec(fds[0])
		unix.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return "", err
	}
	near, far := os.NewFile(uintptr(fds[0]), "back channel"), os.NewFile(uintptr(fds[1]), "back channel")
	defer near.Close()
	cmd := exec.CommandContext(ctx, b.programs+style, "-s", "response", user, class)
	cmd.Args[0] = style
	cmd.Dir, cmd.Env = "/", []string{"PATH=/bin:/usr/bin", "SHELL=/bin/sh"}
	cmd.ExtraFiles = []*os.File{far}
	err = cmd.Start()
	far.Close()
	if err != nil {
		return "", err
	}
	stop := context.AfterFunc(ctx, func() { unix.Shutdown(fds[0], unix.SHUT_RDWR) })
	_, werr := io.WriteString(near, "\x00"+password+"\x00")
	words, rerr := io.ReadAll(io.LimitReader(near, bsdWords))
	stop()
	if len(words) == bsdWords {
		_ = cmd.Process.Kill() // it says too much to be heard out
	}
	if err := cmd.Wait(); err != nil {
		if _, ended := errors.AsType[*exec.ExitError](err); ended && ctx.Err() == nil {
			return "", nil // so do they say no
		}
		return "", err
	}
	return string(words), errors.Join(werr, rerr)
}

// authorized reads the lines of a program: "authorize" lets in unless "reject"
// comes too.
func authorized(words string) bool {
	ok := false
	for line := range strings.Lines(words) {
		f := strings.Fields(line)
		switch {
		case len(f) == 0:
		case strings.EqualFold(f[0], "reject"):
			return false
		case strings.EqualFold(f[0], "authorize"):
			ok = len(f) == 1 || strings.EqualFold(f[1], "secure") || strings.EqualFold(f[1], "root")
		}
	}
	return ok
}

// capability is the value of a capability of a class, as getcap(3) finds it;
// empty: it has none.
func (b *bsdAuth) capability(class, key string) (string, error) {
	if strings.ContainsAny(class, "/|:.\x00") {
		return "", nil
	}
	text, err := os.ReadFile(b.classDir + "/" + class)
	if err != nil {
		if text, err = os.ReadFile(b.classes); errors.Is(err, os.ErrNotExist) {
			return "", nil
		}
	}
	if err != nil {
		return "", err
	}
	other := func(name string) (string, bool) {
		if own, err := os.ReadFile(b.classDir + "/" + name); err == nil && !strings.Contains(name, "/") {
			if f, ok := record(string(own), name); ok {
				return f, ok
			}
		}
		all, err := os.ReadFile(b.classes)
		if err != nil {
			return "", false
		}
		return record(string(all), name)
	}
	first, ok := record(string(text), class)
	if !ok {
		if first, ok = other(class); !ok {
			return "", nil
		}
	}
	return find(first, key, other, bsdDepth), nil
}

// find looks for a capability in a record and in those that it refers to.
func find(fields, key string, other func(string) (string, bool), depth int) string {
	for f := range strings.SplitSeq(fields, ":") {
		f = strings.TrimSpace(f)
		name, value, _ := strings.Cut(f, "=")
		switch {
		case f == key+"@": // taken back
			return ""
		case name == key:
			return value
		case name == "tc" && depth > 0:
			if next, ok := other(value); ok {
				if v := find(next, key, other, depth-1); v != "" {
					return v
				}
			}
		}
	}
	return ""
}

// record is what follows the names of a record in a capability file.
func record(text, name string) (fields string, ok bool) {
	text = strings.ReplaceAll(text, "\\\n", "")
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if line == "" || line[0] == '#' || line[0] == ' ' || line[0] == '\t' {
			continue
		}
		names, rest, _ := strings.Cut(line, ":")
		for n := range strings.SplitSeq(names, "|") {
			if n == name {
				return rest, true
			}
		}
	}
	return "", false
}
