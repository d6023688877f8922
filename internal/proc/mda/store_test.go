package mda

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"smtpd/internal/config"
	"smtpd/internal/ctl"
	"smtpd/internal/imsg"
	"smtpd/internal/mail"
)

// lmtpStore is a mail store. Who is called no... is refused for good, full... for
// now; a mail for one called slow... is not answered before slow is closed.
type lmtpStore struct {
	addr string
	slow chan struct{}
	held chan struct{} // one of slow has come
	wg   sync.WaitGroup

	mu    sync.Mutex
	conns int // ever
	mails map[string]int
}

func newLMTPStore(t *testing.T, network, addr string) *lmtpStore {
	t.Helper()
	ln, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &lmtpStore{addr: ln.Addr().String(), slow: make(chan struct{}), held: make(chan struct{}, 1000), mails: map[string]int{}}
	s.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s.wg.Go(func() { s.serve(c) })
		}
	})
	t.Cleanup(func() { ln.Close() })
	return s
}

func (s *lmtpStore) serve(c net.Conn) {
	defer c.Close()
	s.mu.Lock()
	s.conns++
	s.mu.Unlock()
	fmt.Fprint(c, "220 store\r\n")
	user, data := "", false
	for in := bufio.NewScanner(c); in.Scan(); {
		line := in.Text()
		switch {
		case data && line != ".":
			continue
		case data:
			data = false
			if strings.HasPrefix(user, "slow") {
				s.held <- struct{}{}
				<-s.slow
			}
			s.mu.Lock()
			s.mails[user]++
			s.mu.Unlock()
			fmt.Fprintf(c, "250 2.0.0 taken for %s\r\n", user)
		case strings.HasPrefix(line, "RCPT TO:<no"):
			fmt.Fprintf(c, "550 5.1.1 nobody here is %s\r\n", line)
		case strings.HasPrefix(line, "RCPT TO:<full"):
			fmt.Fprint(c, "452 4.2.2 full\r\n")
		case strings.HasPrefix(line, "RCPT TO:<"):
			user = strings.TrimSuffix(line[len("RCPT TO:<"):], ">")
			fmt.Fprint(c, "250 ok\r\n")
		case line == "DATA":
			data = true
			fmt.Fprint(c, "354 go on\r\n")
		case line == "QUIT":
			return
		default:
			fmt.Fprint(c, "250 ok\r\n")
		}
	}
}

// storeHouse has 100 users, an action for the store, and a wrapper.
func storeHouse(t *testing.T, act config.Action) *house {
	return newHouse(t, func(c *config.Config, h *house) {
		act.Name, act.Method = "store", config.MethodLMTP
		c.Actions["store"], c.Wrappers = &act, map[string]string{"w": "cat >/dev/null"}
		h.users["vmail"] = imsg.UserInfo{Found: true, Name: "vmail", UID: 4000, GID: 4000, Home: "/home/vmail"}
		for i := range 100 {
			for _, name := range []string{"u", "no", "full", "slow"} {
				name = fmt.Sprint(name, i)
				h.users[name] = imsg.UserInfo{Found: true, Name: name, UID: uint32(5000 + i), GID: 5000, Home: "/home/" + name}
			}
		}
	})
}

// TestStoreByTCP: one worker of the daemon's own brings the mail of all users, by
// few connections, and each gets the answer that is his.
func TestStoreByTCP(t *testing.T) {
	s := newLMTPStore(t, "tcp4", "127.0.0.1:0")
	h := storeHouse(t, config.Action{Dest: s.addr})
	const each = 6
	id := mail.EnvelopeID(0x100000001)
	users := map[mail.EnvelopeID]string{}
	for i := range 100 * each {
		name := fmt.Sprint("u", i%100)
		switch i % 100 {
		case 7, 8:
			name = fmt.Sprint("no", i%100)
		case 9:
			name = fmt.Sprint("full", i%100)
		}
		users[id] = name
		h.transfer(envelope(id, "store", name))
		id += 1 << 32
	}
	for id, name := range users {
		r := h.result(id)
		want := 250
		switch name[0] {
		case 'n':
			want = 550
		case 'f':
			want = 451
		}
		if r.Status.Code != want || (want == 550 && !strings.Contains(r.Line, "nobody here is RCPT TO:<"+name+">")) {
			t.Errorf("%s: got %+v; want %d", name, r, want)
		}
	}
	want := []imsg.DeliverStart{{User: ctl.DaemonUser, UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), Home: "/", Store: true}}
	if got := h.starts(); !slices.Equal(got, want) {
		t.Errorf("started %+v; want %+v", got, want)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if most := maxPlain + 3*each; s.conns > most { // a refusal ends its connection
		t.Errorf("%d connections; want %d at most", s.conns, most)
	}
	for i := range 100 {
		if got := s.mails[fmt.Sprint("u", i)]; got != each && (i < 7 || i > 9) {
			t.Errorf("u%d has %d mails; want %d", i, got, each)
		}
	}
}

