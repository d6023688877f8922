package ctl

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// pair is a client's and a server's end on a real unix socket.
func pair(t *testing.T) (client, server *Conn) {
	t.Helper()
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a, err := net.Dial("unix", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	client, server = newClient(a.(*net.UnixConn)), NewServer(b.(*net.UnixConn))
	for _, c := range []*Conn{client, server} {
		c.ReadTimeout, c.WriteTimeout = 10*time.Second, 10*time.Second
		t.Cleanup(func() { c.Close() })
	}
	return client, server
}

func TestFrames(t *testing.T) {
	client, server := pair(t)
	sent := [][]string{nil, {""}, {"a", "", "b"}, {strings.Repeat("x", MaxRequest-100)}, slices.Repeat([]string{"f"}, MaxFields)}
	go func() {
		for _, f := range sent {
			if err := client.Send(KindRequest, f...); err != nil {
				t.Error(err)
			}
		}
		if err := client.Flush(); err != nil {
			t.Error(err)
		}
	}()
	for _, want := range sent {
		got, err := server.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if got.Kind != KindRequest || !slices.Equal(got.Fields, want) {
			t.Errorf("got %v; want %v", got, want)
		}
	}
	client.Close()
	if _, err := server.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: got %v; want EOF", err)
	}
}

func TestFramesRefused(t *testing.T) {
	tests := map[string][]byte{
		"too long":        {0, 0, 1, 0, 2, 0},
		"too short":       {1, 0, 0, 0, 2},
		"kind":            {2, 0, 0, 0, 99, 0},
		"kind zero":       {2, 0, 0, 0, 0, 0},
		"fields":          {2, 0, 0, 0, 2, MaxFields + 1},
		"field too long":  {6, 0, 0, 0, 2, 1, 1, 0, 0, 0},
		"field huge":      {6, 0, 0, 0, 2, 1, 255, 255, 255, 255},
		"octets left":     {3, 0, 0, 0, 2, 0, 7},
		"text by mistake": []byte("GET / HTTP/1.0\r\n\r\n"),
	}
	for name, b := range tests {
		t.Run(name, func(t *testing.T) {
			client, server := pair(t)
			if _, err := client.u.Write(b); err != nil {
				t.Fatal(err)
			}
			if _, err := server.Receive(); !errors.Is(err, ErrFrame) {
				t.Errorf("got %v; want ErrFrame", err)
			}
		})
	}
	t.Run("cut", func(t *testing.T) {
		client, server := pair(t)
		if _, err := client.u.Write([]byte{6, 0, 0, 0, 2}); err != nil {
			t.Fatal(err)
		}
		client.Close()
		if _, err := server.Receive(); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("got %v; want unexpected EOF", err)
		}
	})
}

func TestReadTimeout(t *testing.T) {
	_, server := pair(t)
	server.ReadTimeout = time.Millisecond
	if _, err := server.Receive(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v; want a deadline", err)
	}
}

func TestFile(t *testing.T) {
	client, server := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := errors.Join(server.Send(KindRow, "before"), server.SendFile(w), server.Send(KindOK, "x"), server.Flush()); err != nil {
		t.Fatal(err)
	}
	w.Close()
	for _, want := range []Kind{KindRow, KindFile, KindOK} {
		f, err := client.Receive()
		if err != nil || f.Kind != want {
			t.Fatalf("got %v, %v; want kind %d", f, err, want)
		}
	}
	f := client.File()
	if f == nil {
		t.Fatal("no descriptor came")
	}
	if _, err := f.WriteString("hi"); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if b, err := io.ReadAll(r); string(b) != "hi" || err != nil {
		t.Errorf("through the pipe: got %q, %v", b, err)
	}
	if client.File() != nil {
		t.Error("the descriptor was given twice")
	}
}

// A client's descriptors are never taken.
func TestNoFileFromClient(t *testing.T) {
	client, server := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := client.SendFile(w); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if f, err := server.Receive(); err != nil || f.Kind != KindFile {
		t.Fatalf("got %v, %v", f, err)
	}
	if server.File() != nil {
		t.Error("the server has a descriptor")
	}
	if b, err := io.ReadAll(r); len(b) != 0 || err != nil { // ends: nobody holds the other end
		t.Errorf("got %q, %v", b, err)
	}
}

func FuzzFrame(f *testing.F) {
	f.Add(appendFrame(nil, KindHello, []string{Protocol})[4:])
	f.Add(appendFrame(nil, KindRow, (&Entry{}).Fields())[4:])
	f.Add([]byte{2, 1, 255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		fr, err := parseFrame(b)
		if err != nil {
			return
		}
		if again := appendFrame(nil, fr.Kind, fr.Fields)[4:]; !bytes.Equal(again, b) {
			t.Errorf("%x printed back: %x", b, again)
		}
		if e, err := ParseEntry(fr.Fields); err == nil {
			again, err := ParseEntry(e.Fields())
			if err != nil || *again != *e {
				t.Errorf("entry %v printed back: %v, %v", e, again, err)
			}
			if line := e.Line(time.Unix(0, 0)); strings.ContainsAny(line, "\r\n\x00\x1b") || strings.Count(line, "|") < 13 {
				t.Errorf("line %q", line)
			}
		}
	})
}
