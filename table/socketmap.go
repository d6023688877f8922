package table

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// Bounds of a socketmap.
const (
	socketmapConns = 8                // ours: connections to one server
	socketmapLimit = 100_000          // octets of an answer, as the protocol's other users
	socketmapTime  = 10 * time.Second // ours: connect, ask and hear the answer
)

// socketmap asks a server by the protocol of sendmail's socketmap: netstrings
// "MAP KEY", answered by "OK data", "NOTFOUND ", or "TEMP", "TIMEOUT" and "PERM"
// with a reason.
type socketmap struct {
	name    string // of the map, as the server is asked
	network string
	address string
	slots   chan struct{}       // one for each connection in use
	idle    chan *socketmapConn // connections for the next question
}

type socketmapConn struct {
	net.Conn
	in *bufio.Reader
}

var errSocketmap = errors.New("socketmap: not an answer")

// NewSocketmap makes the backend of a socketmap server: "/path" or "unix:/path"
// of its socket, or "inet:host:port". It connects when first asked and again
// when the server has gone.
func NewSocketmap(name, param string) (Backend, error) {
	m := &socketmap{name: name, network: "unix", slots: make(chan struct{}, socketmapConns),
		idle: make(chan *socketmapConn, socketmapConns)}
	var isNet bool
	if m.address, isNet = strings.CutPrefix(param, "inet:"); isNet {
		m.network = "tcp"
		if _, _, err := net.SplitHostPort(m.address); err != nil {
			return nil, fmt.Errorf("socketmap: %w", err)
		}
	} else if m.address = strings.TrimPrefix(param, "unix:"); !strings.HasPrefix(m.address, "/") {
		return nil, fmt.Errorf("socketmap: %q is not an absolute path", param)
	}
	if name == "" || strings.ContainsAny(name, " ,:") || hasControl(name) {
		return nil, fmt.Errorf("socketmap: %q cannot name a map", name)
	}
	return m, nil
}

// Lookup implements Backend.
func (m *socketmap) Lookup(ctx context.Context, _ Service, key string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, socketmapTime)
	defer cancel()
	select {
	case m.slots <- struct{}{}:
		defer func() { <-m.slots }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	select {
	case c := <-m.idle: // the server may have closed it meanwhile: then once more
		if answer, err := m.ask(ctx, c, key); err == nil {
			return parseSocketmap(answer)
		}
	default:
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, m.network, m.address)
	if err != nil {
		return "", fmt.Errorf("socketmap: %w", err)
	}
	answer, err := m.ask(ctx, &socketmapConn{conn, bufio.NewReader(conn)}, key)
	if err != nil {
		return "", fmt.Errorf("socketmap: %w", err)
	}
	return parseSocketmap(answer)
}

// ask puts one question over c and keeps it for the next when all went well.
func (m *socketmap) ask(ctx context.Context, c *socketmapConn, key string) (string, error) {
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		c.Close()
		return "", err
	}
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	answer, err := c.exchange(m.name + " " + key)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		c.Close()
		return "", err
	}
	select {
	case m.idle <- c:
	default:
		c.Close()
	}
	return answer, nil
}

func (c *socketmapConn) exchange(text string) (string, error) {
	if _, err := fmt.Fprintf(c, "%d:%s,", len(text), text); err != nil {
		return "", err
	}
	return readNetstring(c.in)
}

// readNetstring reads "LENGTH:octets,".
func readNetstring(in *bufio.Reader) (string, error) {
	n := 0
	for digits := 0; ; digits++ {
		b, err := in.ReadByte()
		if err != nil {
			return "", err
		}
		if b == ':' && digits > 0 {
			break
		}
		if b < '0' || b > '9' || digits > 6 {
			return "", errSocketmap
		}
		n = n*10 + int(b-'0')
	}
	if n > socketmapLimit {
		return "", errSocketmap
	}
	buf := make([]byte, n+1)
	if _, err := io.ReadFull(in, buf); err != nil {
		return "", err
	}
	if buf[n] != ',' {
		return "", errSocketmap
	}
	return string(buf[:n]), nil
}

// parseSocketmap takes an answer apart. PERM is no answer to the question
// either, so that it is temporary like the others.
func parseSocketmap(answer string) (string, error) {
	word, data, _ := strings.Cut(answer, " ")
	switch word {
	case "OK":
		return data, nil
	case "NOTFOUND":
		return "", ErrNotFound
	case "TEMP", "TIMEOUT", "PERM":
		return "", errors.New("socketmap: " + word + " " + strconv.Quote(data[:min(len(data), 200)]))
	}
	return "", errSocketmap
}

// Check implements Backend.
func (m *socketmap) Check(ctx context.Context, s Service, key string) (bool, error) {
	_, err := m.Lookup(ctx, s, key)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// Fetch implements Backend.
func (m *socketmap) Fetch(context.Context, Service) (string, error) { return "", ErrService }

// Update implements Backend: the server knows best.
func (m *socketmap) Update(context.Context) error { return nil }

// Services implements Backend.
func (m *socketmap) Services() Service { return allServices &^ (Auth | Regex) }

// Close implements Backend.
func (m *socketmap) Close() error {
	for {
		select {
		case c := <-m.idle:
			c.Close()
		default:
			return nil
		}
	}
}