// TestStoreIdentity: where a store could tell who comes, and where the action says
// who shall, it is this user.
func TestStoreIdentity(t *testing.T) {
	alone := t.TempDir() + "/s"
	newLMTPStore(t, "unix", alone)
	s := newLMTPStore(t, "tcp4", "127.0.0.1:0")
	me := uint32(os.Getuid())
	tests := map[string]struct {
		act config.Action
		uid uint32
		tcp bool
	}{
		"tcp":              {config.Action{Dest: s.addr}, me, true},
		"tcp, user":        {config.Action{Dest: s.addr, User: "vmail"}, 4000, true},
		"socket":           {config.Action{Dest: alone}, 5001, false},
		"socket, user":     {config.Action{Dest: alone, User: "vmail"}, 4000, false},
		"socket by format": {config.Action{Dest: "%{user.directory}/lmtp"}, 5001, false},
		"socket at home":   {config.Action{Dest: "~/lmtp"}, 5001, false},
		"format within":    {config.Action{Dest: "store.%{dest.domain}.invalid:24"}, me, true},
		"wrapper":          {config.Action{Dest: s.addr, Wrapper: "w"}, 5001, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			h := storeHouse(t, tt.act)
			e := envelope(0x100000001, "store", "u1")
			h.transfer(e)
			r := h.result(e.ID)
			if ok := r.Status.OK(); ok != (tt.act.Dest == s.addr || tt.act.Dest == alone) && tt.act.Wrapper == "" {
				t.Errorf("got %+v", r)
			}
			if w := h.starts(); len(w) != 1 || w[0].UID != tt.uid || w[0].Store != tt.tcp {
				t.Errorf("started %+v; want uid %d, for a store %v", w, tt.uid, tt.tcp)
			}
		})
	}
}

// TestStoreWorkerDies: what it held fails for now, all else goes to the next.
func TestStoreWorkerDies(t *testing.T) {
	s := newLMTPStore(t, "tcp4", "127.0.0.1:0")
	h := storeHouse(t, config.Action{Dest: s.addr})
	for i := range 40 {
		h.transfer(envelope(mail.EnvelopeID(0x100000001+i<<32), "store", fmt.Sprint("slow", i)))
	}
	for range maxPlain {
		<-s.held
	}
	h.worker(0).Close()
	close(s.slow)
	died := 0
	for i := range 40 {
		switch r := h.result(mail.EnvelopeID(0x100000001 + i<<32)); {
		case r.Line == "the delivery process died" && r.Status.Code == 451:
			died++
		case !r.Status.OK():
			t.Errorf("got %+v", r)
		}
	}
	if died != maxPlain {
		t.Errorf("%d deliveries failed; want %d", died, maxPlain)
	}
}

// TestStoreSlowUser: one whose mailbox hangs has some of the worker, the others
// have the rest.
func TestStoreSlowUser(t *testing.T) {
	s := newLMTPStore(t, "tcp4", "127.0.0.1:0")
	h := storeHouse(t, config.Action{Dest: s.addr})
	id := mail.EnvelopeID(0x100000001)
	send := func(user string) mail.EnvelopeID {
		defer func() { id += 1 << 32 }()
		h.transfer(envelope(id, "store", user))
		return id
	}
	for range 2 * maxPlain {
		send("slow1")
	}
	for range maxParty {
		<-s.held
	}
	if r := h.result(send("u1")); !r.Status.OK() {
		t.Errorf("got %+v", r)
	}
	if n := len(s.held); n != 0 {
		t.Errorf("%d more of one user; want %d at a time", n, maxParty)
	}
	close(s.slow)
	for last := range mail.EnvelopeID(2 * maxPlain) {
		if r := h.result(0x100000001 + last<<32); !r.Status.OK() {
			t.Errorf("got %+v", r)
		}
	}
}

// TestLine: clients come first, users take turns, and the mail of each keeps its
// order.
func TestLine(t *testing.T) {
	var q line
	add := func(user, name string) {
		j := &job{env: &mail.Envelope{User: user, Dispatcher: name}}
		j.run.Method, j.run.Path = string(config.MethodLMTP), "store:24"
		if name == "question" {
			j.answer = func(*imsg.DeliverResult) {}
		}
		q.add(j)
	}
	for i := range 4 {
		add("hot", fmt.Sprint("hot", i))
	}
	add("a", "a0")
	add("b", "b0")
	add("a", "a1")
	add("b", "question")
	if q.of("hot") != 4 || q.of("b") != 1 || q.of("c") != 0 || q.n != 8 {
		t.Errorf("%d of hot, %d of b, %d in all", q.of("hot"), q.of("b"), q.n)
	}
	var got []string
	for j := q.next(); j != nil; j = q.next() {
		got = append(got, j.env.Dispatcher)
	}
	if want := strings.Fields("question hot0 a0 b0 hot1 a1 hot2 hot3"); !slices.Equal(got, want) {
		t.Errorf("got %v; want %v", got, want)
	}
}
