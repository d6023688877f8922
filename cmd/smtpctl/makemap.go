package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"smtpd/internal/ctl"
	"smtpd/parser"
	"smtpd/table"
)

const makemapUsage = "usage: makemap [-U] [-d dbtype] [-o dbfile] [-t type] file\n"

// mapJob is one run of makemap.
type mapJob struct {
	source string // a file, or "-" for standard input
	output string // empty: source with ".db" behind it
	typ    table.MapType
	dump   bool
}

// makemap makes a map file from a text, or prints one. It uses nothing but the
// rights of its caller.
func (p *program) makemap(args []string) error {
	if err := p.dropGroup(); err != nil {
		return err
	}
	job, err := p.makemapArgs(args)
	if err != nil {
		return err
	}
	if job.dump {
		return p.dumpMap(job.source)
	}
	return p.buildMap(job)
}

// makemapArgs reads the command line, that of sendmail's makemap included:
// `makemap hash /etc/mail/access < access`.
func (p *program) makemapArgs(args []string) (*mapJob, error) {
	job := &mapJob{typ: table.MapPlain}
	var files []string
	for len(args) > 0 {
		word := args[0]
		args = args[1:]
		if word == "--" {
			files = append(files, args...)
			break
		}
		if len(word) < 2 || word[0] != '-' {
			files = append(files, word)
			continue
		}
		if word = word[1:]; word[0] == 'U' { // other options may follow in the word
			job.dump = true
			if word = word[1:]; word != "" {
				args = append([]string{"-" + word}, args...)
			}
			continue
		}
		if strings.IndexByte("CdoOt", word[0]) < 0 {
			return nil, p.usage(fmt.Sprintf("%s: invalid option -- '%s'\n", p.path, word[:1]) + makemapUsage)
		}
		value := word[1:]
		if value == "" {
			if len(args) == 0 {
				return nil, p.usage(fmt.Sprintf("%s: option requires an argument -- '%s'\n", p.path, word) + makemapUsage)
			}
			value, args = args[0], args[1:]
		}
		if err := makemapOption(job, word[0], value); err != nil {
			return nil, err
		}
	}
	switch {
	case len(files) == 2 && !job.dump && job.output == "":
		if err := dbType(files[0]); err != nil {
			return nil, err
		}
		job.source, job.output = "-", files[1]+".db"
	case len(files) == 1:
		job.source = files[0]
	case len(files) != 0 || job.source == "":
		return nil, p.usage(makemapUsage)
	}
	return job, nil
}

// makemapOption carries out an option that has a value.
func makemapOption(job *mapJob, option byte, value string) error {
	switch option {
	case 'C': // a configuration file, which a map does not depend on
	case 'd':
		return dbType(value)
	case 'o':
		job.output = value
	case 'O':
		file, ok := strings.CutPrefix(value, "AliasFile=")
		if !ok {
			return failed("unsupported option '%s'", value)
		}
		job.source, job.typ = file, table.MapAliases
	case 't':
		t, ok := table.ParseMapType(value)
		if !ok {
			return failed("unsupported type '%s'", value)
		}
		job.typ = t
	}
	return nil
}

// dbType checks the name of a form of Berkeley DB: every map file made here has
// one form, which serves for both.
func dbType(word string) error {
	if word != "hash" && word != "btree" {
		return failed("unsupported DB type '%s'", word)
	}
	return nil
}

func (p *program) usage(text string) error {
	fmt.Fprint(p.stderr, text)
	return &exit{status: exitFailed}
}

// buildMap reads the source and writes the map.
func (p *program) buildMap(job *mapJob) error {
	in, name, mode := p.stdin, "stdin", fs.FileMode(0o644)
	if job.source != "-" {
		f, err := os.Open(job.source)
		if err != nil {
			return failed("stat: %s: %v", job.source, reasonOf(err))
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			return failed("stat: %s: %v", job.source, reasonOf(err))
		}
		if !st.Mode().IsRegular() {
			return failed("%s: not a plain file", job.source)
		}
		in, name, mode = f, job.source, st.Mode().Perm()
	}
	if job.output == "" {
		if job.source == "-" {
			return p.usage(makemapUsage)
		}
		job.output = job.source + ".db"
	}
	n, err := writeMap(in, name, job, mode)
	switch {
	case errors.Is(err, table.ErrCreate):
		return failed("mkstemp: %s", reasonOf(err))
	case err != nil:
		return failed("%v", err)
	case n == 0:
		fmt.Fprintf(p.stderr, "%s: warning: empty map created: %s\n", p.name, job.output)
	}
	if job.typ == table.MapAliases {
		fmt.Fprintf(p.stdout, "%s: %d aliases\n", name, n)
	}
	return nil
}

