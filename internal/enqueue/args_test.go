package enqueue

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestParseArgs(t *testing.T) {
	tests := map[string]struct {
		args  string // words parted by spaces
		want  Options
		usage string // of a UsageError, "-" for the usage alone
		fail  string // of another error
	}{
		"recipient":            {args: "bob", want: Options{Recipients: []string{"bob"}}},
		"options":              {args: "-t -v -oi -i -f boss@corp.org -F Boss", want: Options{FromHeader: true, Verbose: true, Sender: "boss@corp.org", SenderSet: true, Name: "Boss"}},
		"cluster":              {args: "-tvi bob", want: Options{FromHeader: true, Verbose: true, Recipients: []string{"bob"}}},
		"cluster with value":   {args: "-tfboss bob", want: Options{FromHeader: true, Sender: "boss", SenderSet: true, Recipients: []string{"bob"}}},
		"sender by -r":         {args: "-r <> bob", want: Options{Sender: "<>", SenderSet: true, Recipients: []string{"bob"}}},
		"dsn":                  {args: "-N success,failure -R hdrs -V envid42 bob", want: Options{Notify: "success,failure", Ret: "hdrs", EnvID: "envid42", Recipients: []string{"bob"}}},
		"ignored":              {args: "-A x -B 8BITMIME -bm -em -E -Efoo -i -L tag -m -om -odi -o x -p esmtp -x bob", want: Options{Recipients: []string{"bob"}}},
		"options behind":       {args: "bob -f x -v", want: Options{Sender: "x", SenderSet: true, Verbose: true, Recipients: []string{"bob"}}},
		"end of options":       {args: "-v -- -bob --", want: Options{Verbose: true, Recipients: []string{"-bob", "--"}}},
		"lone dash":            {args: "-", want: Options{Recipients: []string{"-"}}},
		"resubmission":         {args: "-S -t", want: Options{Resubmit: true, FromHeader: true}},
		"listing":              {args: "-bp", want: Options{Queue: true}},
		"other modes":          {args: "-bs -bd", want: Options{}},
		"unknown":              {args: "-Z", usage: "invalid option -- 'Z'"},
		"unknown in cluster":   {args: "-tZ", usage: "invalid option -- 'Z'"},
		"long option":          {args: "--help", usage: "invalid option -- '-'"},
		"no argument":          {args: "-v -f", usage: "option requires an argument -- 'f'"},
		"-J":                   {args: "-J", usage: "-"},
		"queue run":            {args: "-q30m", fail: ErrQueueRun.Error()},
		"queue run in words":   {args: "-v -q bob", fail: ErrQueueRun.Error()},
		"line end":             {args: "bob\ncarol", fail: "bob?carol contains illegal character"},
		"return":               {args: "-f a@b.org\r", fail: "a@b.org? contains illegal character"},
		"nul":                  {args: "-F a\x00b", fail: "a?b contains illegal character"},
		"control in the name":  {args: "-F a\x1bb bob", fail: "a?b contains illegal character"},
		"space in a parameter": {args: "-V a\tb bob", fail: "a?b contains illegal character"},
		"utf8 in a parameter":  {args: "-R hdrs\u00e9 bob", fail: "hdrs\u00e9 contains illegal character"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ParseArgs(strings.Split(tt.args, " "))
			u, isUsage := errors.AsType[*UsageError](err)
			switch {
			case tt.usage != "":
				if !isUsage || u.Text != strings.TrimPrefix(tt.usage, "-") && tt.usage != "-" {
					t.Errorf("got %v; want usage %q", err, tt.usage)
				}
			case tt.fail != "":
				if err == nil || err.Error() != tt.fail {
					t.Errorf("got %v; want %q", err, tt.fail)
				}
			case err != nil:
				t.Error(err)
			case !reflect.DeepEqual(*got, tt.want):
				t.Errorf("got %+v; want %+v", *got, tt.want)
			}
		})
	}
}

func TestAliases(t *testing.T) {
	tests := map[string]bool{"-bi": true, "-v -bi": true, "bob -bi": true, "-bip": true, "-bp": false, "-- -bi": false, "": false}
	for args, want := range tests {
		if got := Aliases(strings.Fields(args)); got != want {
			t.Errorf("%q: got %v; want %v", args, got, want)
		}
	}
}
