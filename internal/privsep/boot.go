package privsep

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"smtpd/internal/imsg"
)

// bootVar carries a Boot to a child. It holds nothing secret.
const bootVar = "SMTPD_BOOT"

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
	var b Boot
	text := os.Getenv(bootVar)
	tz := os.Getenv("TZ")
	os.Clearenv()
	if tz != "" {
		os.Setenv("TZ", tz)
	}
	if text == "" {
		return b, errors.New("started by hand: this is a part of smtpd that only smtpd starts")
	}
	if err := json.Unmarshal([]byte(text), &b); err != nil {
		return b, fmt.Errorf("start parameters: %w", err)
	}
	return b, nil
}

func (b Boot) environ(role imsg.Role) ([]string, error) {
	text, err := json.Marshal(b)
	if err != nil {
		return nil, err
	}
	env := []string{bootVar + "=" + string(text)}
	if n := cores(role); n > 0 {
		// The second has Go not look for another answer in the control groups.
		env = append(env, "GOMAXPROCS="+strconv.Itoa(n), "GODEBUG=containermaxprocs=0")
	}
	for _, name := range []string{"TZ", "GOTRACEBACK", "GOCOVERDIR"} {
		if v := os.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return env, nil
}
