package table

import (
	"errors"
	"fmt"
	"strings"

	"smtpd/internal/config"
)

// LineError is a mistake at a line of a table file.
type LineError struct {
	File string
	Line int // 1-based
	Err  error
}

// Error is "FILE:LINE: text".
func (e *LineError) Error() string { return fmt.Sprintf("%s:%d: %v", e.File, e.Line, e.Err) }

// Unwrap gives the cause.
func (e *LineError) Unwrap() error { return e.Err }

// Mistakes in the text of a table.
var (
	errMapEntry = errors.New("invalid map entry")
	errEntry    = errors.New("invalid entry")
	errLong     = errors.New("the entry is too long")
	errControl  = errors.New("the entry holds a control character")
)

// forceList is the comment that makes a table file a list whatever its lines
// look like.
const forceList = "@list"

// parseText reads the text of a table file, one entry a line, and calls add
// for each with the key and, in a mapping, its value. It tells the
// shape: the first entry decides unless a comment "# @list" comes before it; a
// file without entries is a mapping. name is for error messages.
func parseText(name, text string, add func(key, value string)) (config.TableType, error) {
	typ := config.TableType("")
	forced := false
	for n := 1; text != ""; n++ {
		var line string
		line, text, _ = strings.Cut(text, "\n")
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		if line[0] == '#' {
			if typ == "" && strings.TrimSpace(line[1:]) == forceList {
				typ, forced = config.TableList, true
			}
			continue
		}
		key, value, err := line, "", error(nil)
		if !forced {
			key, value, err = SplitEntry(line, typ == config.TableMapping)
		}
		if err == nil && typ == "" {
			typ = typeOf(value == "")
		}
		if err == nil && (value == "") != (typ == config.TableList) {
			err = errMapEntry
		}
		if err == nil {
			err = checkEntry(key, value)
		}
		if err != nil {
			return "", &LineError{name, n, err}
		}
		add(key, value)
	}
	if typ == "" {
		typ = config.TableMapping
	}
	return typ, nil
}

// SplitEntry cuts a line without leading and trailing blanks at the first blank
// or colon; a key in brackets goes up to the bracket that closes. An IPv6 address
// or network is not cut, unless lines before it have shown a mapping.
func SplitEntry(line string, isMapping bool) (key, value string, err error) {
	if !isMapping && strings.Count(line, ":") > 1 {
		if _, err := parseNet(line); err == nil {
			return line, "", nil
		}
	}
	end := strings.IndexAny(line, " \t:")
	if line[0] == '[' {
		end = strings.IndexByte(line, ']') + 1
		if end == 0 {
			return "", "", errMapEntry
		}
		if end < len(line) && !strings.ContainsRune(" \t:", rune(line[end])) {
			return "", "", errMapEntry
		}
	}
	if end < 0 || end == len(line) {
		return line, "", nil
	}
	if end == 0 {
		return "", "", errMapEntry
	}
	// Colons with a blank behind them part key and value too; ":include:" begins
	// with one that belongs to it.
	key, value = line[:end], strings.TrimLeft(line[end+1:], " \t")
	for strings.HasPrefix(value, ":") && (len(value) == 1 || isBlank(value[1])) {
		value = strings.TrimLeft(value[1:], " \t")
	}
	return key, value, nil
}

func isBlank(c byte) bool { return c == ' ' || c == '\t' }

func checkEntry(key, value string) error {
	switch {
	case len(key) > MaxKey || len(value) > MaxValue:
		return errLong
	case hasControl(key) || hasControl(strings.ReplaceAll(value, "\t", " ")):
		return errControl
	}
	return nil
}
