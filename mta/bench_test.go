package mta

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"smtpd/internal/config"
)

// tcpWorld is a world whose connections are real.
type tcpWorld struct {
	*world
	target string
}

func (w *tcpWorld) Dial(ctx context.Context, _ netip.Addr, _ netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", w.target)
}

// willing answers every command well, with as few system calls as can be. ext is
// the last of its extensions.
func willing(c net.Conn, taken *atomic.Int64, ext string) {
	defer c.Close()
	in := bufio.NewReaderSize(c, 64<<10)
	out := bufio.NewWriter(c)
	io.WriteString(c, "220 sink\r\n")
	inData := false
	for {
		if in.Buffered() == 0 {
			out.Flush()
		}
		line, err := in.ReadSlice('\n')
		switch {
		case err != nil:
			return
		case inData:
			if string(line) == ".\r\n" {
				inData = false
				taken.Add(1)
				out.WriteString("250 2.0.0 queued as 1\r\n")
			}
		case bytes.HasPrefix(line, []byte("EHLO")):
			out.WriteString("250-sink\r\n250-SIZE\r\n250-8BITMIME\r\n250-DSN\r\n250-PIPELINING\r\n250 " + ext + "\r\n")
		case bytes.HasPrefix(line, []byte("BDAT")):
			size, _, _ := strings.Cut(string(line[5:]), " ")
			n, _ := strconv.Atoi(size)
			if _, err := in.Discard(n); err != nil {
				return
			}
			taken.Add(1)
			out.WriteString("250 2.0.0 queued as 1\r\n")
		case bytes.HasPrefix(line, []byte("DATA")):
			inData = true
			out.WriteString("354 go\r\n")
		case bytes.HasPrefix(line, []byte("QUIT")):
			out.WriteString("221 bye\r\n")
			out.Flush()
			return
		default:
			out.WriteString("250 2.0.0 ok\r\n")
		}
	}
}

// BenchmarkRelay relays mails of 4 KB to a sink in the same process, with DATA
// and with BDAT, behind which RSET stands.
func BenchmarkRelay(b *testing.B) {
	for _, ext := range []string{"HELP", "CHUNKING"} {
		b.Run(ext, func(b *testing.B) { benchRelay(b, ext) })
	}
}

func benchRelay(b *testing.B, ext string) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	var taken atomic.Int64
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go willing(c, &taken, ext)
		}
	}()
	w := &tcpWorld{newWorld(&testing.T{}), ln.Addr().String()}
	w.mx("d.test", "10 mx.d.test 192.0.2.1")
	w.cfg.MTA.Default.TaskHiwat = 0
	w.arrived = make(chan struct{}, b.N+1)
	w.opt.Dialer = w
	e := New(w.cfg, w.opt)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { e.Run(ctx) })
	text := []byte("Subject: x\r\n\r\n" + strings.Repeat("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd\r\n", 64))
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		m := w.message(&config.Relay{}, fmt.Sprintf("u%d@d.test", i))
		m.Open = func(context.Context) (Text, error) { return Text{Data: text}, nil }
		e.Submit(ctx, m)
	}
	for range b.N {
		<-w.arrived
	}
	b.StopTimer()
	cancel()
	wg.Wait()
	if int(taken.Load()) != b.N {
		b.Errorf("the sink took %d of %d", taken.Load(), b.N)
	}
}

// BenchmarkText makes a text of 4 KB ready for the wire.
func BenchmarkText(b *testing.B) {
	text := []byte(strings.Repeat("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd\r\n", 64))
	w := writer{conn: &fakeConn{}, out: make([]byte, 0, flushSize)}
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		w.begin(0)
		if err := w.text(text); err != nil {
			b.Fatal(err)
		}
		w.end()
		w.out = w.out[:0]
	}
}
