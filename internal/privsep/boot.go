package privsep

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"smtpd/internal/imsg"
)

// What carries a Boot to a child. It holds nothing secret.
const (
	bootVar = "SMTPD_BOOT" // "UID GID" and the flags
	rootVar = "SMTPD_ROOT"
	dirVar  = "SMTPD_DIR"
)

// channelFD is where a child finds its end of the channel to the parent, or
// for a delivery worker, to mda.
const channelFD = 3

// titlePrefix stands before the role in argv[0], as ps shows it.
const titlePrefix = "smtpd: "

// Boot is what a child must know before its channel speaks.
type Boot struct {
	UID, GID     int    // run as; ignored when Unprivileged
	Root         string // new root folder; empty: none
	Dir          string // where the role's files are, seen from within Root
	Unprivileged bool
	JSONLog      bool
	Store        bool // a delivery worker that only talks to a store over TCP
	Severity     bool // log lines begin with their syslog severity
}

// RoleOf tells from argv[0] whether this process is a child, and which.
func RoleOf(argv0 string) (imsg.Role, bool) {
	name, ok := strings.CutPrefix(argv0, titlePrefix)
	if !ok {
		return 0, false
	}
	return imsg.ParseRole(name)
}

// ReadBoot takes the Boot out of the environment, which is then cleared.
func ReadBoot() (Boot, error) {
	b := Boot{Root: os.Getenv(rootVar), Dir: os.Getenv(dirVar)}
	text := os.Getenv(bootVar)
	tz := os.Getenv("TZ")
	os.Clearenv()
	if tz != "" {
		os.Setenv("TZ", tz)
	}
	words := strings.Fields(text)
	if len(words) < 2 {
		return b, errors.New("started by hand: this is a part of smtpd that only smtpd starts")
	}
	var err1, err2 error
	b.UID, err1 = strconv.Atoi(words[0])
	b.GID, err2 = strconv.Atoi(words[1])
	if err := errors.Join(err1, err2); err != nil {
		return b, fmt.Errorf("start parameters: %w", err)
	}
	flags := b.flags()
	for _, w := range words[2:] {
		i := slices.IndexFunc(flags, func(f flag) bool { return f.word == w })
		if i < 0 {
			return b, fmt.Errorf("start parameters: unknown: %s", w)
		}
		*flags[i].set = true
	}
	return b, nil
}

// flag is a part of a Boot that is or is not.
type flag struct {
	word string
	set  *bool
}

func (b *Boot) flags() []flag {
	return []flag{{"unprivileged", &b.Unprivileged}, {"json", &b.JSONLog}, {"severity", &b.Severity}, {"store", &b.Store}}
}

// environ is what a child finds in its environment. Words and not JSON, which a
// delivery worker would need for nothing else.
func (b Boot) environ(role imsg.Role) []string {
	words := []string{strconv.Itoa(b.UID), strconv.Itoa(b.GID)}
	for _, f := range b.flags() {
		if *f.set {
			words = append(words, f.word)
		}
	}
	env := []string{bootVar + "=" + strings.Join(words, " ")}
	if b.Root != "" {
		env = append(env, rootVar+"="+b.Root)
	}
	if b.Dir != "" {
		env = append(env, dirVar+"="+b.Dir)
	}
	if n := cores(role); n > 0 {
		env = append(env, "GOMAXPROCS="+strconv.Itoa(n))
	}
	for _, name := range []string{"TZ", "GOTRACEBACK", "GOCOVERDIR"} {
		if v := os.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return env
}
