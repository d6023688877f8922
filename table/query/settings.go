package query

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

// maxSettings bounds a configuration file. Ours: there are some 30 keys.
const maxSettings = 1 << 20

// Settings is a configuration file: a key and a value in each line, parted by
// white space or a colon; the value goes to the end of the line. Empty lines
// and those that begin with # do not count. The zero value has no keys.
type Settings struct {
	path   string
	values []setting
}

type setting struct {
	key, value string
	line       int
	used       bool
}

// ReadSettings reads a configuration file. Every mistake in it is reported, as
// "file:line: what".
func ReadSettings(path string) (*Settings, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxSettings+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxSettings {
		return nil, fmt.Errorf("%s: larger than %d octets", path, maxSettings)
	}
	return parseSettings(path, string(text))
}

func parseSettings(path, text string) (*Settings, error) {
	s := &Settings{path: path}
	var errs []error
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if strings.ContainsFunc(line, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
			errs = append(errs, fmt.Errorf("%s:%d: a control character", path, n))
			continue
		}
		key, value := line, ""
		if i := strings.IndexAny(line, " \t:"); i >= 0 {
			key, value = line[:i], strings.TrimLeft(line[i+1:], " \t")
			if line[i] != ':' { // "key : value"
				if rest, ok := strings.CutPrefix(value, ":"); ok && strings.TrimLeft(rest, " \t") != rest {
					value = strings.TrimLeft(rest, " \t")
				}
			}
		}
		switch i := slices.IndexFunc(s.values, func(v setting) bool { return v.key == key }); {
		case value == "":
			errs = append(errs, fmt.Errorf("%s:%d: %q has no value", path, n, key))
		case i >= 0:
			errs = append(errs, fmt.Errorf("%s:%d: %s is already in line %d", path, n, key, s.values[i].line))
		default:
			s.values = append(s.values, setting{key: key, value: value, line: n})
		}
	}
	return s, errors.Join(errs...)
}

// Text is the value of a key, or otherwise when there is none.
func (s *Settings) Text(key, otherwise string) string {
	for i := range s.values {
		if v := &s.values[i]; v.key == key {
			v.used = true
			return v.value
		}
	}
	return otherwise
}

// Default gives a key a value where the file gives it none.
func (s *Settings) Default(key, value string) {
	if !slices.ContainsFunc(s.values, func(v setting) bool { return v.key == key }) {
		s.values = append(s.values, setting{key: key, value: value})
	}
}

// Number is the value of a key as a number from 0 to high.
func (s *Settings) Number(key string, otherwise, high int) (int, error) {
	text := s.Text(key, "")
	if text == "" {
		return otherwise, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > high {
		return 0, s.Mistake(key, fmt.Errorf("%q is not a number from 0 to %d", text, high))
	}
	return n, nil
}

// Mistake says of a key's value that it is wrong, and where it stands.
func (s *Settings) Mistake(key string, err error) error {
	for _, v := range s.values {
		if v.key == key {
			return fmt.Errorf("%s:%d: %s: %w", s.path, v.line, key, err)
		}
	}
	return fmt.Errorf("%s: %s: %w", s.path, key, err)
}

// unused are the keys that nobody asked for, each with its place.
func (s *Settings) unused() []string {
	var lines []string
	for _, v := range s.values {
		if !v.used {
			lines = append(lines, fmt.Sprintf("%s:%d: %s means nothing here", s.path, v.line, v.key))
		}
	}
	return lines
}
