package table

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// recorded answers what a recording says: by operation, service and key.
type recorded map[string]string

func (r recorded) ask(op string, s Service, key string) (string, error) {
	answer, ok := r[op+"|"+s.String()+"|"+key]
	word, text, _ := strings.Cut(answer, "|")
	switch {
	case !ok || word == "not-found":
		return "", ErrNotFound
	case word == "error":
		return "", errors.New(text)
	}
	return text, nil
}

func (r recorded) Lookup(_ context.Context, s Service, key string) (string, error) {
	return r.ask("lookup", s, key)
}

func (r recorded) Check(_ context.Context, s Service, key string) (bool, error) {
	_, err := r.ask("check", s, key)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

func (r recorded) Fetch(_ context.Context, s Service) (string, error) { return r.ask("fetch", s, "") }
func (r recorded) Update(context.Context) error                       { return nil }
func (r recorded) Services() Service                                  { return allServices &^ Auth }
func (r recorded) Close() error                                       { return nil }

// TestRecording has Serve take the part of a program whose conversation with
// OpenSMTPD 7.8 was recorded, and say the same.
func TestRecording(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("testdata", "line-protocol.txt"))
	if err != nil {
		t.Fatal(err)
	}
	var in, want []string
	answers, open := recorded{}, map[string]string{}
	for line := range strings.SplitSeq(strings.TrimSpace(string(text)), "\n") {
		if q, ok := strings.CutPrefix(line, "<- "); ok {
			in = append(in, q)
			if f := strings.Split(q, "|"); len(f) >= 7 {
				open[f[6]] = f[4] + "|" + f[5] + "|" + strings.Join(f[7:], "|")
			}
			continue
		}
		a := strings.TrimPrefix(line, "-> ")
		want = append(want, a)
		if f := strings.SplitN(a, "|", 3); len(f) == 3 {
			answers[open[f[1]]] = f[2]
		}
	}
	near, far := net.Pipe()
	defer near.Close()
	go func() {
		defer far.Close()
		if err := Serve(context.Background(), far, far, answers); err != nil && !errors.Is(err, io.EOF) {
			t.Error(err)
		}
	}()
	near.SetDeadline(time.Now().Add(20 * time.Second))
	out := bufio.NewReader(near)
	next := func() string {
		line, err := out.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSuffix(line, "\n")
	}
	for len(in) > 0 { // one question after the other, as OpenSMTPD asks
		fmt.Fprintln(near, in[0])
		isTable := strings.HasPrefix(in[0], "table|")
		ready := in[0] == "config|ready"
		in = in[1:]
		for isTable || ready {
			got := next()
			if got != want[0] {
				t.Fatalf("got %s, want %s", got, want[0])
			}
			want = want[1:]
			if isTable || got == "register|ready" {
				break
			}
		}
	}
	if len(want) != 0 {
		t.Errorf("not said: %q", want)
	}
}

