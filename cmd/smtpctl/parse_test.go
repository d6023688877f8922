package main

import (
	"bufio"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// recorded is one command of a recording.
type recorded struct {
	words  []string
	output string
	status int
}

func readRecording(t *testing.T, name string) []recorded {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var list []recorded
	for s := bufio.NewScanner(f); s.Scan(); {
		line := s.Text()
		if words, ok := strings.CutPrefix(line, "$ smtpctl"); ok {
			list = append(list, recorded{words: strings.Fields(words), status: -1})
			continue
		}
		if strings.HasPrefix(line, "$ ") {
			list = append(list, recorded{status: -2}) // not ours
			continue
		}
		r := &list[len(list)-1]
		if n, ok := strings.CutPrefix(line, "[exit "); ok && r.status == -1 {
			if r.status, err = strconv.Atoi(strings.TrimSuffix(n, "]")); err != nil {
				t.Fatal(err)
			}
			continue
		}
		r.output += line + "\n"
	}
	return list
}

// Every recorded command is understood, or refused in the recorded words.
func TestParseRecorded(t *testing.T) {
	extensions := map[string]bool{"reload": true}
	list := readRecording(t, "commands.txt")
	if len(list) < 60 {
		t.Fatalf("got %d commands from the recording", len(list))
	}
	for _, r := range list {
		name := strings.Join(r.words, " ")
		if r.status < 0 || extensions[name] {
			continue
		}
		t.Run(name, func(t *testing.T) {
			_, _, err := grammar().parse(r.words)
			want := ""
			if r.status == exitParse {
				want = r.output
			}
			got := ""
			if err != nil {
				got = err.Error()
			}
			if got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestParse(t *testing.T) {
	tests := map[string]struct {
		words  string
		params string
		fail   string // the first line and the second
	}{
		"abbreviations":          {words: "sh q"},
		"full and short":         {words: "res e 7f5a56b65f591e71", params: "7f5a56b65f591e71"},
		"all":                    {words: "rem al"},
		"zero id":                {words: "remove 00000000", fail: "possibilities are:|remove <evpid>"},
		"upper-case id":          {words: "remove DEADBEEF", params: "DEADBEEF"},
		"id of 9 digits":         {words: "remove 0deadbeef", fail: "possibilities are:|remove <evpid>"},
		"route 0":                {words: "resume route 0", fail: "possibilities are:|resume route <routeid>"},
		"route":                  {words: "resume route 12", params: "12"},
		"address":                {words: "pause mta from ::1 for x.test", params: "::1 x.test"},
		"no address":             {words: "pause mta from x for y", fail: "possibilities are:|pause mta from <addr>"},
		"half":                   {words: "pause mta from ::1", fail: "possibilities are:|pause mta from <addr> for"},
		"too many words":         {words: "show stats now", fail: "invalid command"},
		"log keeps its prefix":   {words: "lo verbose"},
		"extension by prefix":    {words: "look a b c", params: "a b c"},
		"extension is not shown": {words: "show", fail: "possibilities are:|show mta"},
		"json":                   {words: "show queue --json 7f5a56b6", params: "7f5a56b6"},
		"algorithm":              {words: "encrypt -a bcrypt secret", params: "bcrypt secret"},
		"password":               {words: "encrypt secret", params: "secret"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, params, err := grammar().parse(strings.Fields(tt.words))
			if tt.fail != "" {
				if err == nil || !strings.HasPrefix(err.Error(), strings.ReplaceAll(tt.fail, "|", "\n")+"\n") {
					t.Errorf("got %v; want %s", err, tt.fail)
				}
				return
			}
			if got := strings.Join(params, " "); err != nil || got != tt.params {
				t.Errorf("got %q, %v; want %q", got, err, tt.params)
			}
		})
	}
	if _, _, err := grammar().parse([]string{""}); err == nil {
		t.Error("an empty word was taken for a command")
	}
}

func FuzzParse(f *testing.F) {
	f.Add("show queue")
	f.Add("pause mta from ::1 for x")
	f.Fuzz(func(t *testing.T, words string) {
		run, _, err := grammar().parse(strings.Split(words, " "))
		if (run == nil) == (err == nil) {
			t.Errorf("%q: %v", words, err)
		}
	})
}
