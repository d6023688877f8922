package enqueue

import (
	"bufio"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"smtpd/internal/mail"
)

// ErrNoName is that no name for this host can be told.
var ErrNoName = errors.New("the name of this host cannot be told")

// MailName is the domain that addresses without one get where no daemon says
// it: the first line of the file mailname in the first of dirs that has one, or
// the host name.
func MailName(dirs []string, hostname func() (string, error)) (string, error) {
	for _, dir := range dirs {
		if name := firstLine(filepath.Join(dir, "mailname")); validHost(name) {
			return name, nil
		}
	}
	if name, err := hostname(); err == nil && validHost(name) {
		return name, nil
	}
	return "", ErrNoName
}

func firstLine(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	s := bufio.NewScanner(f) // bounds a line by itself
	s.Scan()
	return strings.TrimSpace(s.Text())
}

// validHost reports whether name is letters, digits, hyphens and inner dots.
func validHost(name string) bool {
	if name == "" || len(name) > mail.MaxDomain || name[0] == '.' || strings.Contains(name, "..") || strings.HasSuffix(name, ".") {
		return false
	}
	return !strings.ContainsFunc(name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '.'
	})
}