// hostileKeys hold what could end a line, a field, a string or a frame.
func hostileKeys() []string {
	return []string{"a\nb", "a\rb", "a\x00b", "a|b", "a||", "|", "'", `"`, `\`, "%s%n", "a b", "12:x,", "a,b", strings.Repeat("k", 64<<10),
		strings.Repeat("|", MaxKey), "\x7f", "ü", "\xff"}
}

// TestWriters: whatever the key, one question stays one, and the other end
// reads the key that was asked for, or it is not asked at all.
func TestWriters(t *testing.T) {
	writers := map[string]func(key string) (read string, err error){
		"lines": func(key string) (string, error) {
			l := &lines{name: "t"}
			b := string(l.encode(opLookup, Alias, "00000001", key))
			if strings.Count(b, "\n") != 1 || !strings.HasSuffix(b, "\n") {
				return "", fmt.Errorf("%q is not one line", b)
			}
			q, err := parseQuestion(strings.TrimSuffix(b, "\n"))
			if q.id != "00000001" || q.op != opLookup || q.service != Alias {
				return "", fmt.Errorf("%q is read as %+v", b, q)
			}
			return q.key, err
		},
		"binary": func(key string) (string, error) {
			typ, p := encodeQuestion(opLookup, Alias, key)
			if typ != binaryLookup || bytes.IndexByte(p[12:], 0) != len(p)-13 || binary.NativeEndian.Uint32(p) != uint32(Alias) ||
				len(p)+binaryHeader > binaryMax {
				return "", fmt.Errorf("%q", p)
			}
			return string(p[12 : len(p)-1]), nil
		},
		"socketmap": func(key string) (string, error) {
			near, far := net.Pipe()
			defer near.Close()
			go func() { (&socketmapConn{Conn: near, in: bufio.NewReader(near)}).exchange("t " + key) }()
			far.SetDeadline(time.Now().Add(10 * time.Second))
			text, err := readNetstring(bufio.NewReader(far))
			far.Close()
			name, key, _ := strings.Cut(text, " ")
			if name != "t" {
				return "", fmt.Errorf("asked for map %q", name)
			}
			return key, err
		},
	}
	for name, write := range writers {
		t.Run(name, func(t *testing.T) {
			for _, key := range hostileKeys() {
				folded, err := foldKey(Alias, key)
				if err != nil {
					continue // never gets as far as the writer
				}
				if got, err := write(folded); got != folded || err != nil {
					t.Errorf("%.20q: got %.40q, %v", key, got, err)
				}
			}
		})
	}
}

// TestServeBinary: who is asked in the binary protocol ends at once, and does not
// wait for the end of a line.
func TestServeBinary(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	ended := make(chan error, 1)
	go func() { ended <- Serve(t.Context(), far, far, recorded{}) }()
	go openBinary(&child{conn: near}, "t")
	select {
	case err := <-ended:
		if !errors.Is(err, errBinary) {
			t.Errorf("got %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("still reads")
	}
}

// TestServeValues: whatever the value, the answer is one line, with the value
// or an error.
func TestServeValues(t *testing.T) {
	for _, value := range append(hostileKeys(), "", strings.Repeat("v", MaxValue+1)) {
		s := &server{backend: NewStatic(map[string]string{"k": value})}
		line := s.answer(t.Context(), asked{op: opLookup, service: Alias, id: "1", key: "k"})
		if strings.ContainsAny(line, "\n\r\x00") || len(line) > maxLine {
			t.Errorf("%.20q: got %.60q", value, line)
		}
		rest, ok := strings.CutPrefix(line, "lookup-result|1|found|")
		if ok && rest != value || !ok && !strings.HasPrefix(line, "lookup-result|1|error|") {
			t.Errorf("%.20q: got %.60q", value, line)
		}
	}
}

// TestLiars has programs that break the protocol: each is given up, and what
// was asked ends as trouble.
func TestLiars(t *testing.T) {
	const greeting = "register|alias\nregister|ready\n"
	answers := map[string]string{
		"another id":       greeting + "lookup-result|ffffffff|found|x\n",
		"another answer":   greeting + "check-result|00000001|found\n",
		"empty value":      greeting + "lookup-result|00000001|found|\n",
		"no value":         greeting + "lookup-result|00000001|found\n",
		"unknown result":   greeting + "lookup-result|00000001|maybe\n",
		"no line":          greeting + strings.Repeat("x", maxLine+10) + "\n",
		"empty line":       greeting + "\n",
		"end":              greeting,
		"control in value": greeting + "lookup-result|00000001|found|a\rb\n",
		"unknown service":  "register|frobnicate\nregister|ready\n",
		"no service":       "register|ready\n",
		"no registration":  "hello\n",
		"nothing":          "",
	}
	for name, text := range answers {
		t.Run(name, func(t *testing.T) {
			near, far := net.Pipe()
			defer far.Close()
			go func() { // reads all, says its lines after the greeting and the question
				in := bufio.NewScanner(far)
				said := false
				for in.Scan() {
					if in.Text() == "config|ready" {
						head, rest, ok := strings.Cut(text, "register|ready\n")
						if ok {
							head += "register|ready\n"
						}
						io.WriteString(far, head)
						text, said = rest, rest == ""
						if !ok || said && head != greeting {
							break
						}
					} else if strings.HasPrefix(in.Text(), "table|") {
						io.WriteString(far, text)
						break
					}
				}
				far.Close()
			}()
			d, err := openLines(&child{conn: near}, "t")
			if err != nil {
				return // not even a dialogue
			}
			ended := make(chan error, 1)
			go func() { ended <- d.run() }()
			v, found, err := d.ask(t.Context(), opLookup, Alias, "k")
			if err == nil {
				_, err = normalize(Alias, "k", v)
			}
			if err == nil {
				t.Errorf("got %q, %v", v, found)
			}
			near.Close()
			select {
			case err := <-ended:
				if err == nil {
					t.Error("ended well")
				}
			case <-time.After(20 * time.Second):
				t.Error("the dialogue goes on")
			}
		})
	}
}
