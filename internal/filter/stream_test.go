package filter

import (
	"bufio"
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"smtpd/internal/mail"
)

// lined is a program that gives lines back as back says, in writes of its own
// size, and does not read before go.
func lined(t *testing.T, name string, begin chan struct{}, writes int, back func(line string) []string) *Program {
	t.Helper()
	far, near := socketPair(t)
	done := make(chan struct{})
	go func() { // ends with the connection; waited for below
		defer close(done)
		defer far.Close()
		in := bufio.NewReader(far)
		fmt.Fprint(far, "register|filter|smtp-in|data-line\nregister|ready\n")
		<-begin
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			f := strings.SplitN(strings.TrimSuffix(line, "\n"), "|", 8)
			if len(f) < 8 {
				continue
			}
			var out bytes.Buffer
			for _, l := range back(f[7]) {
				fmt.Fprintf(&out, "filter-dataline|%s|%s|%s\n", f[5], f[6], l)
			}
			for b := out.Bytes(); len(b) > 0; {
				n := min(len(b), writes)
				if _, err := far.Write(b[:n]); err != nil {
					return
				}
				b = b[n:]
			}
		}
	}()
	p, err := Open(near, Options{Name: name, In: true, Timeout: time.Minute, MaxLine: 2 << 20, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Close()
		<-done
	})
	return p
}

// Many messages at once through two programs come out as they should, whatever
// the size of the pieces in which they travel, and when a program has more before
// it than it may: what the first adds and leaves out the second sees.
func TestStreams(t *testing.T) {
	const sessions = 4
	long := strings.Repeat("l", 100<<10)
	text := "A: b\n" + strings.Repeat("x\n..dot|pipe|\n\ndrop\ntwice\n"+strings.Repeat("0123456789abcdef", 5)+"\n", 2000) + long + "\n"
	want := strings.ReplaceAll(strings.ReplaceAll(text, "drop\n", ""), "twice\n", "TWICE\nTWICE\n")
	for _, writes := range []int{7001, 64 << 10, 1 << 20} {
		begin := make(chan struct{})
		a := lined(t, "a", begin, writes, func(l string) []string {
			switch l {
			case "drop":
				return nil
			case "twice":
				return []string{l, l}
			}
			return []string{l}
		})
		b := lined(t, "b", begin, writes, func(l string) []string { return []string{strings.Replace(l, "twice", "TWICE", 1)} })
		ended := make(chan error, sessions)
		var outs [sessions]bytes.Buffer
		for i := range sessions {
			s, ok := Enter(mail.SessionID(1+i), In, []Member{{Name: "a", Program: a}, {Name: "b", Program: b}})
			if !ok {
				t.Fatal("not entered")
			}
			st := s.Stream([]int{0, 1}, nil, &outs[i])
			go func() { // ended is received below
				st.All([]byte(text))
				ended <- st.Wait(t.Context())
			}()
		}
		for { // the bound is reached before anybody reads
			a.mu.Lock()
			full := a.dataOut > maxAhead || len(a.rest) > maxAhead
			a.mu.Unlock()
			if full {
				break
			}
			select {
			case err := <-ended:
				t.Fatalf("ended before the program has read: %v", err)
			case <-time.After(time.Millisecond):
			}
		}
		close(begin)
		for range sessions {
			if err := <-ended; err != nil {
				t.Fatal(err)
			}
		}
		for _, p := range []*Program{a, b} {
			var st State
			if p.stat.fill(&st); st.Requests != sessions || st.Worst <= 0 {
				t.Errorf("%s: %d messages are counted, the slowest %v", p.o.Name, st.Requests, st.Worst)
			}
		}
		for i := range outs {
			if got := outs[i].String(); got != want {
				t.Errorf("pieces of %d: message %d differs: %d octets; want %d", writes, i, len(got), len(want))
			}
		}
	}
}
