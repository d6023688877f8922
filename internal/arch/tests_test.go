package arch

import (
	"fmt"
	"go/ast"
	"path"
	"regexp"
	"slices"
	"strings"
)

// sleeping refuses time.Sleep in tests: they wait for events. In the bubble of
// testing/synctest no time passes, so a file that uses it may.
func sleeping(t *tree) []string {
	var found []string
	for _, f := range t.files {
		if !f.test || slices.ContainsFunc(f.ast.Imports, func(i *ast.ImportSpec) bool { return i.Path.Value == `"testing/synctest"` }) {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok && s.Sel.Name == "Sleep" {
				if x, ok := s.X.(*ast.Ident); ok && x.Name == "time" {
					found = append(found, t.at(n)+": a test sleeps")
				}
			}
			return true
		})
	}
	return found
}

const goodSleeping = `
== a/a_test.go
package a
import ("time"; "testing/synctest")
var _ = synctest.Wait
func f() { time.Sleep(1) }
== a/a.go
package a
import "time"
func g() { time.Sleep(1) }
`

var rePage = regexp.MustCompile(`\.[1-9]$`)

// manuals wants a page for every program, in its folder and with its name.
func manuals(t *tree) []string {
	var found []string
	for _, dir := range sorted(t.packages()) {
		name, ok := strings.CutPrefix(dir, "cmd/")
		if !ok || strings.Contains(name, "/") {
			continue
		}
		if !slices.ContainsFunc(t.other, func(p string) bool {
			return path.Dir(p) == dir && rePage.MatchString(p) && strings.TrimSuffix(path.Base(p), path.Ext(p)) == name
		}) {
			found = append(found, fmt.Sprintf("%s: no manual page %s.8", dir, name))
		}
	}
	return found
}

// outside are the packages that decode octets from outside, and what.
var outside = map[string]string{
	"internal/smtp":     "SMTP commands",
	"internal/ctl":      "control commands",
	"internal/ipc":      "frames",
	"internal/imsg":     "imsgs",
	"parser":            "smtpd.conf",
	"table":             "tables",
	"internal/expand":   "aliases and .forward",
	"internal/rfc5322":  "headers",
	"internal/resolver": "DNS answers",
	"internal/filter":   "filter lines",
	"internal/dkim":     "DKIM-Signature",
	"queue":             "spool files",
	"mta":               "replies",
}

// fuzzed wants a fuzz target in each of them that exists.
func fuzzed(t *tree) []string {
	var found []string
	packages := t.packages()
	for _, dir := range sorted(outside) {
		has, code := false, false
		for _, f := range packages[dir] {
			code = code || !f.test
			for _, d := range f.ast.Decls {
				fn, ok := d.(*ast.FuncDecl)
				has = has || (ok && f.test && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Fuzz"))
			}
		}
		if code && !has {
			found = append(found, fmt.Sprintf("%s: decodes %s and has no fuzz target", dir, outside[dir]))
		}
	}
	return found
}

const badFuzzed = `
== queue/a.go
package queue
func FuzzNot() {}
== parser/a.go
package parser
== parser/a_test.go
package parser
func TestNot() {}
`

const goodFuzzed = `
== queue/a.go
package queue
== queue/a_test.go
package queue
func FuzzSpool() {}
`
