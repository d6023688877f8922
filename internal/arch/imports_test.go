package arch

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
)

// layer is the height of a package: imports go to a lower one only.
type layer int

const (
	unknown    layer = iota
	words            // mail: the standard library only
	base             // log, stat, rfc5322, auth, accounts
	plain            // config, resolver
	vocabulary       // imsg
	engine           // parser and ipc as well
	confined         // privsep
	process
	program
)

// engines are the packages that know a trade and no processes.
var engines = []string{"queue", "mta", "mda", "table", "table/query", "internal/expand", "internal/ruleset", "internal/runq",
	"internal/filter", "internal/explain", "internal/smtp", "internal/bounce", "internal/enqueue", "internal/ctl", "internal/dkim"}

// low are the packages with a place of their own.
var low = map[string]layer{
	"internal/mail": words,
	"internal/log":  base, "internal/stat": base, "internal/rfc5322": base, "internal/auth": base, "internal/accounts": base,
	"internal/config": plain, "internal/resolver": plain,
	"internal/imsg": vocabulary,
	"internal/ipc":  engine, "parser": engine,
	"internal/privsep": confined, "internal/lease": confined,
}

// sideways are the imports between equals, each with its reason.
var sideways = map[[2]string]string{
	{"internal/expand", "internal/ruleset"}:  "expansion matches each new address with the rules",
	{"internal/ruleset", "table"}:            "rules ask tables",
	{"internal/expand", "table"}:             "aliases are tables",
	{"table/query", "table"}:                 "the frame of table programs: backends that ask servers",
	{"parser", "table"}:                      "the checks open what the configuration names",
	{"parser", "mda"}:                        "a format is what delivery can expand",
	{"internal/explain", "internal/expand"}:  "it shows an expansion",
	{"internal/explain", "internal/ruleset"}: "it names the rule that decided",
	{"internal/explain", "table"}:            "where mail goes can be the answer of a table",
	{"internal/explain", "mda"}:              "a delivery is shown as it would be made",
}

// reserved says who alone may import a package.
var reserved = map[string][]string{
	"parser": {"internal/proc/parent", "cmd/smtpd", "cmd/smtpctl"}, // smtpctl: newaliases asks which file the aliases are in
	"queue":  {"internal/proc/queue", "cmd/smtpctl"},               // smtpctl: reads the spool when the daemon is down
}

// home is the package that a helper of tests (tabletest, queuetest) belongs to;
// of others it is the package itself.
func home(pkg string) string {
	if dir, name := path.Split(pkg); strings.HasSuffix(name, "test") && dir != "" {
		return path.Clean(dir)
	}
	return pkg
}

func height(pkg string) layer {
	switch {
	case low[pkg] != unknown:
		return low[pkg]
	case slices.Contains(engines, pkg):
		return engine
	case strings.HasPrefix(pkg, "internal/proc/"):
		return process
	case strings.HasPrefix(pkg, "cmd/"):
		return program
	}
	return unknown
}

// refused says why from must not import to; empty: it may.
func refused(from, to string) string {
	from = home(from)
	h, l := height(from), height(to)
	switch {
	case home(to) != to:
		return "a helper of tests"
	case from == to:
		return "" // a helper of tests and its package
	case l == unknown:
		return "it has no place in internal/arch"
	case h == process && l == process:
		return "a process imports another"
	case h == engine && from != "internal/ipc" && (to == "internal/ipc" || to == "internal/imsg"):
		return "an engine knows of processes"
	case reserved[to] != nil && !slices.Contains(reserved[to], from):
		return "reserved for " + strings.Join(reserved[to], ", ")
	case sideways[[2]string{from, to}] != "":
		return ""
	case h == words:
		return "the words stand alone"
	case h == base && l == words, l < h:
		return ""
	}
	return "imports go downwards"
}

// imports holds the law of who imports whom. Tests are free.
func imports(t *tree) []string {
	var found []string
	for _, f := range t.files {
		if f.test || f.dir == "internal/arch" {
			continue
		}
		if height(home(f.dir)) == unknown {
			found = append(found, fmt.Sprintf("%s: package %s has no place in internal/arch", f.path, f.dir))
			continue
		}
		for _, i := range f.ast.Imports {
			p, _ := strconv.Unquote(i.Path.Value)
			to, ours := strings.CutPrefix(p, module+"/")
			if !ours {
				if f.dir == "internal/mail" && strings.Contains(strings.Split(p, "/")[0], ".") {
					found = append(found, fmt.Sprintf("%s: imports %s: mail has the standard library only", t.at(i), p))
				}
				continue
			}
			if why := refused(f.dir, to); why != "" {
				found = append(found, fmt.Sprintf("%s: imports %s: %s", t.at(i), to, why))
			}
		}
	}
	return found
}

const badImports = `
== internal/proc/smtp/a.go
package smtp
import _ "smtpd/internal/proc/queue"
import _ "smtpd/queue"
import _ "smtpd/parser"
== internal/smtp/a.go
package smtp
import _ "smtpd/internal/imsg"
import _ "smtpd/internal/ipc"
import _ "smtpd/internal/privsep"
import _ "smtpd/mta"
== internal/mail/a.go
package mail
import _ "smtpd/internal/log"
import _ "github.com/x/y"
== internal/config/a.go
package config
import _ "smtpd/internal/imsg"
import _ "smtpd/internal/resolver"
== internal/ruleset/a.go
package ruleset
import _ "smtpd/internal/expand"
== internal/stranger/a.go
package stranger
== table/b.go
package table
import _ "smtpd/internal/stranger"
import _ "smtpd/table/tabletest"
`

const goodImports = `
== cmd/smtpd/main.go
package main
import _ "smtpd/internal/proc/queue"
import _ "smtpd/parser"
import _ "smtpd/internal/mail"
== internal/proc/queue/a.go
package queue
import _ "smtpd/queue"
import _ "smtpd/internal/privsep"
import _ "smtpd/internal/ipc"
import _ "fmt"
== internal/expand/a.go
package expand
import _ "smtpd/internal/ruleset"
import _ "smtpd/internal/config"
== internal/log/a.go
package log
import _ "smtpd/internal/mail"
== queue/queuetest/a.go
package queuetest
import _ "smtpd/queue"
import _ "smtpd/internal/mail"
== queue/a_test.go
package queue_test
import _ "smtpd/queue/queuetest"
import _ "smtpd/internal/imsg"
`

// vague are names that say nothing.
var vague = []string{"util", "utils", "common", "helper", "helpers", "types", "misc", "shared"}

// folders refuses packages that have no subject.
func folders(t *tree) []string {
	var found []string
	for _, dir := range sorted(t.packages()) {
		if slices.Contains(vague, path.Base(dir)) {
			found = append(found, dir+": a thing lives with its subject")
		}
	}
	return found
}
