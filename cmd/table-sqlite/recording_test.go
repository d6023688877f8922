package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"smtpd/table/query"
	"smtpd/table/tabletest"
)

// exchange is a question of a recording and the answer to it.
type exchange struct{ question, service, key, answer string }

// recording is a conversation of OpenSMTPD 7.8 with a table program: its
// greeting, and for table t1 each question with its answer.
func recording(t *testing.T) (greeting []string, list []exchange) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "table", "testdata", "line-protocol.txt"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		q, asked := strings.CutPrefix(line, "<- ")
		f := strings.SplitN(q, "|", 8)
		switch {
		case asked && f[0] == "config":
			greeting = append(greeting, q)
		case asked && f[4] != "update":
			x := exchange{question: q, service: f[5]}
			if len(f) == 8 {
				x.key = f[7]
			}
			list = append(list, x)
		case !asked && strings.Contains(line, "-result|") && len(list) > 0 && list[len(list)-1].answer == "":
			list[len(list)-1].answer = strings.TrimPrefix(line, "-> ")
		}
	}
	return greeting[:slices.Index(greeting, "config|ready")+1], list
}

// TestRecording has the program take part in a recorded conversation with
// OpenSMTPD 7.8, the recorded values in its database, and say the same. Left
// out are services that need no database, and a failure that it had no reason
// for.
func TestRecording(t *testing.T) {
	greeting, list := recording(t)
	statements := []string{"CREATE TABLE answers (service TEXT, key TEXT, a TEXT, b TEXT, c TEXT)"}
	conf, columns := "", map[string]int{}
	for _, q := range query.Kinds() {
		s := q.Service.String()
		columns[s] = q.Columns
		conf += fmt.Sprintf("query_%s SELECT %s FROM answers WHERE service='%s' AND key=?\n", s, []string{"a", "a, b", "a, b, c"}[q.Columns-1], s)
	}
	conf += "fetch_source SELECT a FROM answers WHERE service='source'\n"
	list = slices.DeleteFunc(list, func(x exchange) bool { return columns[x.service] == 0 || strings.Contains(x.answer, "|error|") })
	for _, x := range list {
		f := strings.SplitN(x.answer, "|", 4)
		if f[2] != "found" {
			continue
		}
		rows := []string{""}
		if len(f) == 4 {
			if rows = []string{f[3]}; columns[x.service] == 1 {
				rows = strings.Split(f[3], ", ")
			}
		}
		for _, r := range rows {
			c := append(strings.SplitN(r, ":", columns[x.service]), "", "")
			statements = append(statements, fmt.Sprintf("INSERT INTO answers SELECT '%s', '%s', '%s', '%s', '%s' "+
				"WHERE NOT EXISTS (SELECT 1 FROM answers WHERE service='%[1]s' AND key='%[2]s' AND a='%[3]s')", x.service, x.key, c[0], c[1], c[2]))
		}
	}
	cmd := tabletest.Command(t.Context(), tabletest.Config(t, "dbpath "+database(t, statements...)+"\n"+conf))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	next := func() string {
		if !lines.Scan() {
			t.Fatalf("the program ended: %v", lines.Err())
		}
		return lines.Text()
	}
	fmt.Fprintln(in, strings.Join(greeting, "\n"))
	registered := map[string]bool{}
	for word := ""; word != "ready"; {
		word = strings.TrimPrefix(next(), "register|")
		registered[word] = true
	}
	if len(list) < 20 {
		t.Errorf("only %d questions", len(list))
	}
	for _, x := range list {
		fmt.Fprintln(in, x.question)
		if got := next(); got != x.answer || !registered[x.service] {
			t.Errorf("%s: got %s, want %s", x.question, got, x.answer)
		}
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("the program ended with %v", err)
	}
}
