package parser

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
)

// maxDiagnostics bounds what one run reports. Ours: nobody reads on.
const maxDiagnostics = 10000

// Diagnostic is one thing to tell about a configuration. Line is 0 when it
// concerns no line.
type Diagnostic struct {
	File    string
	Line    int
	Warning bool
	Text    string
}

// String is "FILE:LINE: message" or "FILE:LINE: warning: message"; without a
// line the message alone.
func (d Diagnostic) String() string {
	text := d.Text
	if d.Warning {
		text = "warning: " + text
	}
	if d.Line == 0 {
		return text
	}
	return fmt.Sprintf("%s:%d: %s", d.File, d.Line, text)
}

// Diagnostics are in the order of the configuration, included files in their
// places, those without a line last.
type Diagnostics []Diagnostic

// Failed reports whether any of them is an error.
func (d Diagnostics) Failed() bool {
	return slices.ContainsFunc(d, func(x Diagnostic) bool { return !x.Warning })
}

// noPos is the position of what concerns no line.
func noPos() pos { return pos{-1, 0} }

type placed struct {
	pos  pos
	diag Diagnostic
}

// diagList collects diagnostics by position.
type diagList struct {
	sources []source
	list    []placed
	errors  int

	suggested int // mistakes for which a near name was looked for
}

func (l *diagList) errorf(at pos, format string, args ...any) {
	l.errors++
	l.add(at, false, format, args...)
}

func (l *diagList) warnf(at pos, format string, args ...any) {
	l.add(at, true, format, args...)
}

func (l *diagList) add(at pos, warning bool, format string, args ...any) {
	if len(l.list) >= maxDiagnostics {
		return
	}
	d := Diagnostic{Warning: warning, Text: printable(fmt.Sprintf(format, args...))}
	if at.file >= 0 {
		d.File, d.Line = l.sources[at.file].name, int(at.line)
	}
	l.list = append(l.list, placed{at, d})
}

// sorted gives the list in file order, without repetitions: one line of an old
// file may stand for several rules.
func (l *diagList) sorted() Diagnostics {
	slices.SortStableFunc(l.list, func(a, b placed) int {
		return slices.Compare(l.place(a.pos), l.place(b.pos))
	})
	seen := make(map[Diagnostic]bool, len(l.list))
	var out Diagnostics
	for _, p := range l.list {
		if !seen[p.diag] {
			seen[p.diag] = true
			out = append(out, p.diag)
		}
	}
	return out
}

// place is where a line stands in the whole: the lines of the includes that
// lead to it, then its own. What has no line comes last.
func (l *diagList) place(p pos) []int32 {
	if p.file < 0 {
		return []int32{1<<31 - 1}
	}
	var at []int32
	for {
		at = append(at, p.line)
		src := l.sources[p.file]
		if src.parent < 0 {
			break
		}
		p = pos{src.parent, src.line}
	}
	slices.Reverse(at)
	return at
}

// printable keeps what a file holds from disturbing a terminal or a log.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}

// cause is what went wrong with a file, without its name.
func cause(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}
