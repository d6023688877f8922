package main

import (
	"errors"
	"fmt"
	"strings"
)

// flags are the command line of smtpd(8).
type flags struct {
	debug      bool // -d: stay, log to standard error
	foreground bool // -F: stay, log to syslog
	check      bool // -n
	help       bool // -h
	verbose    bool // -v
	file       string
	macros     map[string]string
	paused     []string // -P mda|mta|smtp
	trace      []string // -T
	spool      string   // -q
	socket     string   // -s

	modern   bool   // --modern: print the file in the modern language
	explain  bool   // --explain: the operands are facts
	cases    string // --cases FILE
	json     bool   // --json
	rootless string // --rootless DIR: the built-in configuration, all below DIR
	operands []string
	warnings []string
}

const usageText = `usage: smtpd [-dFhnv] [-D macro=value] [-f file] [-P system] [-q spool] [-s socket] [-T trace]
       smtpd -n --modern [-f file]
       smtpd -n --explain [--json] [-f file] name=value ...
       smtpd -n --cases file [-f file]
       smtpd -d --rootless folder [-D smtp_port=number]
`

// traceTopics are the words of -T and `smtpctl trace`.
var traceTopics = map[string]string{
	"imsg": "imsg", "io": "io", "smtp": "smtp", "filters": "filters", "mta": "mta", "transfer": "mta",
	"bounce": "bounce", "bounces": "bounce", "scheduler": "scheduler", "lookup": "lookup", "stat": "stat",
	"stats": "stat", "rules": "rules", "mproc": "mproc", "expand": "expand", "table": "tables",
	"tables": "tables", "queue": "queue", "all": "all", "profstat": "profstat",
	"profile-imsg": "profile-imsg", "profile-queue": "profile-queue",
}

// parseFlags reads the arguments as getopt does: letters may be joined, a value
// may follow its letter directly.
func parseFlags(args []string) (*flags, error) {
	f := &flags{macros: map[string]string{}}
	for len(args) > 0 {
		a := args[0]
		args = args[1:]
		switch {
		case a == "--":
			f.operands = append(f.operands, args...)
			args = nil
		case strings.HasPrefix(a, "--"):
			rest, err := f.long(a[2:], args)
			if err != nil {
				return nil, err
			}
			args = rest
		case len(a) > 1 && a[0] == '-':
			rest, err := f.letters(a[1:], args)
			if err != nil {
				return nil, err
			}
			args = rest
		default:
			f.operands = append(f.operands, a)
		}
	}
	if len(f.operands) > 0 && !f.explain {
		return nil, fmt.Errorf("unexpected argument %q", f.operands[0])
	}
	if (f.modern || f.explain || f.cases != "") && !f.check {
		return nil, errors.New("--modern, --explain and --cases go with -n")
	}
	return f, nil
}

func (f *flags) letters(letters string, args []string) ([]string, error) {
	for letters != "" {
		c := letters[0]
		letters = letters[1:]
		if !strings.ContainsRune("DfPTqsBx", rune(c)) {
			if !f.letter(c) {
				return nil, fmt.Errorf("unknown option -%c", c)
			}
			continue
		}
		value := letters
		if letters = ""; value == "" {
			if len(args) == 0 {
				return nil, fmt.Errorf("option -%c needs a value", c)
			}
			value, args = args[0], args[1:]
		}
		if err := f.value(c, value); errors.Is(err, errMacro) {
			f.warnings = append(f.warnings, err.Error()+": "+value)
		} else if err != nil {
			return nil, err
		}
	}
	return args, nil
}

func (f *flags) letter(c byte) bool {
	switch c {
	case 'd':
		f.debug = true
	case 'F':
		f.foreground = true
	case 'h':
		f.help = true
	case 'n':
		f.check = true
	case 'v':
		f.verbose = true
	default:
		return false
	}
	return true
}

func (f *flags) value(c byte, v string) error {
	switch c {
	case 'D':
		// The value may hold '=', so the name ends at the last one, as it always has.
		i := strings.LastIndexByte(v, '=')
		if i <= 0 {
			return errMacro
		}
		f.macros[v[:i]] = v[i+1:]
	case 'f':
		f.file = v
	case 'P':
		if v != "mda" && v != "mta" && v != "smtp" {
			return fmt.Errorf("-P %s: must be mda, mta or smtp", v)
		}
		f.paused = append(f.paused, v)
	case 'T':
		topic, ok := traceTopics[v]
		if !ok {
			return fmt.Errorf("unknown trace flag %q", v)
		}
		f.trace = append(f.trace, topic)
	case 'q':
		f.spool = v
	case 's':
		f.socket = v
	default:
		return fmt.Errorf("option -%c belongs to OpenSMTPD's own tests and is not supported", c)
	}
	return nil
}

// errMacro is a warning only: the configuration says what is missing.
var errMacro = errors.New("could not parse macro definition")

func (f *flags) long(name string, args []string) ([]string, error) {
	name, value, has := strings.Cut(name, "=")
	needs := name == "cases" || name == "rootless"
	if needs && !has {
		if len(args) == 0 {
			return nil, fmt.Errorf("option --%s needs a value", name)
		}
		value, args = args[0], args[1:]
	}
	switch name {
	case "modern":
		f.modern = true
	case "explain":
		f.explain = true
	case "json":
		f.json = true
	case "cases":
		f.cases = value
	case "rootless":
		f.rootless = value
	default:
		return nil, fmt.Errorf("unknown option --%s", name)
	}
	return args, nil
}
