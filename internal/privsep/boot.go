package privsep

import (
	"errors"
	"fmt"
	"os"
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

// The flags.
const (
	flagUnprivileged = "unprivileged"
	flagJSON         = "json"
	flagSeverity     = "severity"
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
	for _, w := range words[2:] {
		switch w {
		case flagUnprivileged:
			b.Unprivileged = true
		case flagJSON:
			b.JSONLog = true
		case flagSeverity:
			b.Severity = true
		default:
			return b, fmt.Errorf("start parameters: unknown: %s", w)
		}
	}
	return b, nil
}

// environ is what a child finds in its environment. Words and not JSON, which a
// delivery worker would need for nothing else.
func (b Boot) environ(role imsg.Role) []string {
	words := []string{strconv.Itoa(b.UID), strconv.Itoa(b.GID)}
	if b.Unprivileged {
		words = append(words, flagUnprivileged)
	}
	if b.JSONLog {
		words = append(words, flagJSON)
	}
	if b.Severity {
		words = append(words, flagSeverity)
	}
	env := []string{bootVar + "=" + strings.Join(words, " ")}
	if b.Root != "" {
		env = append(env, rootVar+"="+b.Root)
	}
	if b.Dir != "" {
		env = append(env, dirVar+"="+b.Dir)
	}
	if n := cores(role); n > 0 {
		// The second has Go not look for another answer in the control groups.
		env = append(env, "GOMAXPROCS="+strconv.Itoa(n), "GODEBUG=containermaxprocs=0")
	}
	for _, name := range []string{"TZ", "GOTRACEBACK", "GOCOVERDIR"} {
		if v := os.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return env
}