func writeMap(in io.Reader, name string, job *mapJob, mode fs.FileMode) (n int, err error) {
	entries, err := table.ReadMap(in, name, job.typ)
	if err != nil {
		return 0, err
	}
	err = table.WriteMap(job.output, job.typ, mode, func(yield func(string, string) bool) {
		for _, e := range entries {
			if !yield(e[0], e[1]) {
				return
			}
		}
	})
	return len(entries), err
}

// dumpMap prints a map file, ours or one of Berkeley DB.
func (p *program) dumpMap(path string) error {
	err := table.DumpMap(path, func(key, value string) error {
		_, err := fmt.Fprintf(p.stdout, "%s\t%s\n", key, value)
		return err
	})
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[syscall.Errno](err); !ok { // what is wrong with the file, then what programs expect
		fmt.Fprintln(p.stderr, err)
		err = syscall.EINVAL
	}
	return failed("dbopen: %s: %v", path, reasonOf(err))
}

// reasonOf is the system's word for an error, as the C library spells it.
func reasonOf(err error) string {
	errno, ok := errors.AsType[syscall.Errno](err)
	if !ok {
		return err.Error()
	}
	s := errno.Error()
	return strings.ToUpper(s[:1]) + s[1:]
}

const newaliasesUsage = "usage: newaliases [-f file]\n"

// newaliases makes the map of the table "aliases" of the configuration, and
// tells the daemon, if there is one.
func (p *program) newaliases(ctx context.Context, args []string) error {
	file, err := p.newaliasesArgs(args)
	if err != nil {
		return err
	}
	if err := errors.Join(p.settle(), p.needRoot()); err != nil {
		return err
	}
	path, err := p.aliasFile(ctx, file)
	if err != nil {
		return err
	}
	if err := p.buildMap(&mapJob{source: path, typ: table.MapAliases}); err != nil {
		return err
	}
	if err := p.stdout.Flush(); err != nil {
		return err
	}
	c, err := ctl.Dial(ctx, p.socket)
	if errors.Is(err, ctl.ErrNotRunning) {
		return nil // it reads the new file when it starts
	}
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err = c.Do(nil, ctl.ReqUpdate, aliasTable); err != nil {
		return failed("update table %s: %v", aliasTable, err)
	}
	return nil
}

// aliasTable is the name of the table that newaliases is about.
const aliasTable = "aliases"

func (p *program) newaliasesArgs(args []string) (file string, err error) {
	for len(args) > 0 {
		word := args[0]
		args = args[1:]
		switch {
		case word == "-v":
		case word == "-f" && len(args) > 0:
			file, args = args[0], args[1:]
		case strings.HasPrefix(word, "-f") && word != "-f":
			file = word[2:]
		default:
			return "", p.usage(newaliasesUsage)
		}
	}
	if file != "" {
		return file, nil
	}
	for _, dir := range ctl.ConfDirs() {
		file = filepath.Join(dir, "smtpd.conf")
		if _, err := os.Stat(file); err == nil {
			return file, nil
		}
	}
	return file, nil
}

// aliasFile is the text that the alias map of a configuration is made of.
func (p *program) aliasFile(ctx context.Context, file string) (string, error) {
	conf, diags := parser.Parse(ctx, parser.Options{
		File: file, CheckOnly: true, Asking: true, Unprivileged: p.who.euid != 0, Now: p.now, MapsToCome: true,
	})
	if diags.Failed() {
		for _, d := range diags {
			fmt.Fprintln(p.stderr, d.String())
		}
		return "", &exit{status: exitFailed}
	}
	t := conf.Tables[aliasTable]
	if t == nil {
		return "", failed("%s: there is no table %q; tables are %s", file, aliasTable,
			strings.Join(slices.Sorted(maps.Keys(conf.Tables)), " "))
	}
	if t.Backend != "file" && t.Backend != "db" {
		return "", failed("%s: table %q is not made from a file", file, aliasTable)
	}
	return strings.TrimSuffix(t.Param, ".db"), nil
}
