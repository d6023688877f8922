package expand

import (
	"context"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/mail"
	"smtpd/internal/ruleset"
	"smtpd/table"
)

// host is a system that a test describes.
type host struct {
	users    map[string]User
	forwards map[string]Forward
	files    map[string]string
	read     []string // whose .forward files were asked for
}

func (h *host) User(_ context.Context, name string) (User, error) {
	if name == "later" {
		return User{}, errors.New("trouble")
	}
	u, ok := h.users[name]
	if !ok {
		return User{}, table.ErrNotFound
	}
	return u, nil
}

func (h *host) Forward(_ context.Context, u User) (Forward, error) {
	h.read = append(h.read, u.Name)
	return h.forwards[u.Name], nil
}

func (h *host) Include(_ context.Context, path string) (string, error) {
	text, ok := h.files[path]
	switch {
	case path == "/trouble":
		return "", errors.New("input/output error")
	case !ok:
		return "", &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	return text, nil
}

// broken is a table that cannot answer.
type broken struct{ table.Backend }

func (broken) Lookup(context.Context, table.Service, string) (string, error) {
	return "", errors.New("server is down")
}

func (broken) Check(context.Context, table.Service, string) (bool, error) {
	return false, errors.New("server is down")
}

// tables is table.Set for tables of a test.
type tables map[string]*table.Table

func (ts tables) Check(ctx context.Context, name string, s table.Service, key string) (bool, error) {
	if ts[name] == nil {
		return false, errors.New("no table " + name)
	}
	return ts[name].Check(ctx, s, key)
}

func (ts tables) Lookup(ctx context.Context, name string, s table.Service, key string) (string, error) {
	if ts[name] == nil {
		return "", errors.New("no table " + name)
	}
	return ts[name].Lookup(ctx, s, key)
}

var now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// world is the configuration of the tests: one domain for each kind of action.
//
//	example.org  mbox, aliases        virt.test   maildir, virtual
//	plain.test   mbox, no aliases     user.test   maildir as vmail, virtual
//	base.test    mbox, a userbase     expand.test expand-only, aliases
//	forward.test forward-only         lmtp.test   lmtp rcpt-to, aliases
//	down.test    a rule that cannot be decided
//	dead.test    aliases that cannot be asked
//	rejected.test, told.test reject   all else: relay
func world(aliases map[string]string) (*Expander, *host) {
	c := config.Defaults()
	c.LocalNames = []string{"localhost"}
	c.SRS = config.SRS{Key: "secret", Backup: "older", TTL: 4 * 24 * time.Hour}
	actions := map[string]*config.Action{
		"example.org":   {Method: config.MethodMbox, Alias: "aliases"},
		"plain.test":    {Method: config.MethodMbox},
		"base.test":     {Method: config.MethodMbox, Userbase: "users", TTL: time.Hour},
		"virt.test":     {Method: config.MethodMaildir, Virtual: "virtual"},
		"user.test":     {Method: config.MethodMaildir, Virtual: "virtual", User: "vmail"},
		"as.test":       {Method: config.MethodMaildir, User: "carol"},
		"expand.test":   {Method: config.MethodExpandOnly, Alias: "aliases"},
		"forward.test":  {Method: config.MethodForwardOnly},
		"lmtp.test":     {Method: config.MethodLMTP, RcptTo: true, Alias: "aliases"},
		"dead.test":     {Method: config.MethodMbox, Alias: "down"},
		"basedead.test": {Method: config.MethodMbox, Userbase: "down"},
	}
	line := 0
	rule := func(r *config.Rule) {
		line++
		r.Pos = config.Pos{File: "c", Line: line}
		r.From.Kind = config.FromAny
		c.Rules = append(c.Rules, r)
	}
	ts := tables{
		"aliases": table.New("aliases", "static", table.NewStatic(aliases)),
		"virtual": table.New("virtual", "static", table.NewStatic(map[string]string{
			"a@virt.test": "alice", "tag+x@virt.test": "bob", "tag@virt.test": "alice", "short": "carol", "short+y": "bob",
			"two@virt.test": "short, alice", "far@virt.test": "x@remote.test", "self": "self", "vu@virt.test": "alice",
			"@catch.virt.test": "dave", "f@virt.test": "/var/mail/f", "err@virt.test": "error:550 5.7.1 go away",
			"a@user.test": "vmail", "b@user.test": "alice", "bad@virt.test": "a b", "vmail@user.test": "vmail",
			"c@user.test": "|/bin/x"})),
		"users": table.New("users", "static", table.NewStatic(map[string]string{"virt": "5000:5000:/home/virt", "odd": "x"})),
		"down":  table.New("down", "static", broken{}),
	}
	for _, domain := range slices.Sorted(maps.Keys(actions)) {
		actions[domain].Name = domain
		ts["is "+domain] = table.New("d", "static", table.NewList(domain, "catch."+domain))
		rule(&config.Rule{For: config.For{Kind: config.ForDomain, Match: config.Match{Table: "is " + domain}}, Action: domain})
	}
	c.Actions = actions
	c.Actions["out"] = &config.Action{Name: "out", Method: config.MethodRelay, Relay: &config.Relay{}}
	ts["is rejected"] = table.New("d", "static", table.NewList("rejected.test"))
	rule(&config.Rule{For: config.For{Kind: config.ForDomain, Match: config.Match{Table: "is rejected"}}, Reject: true})
	ts["is told"] = table.New("d", "static", table.NewList("told.test"))
	rule(&config.Rule{For: config.For{Kind: config.ForDomain, Match: config.Match{Table: "is told"}}, Reject: true,
		Reply: "450 4.7.1 come back at night"})
	ts["is nobody's"] = table.New("d", "static", table.NewList("norule.test"))
	rule(&config.Rule{For: config.For{Kind: config.ForDomain, Match: config.Match{Not: true, Table: "is nobody's"}}, Action: "out"})
	h := &host{users: map[string]User{"root": {"root", 0, 0, "/root"}, "daemon": {"daemon", 1, 1, "/"}},
		forwards: map[string]Forward{}, files: map[string]string{}}
	for i, name := range []string{"alice", "bob", "carol", "dave", "vmail"} {
		h.users[name] = User{name, uint32(1001 + i), 1000, "/home/" + name}
	}
	return &Expander{Config: c, Tables: ts, System: h, Now: func() time.Time { return now },
		Daemon: User{Name: "_smtpd", UID: 77}}, h
}

func request(rcpt string) *Request {
	return &Request{Envelope: mail.Envelope{Client: "192.0.2.7", Sender: mail.SplitAddress("s@sender.test"),
		Rcpt: mail.SplitAddress(rcpt)}}
}

// show prints a result in one line: refusals without the address, envelopes as
// kind:action:destination:user and what is executed, with the sub-address of an
// item.
func show(q *Request, r *Result) string {
	if r.Status.Code != 250 {
		return strings.TrimSuffix(r.Status.String(), ": <"+q.Envelope.Rcpt.String()+">")
	}
	var out []string
	for _, e := range r.Branches {
		s := e.Kind.String() + ":" + e.Dispatcher + ":" + e.Dest.String()
		if e.User != "" {
			s += ":" + e.User
		}
		if e.Exec != "" {
			s += ":" + e.Exec
		}
		if e.SubAddr != "" {
			s += " +" + e.SubAddr
		}
		if e.Internal {
			s += " internal"
		}
		out = append(out, s)
	}
	return strings.Join(out, "; ")
}

const (
	invalid  = "550 5.1.1 Invalid recipient"
	refused  = "550 5.7.1 Invalid recipient"
	dead     = "550 5.2.4 Mailing list expansion problem"
	problem  = "451 4.2.4 Mailing list expansion problem"
	troubles = "451 4.3.0 Temporary failure"
)

func TestExpand(t *testing.T) {
	aliases := map[string]string{
		"root": "alice", "list": "alice, bob", "self": "self, bob", "alice": "alice", "twice": "alice, alice, Alice",
		"tag": "bob", "tag+x": "carol", "remote": "x@remote.test, y@remote.test, X@Remote.test", "loop": "loop2",
		"loop2": "loop", "loop3": "loop4, bob", "loop4": "loop3", "addrloop": "addrloop@example.org",
		"deep0": "deep1", "deep1": "deep2", "deep2": "deep3", "deep3": "deep4", "deep4": "deep5", "deep5": "deep6",
		"deep6": "deep7", "deep7": "deep8", "deep8": "deep9", "deep9": "bob", "cmd": "|/bin/x, \"|y, z\"", "file": "/var/mail/a",
		"inc": ":include:/list", "inc2": "include:/list, carol", "incmissing": ":include:/nosuch, bob", "incempty": ":include:/nosuch",
		"inctrouble": ":include:/trouble", "incbad": ":include:/bad", "incnested": ":include:/nested",
		"err": "error:550 5.7.1 go away", "err4": ":error:451 come back", "errquoted": `"error:550 no"`, "bad": "a b",
		"baduser": "bob, nosuch", "badrule": "bob, x@rejected.test", "escaped": `\bob`, "fwd": "carol@example.org",
		"comment": "bob # alice", "mixed": "bob@plain.test, bob", "subs": "bob+x, bob+y, bob+x, carol", "subsub": "bob+z", "emptylist": " , ,", "sameaddr": "carol@plain.test, bob@plain.test, carol@plain.test",
	}
	tests := map[string]struct{ rcpt, want string }{
		"user":              {"alice@plain.test", "mda:plain.test:alice@plain.test:alice"},
		"user is folded":    {"ALICE@Plain.test", "mda:plain.test:ALICE@Plain.test:alice"},
		"sub-address":       {"alice+x@plain.test", "mda:plain.test:alice+x@plain.test:alice"},
		"no such user":      {"nosuch@plain.test", invalid},
		"tag of nobody":     {"+x@plain.test", invalid},
		"user, not now":     {"later@plain.test", troubles},
		"relay":             {"x@remote.test", "mta:out:x@remote.test"},
		"reject":            {"x@rejected.test", refused},
		"no rule":           {"x@norule.test", refused},
		"alias":             {"root@example.org", "mda:example.org:root@example.org:alice"},
		"alias of two":      {"list@example.org", "mda:example.org:list@example.org:alice; mda:example.org:list@example.org:bob"},
		"names itself":      {"self@example.org", invalid},
		"names only itself": {"alice@example.org", "mda:example.org:alice@example.org:alice"},
		"one copy":          {"twice@example.org", "mda:example.org:twice@example.org:alice"},
		"sub-addresses of items": {"subs+q@example.org", "mda:example.org:subs+q@example.org:bob +x; " +
			"mda:example.org:subs+q@example.org:bob +y; mda:example.org:subs+q@example.org:carol"},
		"sub-address of an item": {"subsub@example.org", "mda:example.org:subsub@example.org:bob +z"},
		"tag in aliases":         {"tag+x@example.org", "mda:example.org:tag+x@example.org:carol"},
		"other tag":              {"tag+y@example.org", "mda:example.org:tag+y@example.org:bob"},
		"addresses":              {"remote@example.org", "mta:out:x@remote.test internal; mta:out:y@remote.test internal; mta:out:X@Remote.test internal"},
		"loop of names":          {"loop@example.org", dead},
		"loop beside a user":     {"loop3@example.org", "mda:example.org:loop3@example.org:bob"},
		"loop of an address":     {"addrloop@example.org", dead},
		"too deep":               {"deep0@example.org", dead},
		"just not too deep":      {"deep3@example.org", "mda:example.org:deep3@example.org:bob"},
		"command":                {"cmd@example.org", "mda:example.org:cmd@example.org:_smtpd:|/bin/x; mda:example.org:cmd@example.org:_smtpd:|y, z"},
		"file":                   {"file@example.org", "mda:example.org:file@example.org:_smtpd:/var/mail/a"},
		"include":                {"inc@example.org", "mda:example.org:inc@example.org:alice; mta:out:x@remote.test internal"},
		"include beside a user":  {"inc2@example.org", "mda:example.org:inc2@example.org:alice; mta:out:x@remote.test internal; mda:example.org:inc2@example.org:carol"},
		"include missing":        {"incmissing@example.org", "mda:example.org:incmissing@example.org:bob"},
		"only include, missing":  {"incempty@example.org", dead},
		"include, not now":       {"inctrouble@example.org", problem},
		"include, bad line":      {"incbad@example.org", problem},
		"include in include":     {"incnested@example.org", "mda:example.org:incnested@example.org:bob"},
		"error":                  {"err@example.org", "550 5.7.1 go away"},
		"temporary error":        {"err4@example.org", "451 come back"},
		"error in quotes":        {"errquoted@example.org", problem},
		"bad list":               {"bad@example.org", problem},
		"one unknown user":       {"baduser@example.org", invalid},
		"one refused address":    {"badrule@example.org", refused},
		"escape":                 {"escaped@example.org", "mda:example.org:escaped@example.org:bob"},
		"comment":                {"comment@example.org", "mda:example.org:comment@example.org:bob"},
		"two actions":            {"mixed@example.org", "mda:plain.test:bob@plain.test:bob internal; mda:example.org:mixed@example.org:bob"},
		"empty list":             {"emptylist@example.org", dead},
		"address twice":          {"sameaddr@example.org", "mda:plain.test:carol@plain.test:carol internal; mda:plain.test:bob@plain.test:bob internal"},
		"virtual, tag":           {"tag+x@virt.test", "mda:virt.test:tag+x@virt.test:bob"},
		"virtual, other tag":     {"tag+z@virt.test", "mda:virt.test:tag+z@virt.test:alice"},
		"virtual, case":          {"A@VIRT.test", "mda:virt.test:A@VIRT.test:alice"},
		"virtual, name":          {"short@virt.test", "mda:virt.test:short@virt.test:carol"},
		"virtual, name and tag":  {"short+y@virt.test", "mda:virt.test:short+y@virt.test:bob"},
		"virtual, again":         {"two@virt.test", "mda:virt.test:two@virt.test:carol; mda:virt.test:two@virt.test:alice"},
		"virtual, remote":        {"far@virt.test", "mta:out:x@remote.test internal"},
		"virtual, itself":        {"self@virt.test", invalid},
		"virtual, catch-all":     {"any@catch.virt.test", "mda:virt.test:any@catch.virt.test:dave"},
		"virtual, missing":       {"alice@virt.test", invalid},
		"virtual, file":          {"f@virt.test", "mda:virt.test:f@virt.test:_smtpd:/var/mail/f"},
		"virtual, error":         {"err@virt.test", "550 5.7.1 go away"},
		"virtual, bad":           {"bad@virt.test", problem},
		"user U":                 {"a@user.test", "mda:user.test:a@user.test:vmail"},
		"user U, other":          {"b@user.test", "mda:user.test:b@user.test:vmail"},
		"user U, command":        {"c@user.test", "mda:user.test:c@user.test:vmail:|/bin/x"},
		"userbase":               {"virt@base.test", "mda:base.test:virt@base.test:virt"},
		"userbase, missing":      {"alice@base.test", invalid},
		"userbase, bad value":    {"odd@base.test", troubles},
		"userbase, not now":      {"x@basedead.test", troubles},
		"aliases, not now":       {"x@dead.test", problem},
		"expand-only":            {"root@expand.test", dead},
		"expand-only, file":      {"file@expand.test", "mda:expand.test:file@expand.test:_smtpd:/var/mail/a"},
		"forward-only, none":     {"alice@forward.test", problem},
		"lmtp, two destinations": {"list@lmtp.test", "mda:lmtp.test:list@lmtp.test:alice; mda:lmtp.test:list@lmtp.test:bob"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			x, h := world(aliases)
			h.files["/list"] = "# members\nalice\n\nx@remote.test # far\n"
			h.files["/bad"] = "alice bob\n"
			h.files["/nested"] = ":include:/list\nbob\n"
			q := request(tt.rcpt)
			r := x.Expand(t.Context(), q, nil)
			if got := show(q, r); got != tt.want {
				t.Errorf("got %s\nwant %s", got, tt.want)
			}
			check(t, x, q, r)
		})
	}
}

// check holds for every result.
func check(t *testing.T, x *Expander, q *Request, r *Result) {
	t.Helper()
	if (r.Status.Code == 250) != (len(r.Branches) > 0) || r.Status.Code < 250 || r.Status.Code > 599 {
		t.Errorf("status %v with %d branches", r.Status, len(r.Branches))
	}
	seen := map[string]bool{}
	for _, e := range r.Branches {
		a := x.Config.Actions[e.Dispatcher]
		if a == nil || (e.Kind == mail.KindMTA) != (a.Method == config.MethodRelay) || (e.Kind == mail.KindMDA) != (e.User != "") {
			t.Errorf("branch %+v", e)
		}
		if e.TTL <= 0 {
			t.Errorf("branch with ttl %v", e.TTL)
		}
		key := fmt.Sprint(e.Kind, e.Dispatcher, e.User, e.Exec, e.Dest, e.SubAddr)
		if seen[key] {
			t.Errorf("two branches %s", key)
		}
		seen[key] = true
	}
}

// TestForward has the recordings of what OpenSMTPD 7.8 does with .forward files
// of carol, with the replies 424 and 524 as 451 and 550.
// A rule's own words are the status, through an alias as well.
func TestOwnWords(t *testing.T) {
	x, _ := world(map[string]string{"told": "x@told.test"})
	for _, rcpt := range []string{"x@told.test", "told@example.org"} {
		q := request(rcpt)
		if got := show(q, x.Expand(t.Context(), q, nil)); got != "450 4.7.1 come back at night" {
			t.Errorf("%s: %s", rcpt, got)
		}
	}
}

func TestForward(t *testing.T) {
	const home = "mda:plain.test:carol@plain.test:carol"
	insecure := Forward{Refuse: &mail.Status{Code: 550, Enh: [3]uint8{5, 2, 4}, Text: "Mailing list expansion problem"},
		Reason: "/home/carol/.forward: insecure file"}
	text := func(s string) Forward { return Forward{Present: true, Data: []byte(s)} }
	tests := map[string]struct {
		f          Forward
		want, note string
	}{
		"none":            {Forward{}, home, ""},
		"home missing":    {Forward{Reason: "/home/carol: no such file or directory"}, home, "warn: smtpd: /home/carol: no such"},
		"empty":           {text(""), home, "info: forward file is empty"},
		"line feed":       {text("\n"), home, ""},
		"comment":         {text("# only comment\n"), home, ""},
		"insecure":        {insecure, dead, "warn: smtpd: /home/carol/.forward: insecure file"},
		"another":         {text("bob\n"), "mda:plain.test:carol@plain.test:bob", ""},
		"no line feed":    {text("bob"), "mda:plain.test:carol@plain.test:bob", ""},
		"old line ends":   {text("bob\r\nalice\r\n"), "mda:plain.test:carol@plain.test:bob; mda:plain.test:carol@plain.test:alice", ""},
		"quoted":          {text("\"carol\"\n"), problem, "info: parse error in forward file"},
		"escaped self":    {text("\\carol\n"), home, ""},
		"self and bob":    {text("carol, bob\n"), home + "; mda:plain.test:carol@plain.test:bob", ""},
		"include":         {text(":include:/etc/passwd\nbob\n"), "mda:plain.test:carol@plain.test:bob", ""},
		"only include":    {text(":include:/etc/passwd\n"), dead, "info: expansion of <carol@plain.test>: nothing is left of it"},
		"error":           {text("error:550 no\n"), "550 no", ""},
		"command":         {text("|/bin/true\n"), home + ":|/bin/true", ""},
		"file":            {text("/home/carol/fwd.mbox\n"), home + ":/home/carol/fwd.mbox", ""},
		"quoted file":     {text("\"/home/carol/with space.mbox\"\n"), problem, "info: parse error in forward file"},
		"quoted command":  {text("\"|exec /bin/cat > /tmp/fwd2.out\"\n"), home + ":|exec /bin/cat > /tmp/fwd2.out", ""},
		"trailing":        {text("bob # trailing\n"), "mda:plain.test:carol@plain.test:bob", ""},
		"two words":       {text("bob alice\n"), problem, "info: parse error in forward file"},
		"no domain":       {text("bob@\n"), problem, "info: parse error in forward file"},
		"display name":    {text("B O B <bob@example.org>\n"), problem, "info: parse error in forward file"},
		"brackets":        {text("<bob@example.org>\n"), problem, "info: parse error in forward file"},
		"semicolon":       {text("alice;bob\n"), problem, "info: parse error in forward file"},
		"unknown":         {text("nosuchuser\n"), invalid, ""},
		"rejected":        {text("x@rejected.test\n"), refused, ""},
		"address":         {text("bob@plain.test\n"), "mda:plain.test:bob@plain.test:bob internal", ""},
		"own address":     {text("carol@plain.test\n"), dead, "info: expansion of <carol@plain.test>: it leads back to itself"},
		"hundred":         {text(strings.Repeat("bob\n", MaxForward)), "mda:plain.test:carol@plain.test:bob", ""},
		"more":            {text(strings.Repeat("bob\n", MaxForward+1)), problem, "info: expansion of <carol@plain.test>: too many items in the .forward file of carol"},
		"rubbish":         {text("\x00\x01\xff\n"), problem, "info: parse error in forward file"},
		"looping users":   {text("dave\n"), dead, "info: expansion of <carol@plain.test>: nothing is left of it"},
		"escaped command": {text("\\|/bin/sh\n"), problem, "info: parse error in forward file"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			x, h := world(nil)
			h.forwards["carol"], h.forwards["dave"] = tt.f, text("carol\n")
			q := request("carol@plain.test")
			r := x.Expand(t.Context(), q, nil)
			if got := show(q, r); got != tt.want {
				t.Errorf("got %s\nwant %s", got, tt.want)
			}
			check(t, x, q, r)
			notes := fmt.Sprint(r.Notes)
			if !strings.Contains(notes, tt.note) || (tt.note == "") != (len(r.Notes) == 0) {
				t.Errorf("got notes %s, want %q", notes, tt.note)
			}
			if strings.Contains(notes, "bob") {
				t.Errorf("the log holds what the file holds: %s", notes)
			}
		})
	}
}

// TestForwardIsAskedFor names the cases in which a .forward file is read at all.
func TestForwardIsAskedFor(t *testing.T) {
	tests := map[string]struct{ rcpt, want string }{
		"local":               {"alice@plain.test", "[alice]"},
		"relay":               {"x@remote.test", "[]"},
		"unknown":             {"nosuch@plain.test", "[]"},
		"virtual":             {"a@virt.test", "[alice]"},
		"user U":              {"a@user.test", "[vmail]"},
		"user U, another":     {"b@user.test", "[]"},
		"user U, no aliases":  {"carol@as.test", "[carol]"},
		"user U, somebody":    {"alice@as.test", "[]"},
		"itself in the file":  {"bob@plain.test", "[bob]"},
		"expand-only":         {"alice@expand.test", "[alice]"},
		"one after the other": {"dave@plain.test", "[dave bob]"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			x, h := world(nil)
			h.forwards["bob"] = Forward{Present: true, Data: []byte("bob\n")}
			h.forwards["dave"] = Forward{Present: true, Data: []byte("bob\n")}
			x.Expand(t.Context(), request(tt.rcpt), nil)
			if got := fmt.Sprint(h.read); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// TestSystemAccounts: what an account of the system writes runs nothing.
func TestSystemAccounts(t *testing.T) {
	for _, user := range []string{"root", "daemon"} {
		for _, text := range []string{"|/bin/true", "/tmp/x", "alice, |/bin/true"} {
			x, h := world(nil)
			h.forwards[user] = Forward{Present: true, Data: []byte(text)}
			q := request(user + "@plain.test")
			if got := show(q, x.Expand(t.Context(), q, nil)); got != problem {
				t.Errorf("%s: %s: got %s, want %s", user, text, got, problem)
			}
			h.forwards[user] = Forward{Present: true, Data: []byte("alice")}
			if got := show(q, x.Expand(t.Context(), q, nil)); got != "mda:plain.test:"+user+"@plain.test:alice" {
				t.Errorf("%s: alice: got %s", user, got)
			}
		}
	}
}

func TestForwardOnly(t *testing.T) {
	tests := map[string]string{
		"bob@plain.test": "mda:plain.test:bob@plain.test:bob internal",
		"x@remote.test":  "mta:out:x@remote.test internal",
		"|/bin/true":     problem, "/tmp/x": problem, "error:550 no": problem, "": problem, "# nothing": problem,
		"bob": problem, // has none of his own
	}
	for text, want := range tests {
		x, h := world(nil)
		h.forwards["alice"] = Forward{Present: true, Data: []byte(text)}
		q := request("alice@forward.test")
		if got := show(q, x.Expand(t.Context(), q, nil)); got != want {
			t.Errorf("%q: got %s, want %s", text, got, want)
		}
	}
}

func TestUnprivileged(t *testing.T) {
	x, h := world(map[string]string{"cmd": "|/bin/x"})
	x.Unprivileged, x.Daemon = true, h.users["alice"]
	h.forwards["alice"] = Forward{Present: true, Data: []byte("|/bin/y")}
	h.forwards["bob"] = Forward{Refuse: &mail.Status{Code: 451}, Reason: "home folder /home/bob of bob: permission denied"}
	h.users["same"] = User{"same", x.Daemon.UID, 1, "/home/same"}
	tests := map[string]string{
		"alice@plain.test": "mda:plain.test:alice@plain.test:alice:|/bin/y",
		"same@plain.test":  "mda:plain.test:same@plain.test:same",
		"bob@plain.test":   invalid,
		"cmd@example.org":  "mda:example.org:cmd@example.org:alice:|/bin/x",
		"bob@lmtp.test":    "mda:lmtp.test:bob@lmtp.test:bob",
		"a@user.test":      invalid,
		"c@user.test":      invalid,
		"alice@as.test":    invalid,
		"x@remote.test":    "mta:out:x@remote.test",
	}
	for rcpt, want := range tests {
		q := request(rcpt)
		if got := show(q, x.Expand(t.Context(), q, nil)); got != want {
			t.Errorf("%s: got %s, want %s", rcpt, got, want)
		}
	}
}

func TestRuleTrouble(t *testing.T) {
	x, _ := world(nil)
	x.Config.Rules = slices.Insert(x.Config.Rules, 0, &config.Rule{Pos: config.Pos{File: "c", Line: 99},
		From: config.From{Kind: config.FromSrc, Match: config.Match{Table: "down"}}, For: config.For{Kind: config.ForAny}, Action: "out"})
	q := request("alice@plain.test")
	tr := &Trace{}
	r := x.Expand(t.Context(), q, tr)
	if got := show(q, r); got != troubles {
		t.Errorf("got %s", got)
	}
	if !strings.Contains(tr.String(), "c:99: match from src <down> for any action \"out\": cannot tell: from src <down>") {
		t.Errorf("got trace\n%s", tr)
	}
}

// TestSRS decodes what leads back here. The addresses were made by the formula
// of the comment in srs.go.
func TestSRS(t *testing.T) {
	x, _ := world(nil)
	c := &x.Config.SRS
	day := func(n int) string { // n days ago
		d := (int(now.Unix()/86400) - n + srsDays) % srsDays
		return string([]byte{srsDigits[d>>5], srsDigits[d&31]})
	}
	made := func(key, kind, body string) string {
		sum := sha1.Sum([]byte(key + body + "@fwd.test"))
		return kind + "=" + base64.StdEncoding.EncodeToString(sum[:])[:4] + "=" + body
	}
	fresh := made("secret", "SRS0", day(1)+"=sender.test=orig")
	tests := map[string]struct{ user, want string }{
		"fresh":       {fresh, "orig@sender.test"},
		"lower case":  {strings.ToLower(fresh[:4]) + fresh[4:], "orig@sender.test"},
		"backup key":  {made("older", "SRS0", day(0)+"=sender.test=orig"), "orig@sender.test"},
		"tomorrow":    {made("secret", "SRS0", day(-1)+"=sender.test=a=b"), "a=b@sender.test"},
		"four days":   {made("secret", "SRS0", day(4)+"=sender.test=orig"), "orig@sender.test"},
		"five days":   {made("secret", "SRS0", day(5)+"=sender.test=orig"), "too old"},
		"in two days": {made("secret", "SRS0", day(-2)+"=sender.test=orig"), "too old"},
		"forged":      {"SRS0=AAAA=" + day(0) + "=sender.test=orig", "made with another key, or changed"},
		"other user":  {strings.Replace(fresh, "orig", "root", 1), "made with another key, or changed"},
		"second hop":  {made("secret", "SRS1", "first.test==HHHH=TT=sender.test=orig"), "SRS0=HHHH=TT=sender.test=orig@first.test"},
		"bad day":     {made("secret", "SRS0", "1=sender.test=orig"), "not an SRS address"},
		"no user":     {made("secret", "SRS0", day(0)+"=sender.test"), "not an SRS address"},
		"no host":     {made("secret", "SRS1", "=x"), "not an SRS address"},
		"no hash":     {"SRS0=abcd", "not an SRS address"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			back, err := srsDecode(c, mail.Address{User: tt.user, Domain: "fwd.test"}, now)
			got := back.String()
			if err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("%s: got %s, want %s", tt.user, got, tt.want)
			}
		})
	}
	for _, tt := range []struct {
		rcpt, sender, want string
	}{
		{fresh + "@fwd.test", "", "mta:out:orig@sender.test internal"},
		{fresh + "@fwd.test", "x@y.test", "mta:out:" + fresh + "@fwd.test"},
		{"SRS0=AAAA=AA=b=c@fwd.test", "", invalid},
	} {
		q := request(tt.rcpt)
		q.Envelope.Sender = mail.SplitAddress(tt.sender)
		r := x.Expand(t.Context(), q, nil)
		if got := show(q, r); got != tt.want {
			t.Errorf("got %s, want %s", got, tt.want)
		}
		if tt.want == invalid && (len(r.Notes) != 1 || r.Notes[0].Text != "SRS failed to decode: "+tt.rcpt) {
			t.Errorf("got notes %v", r.Notes)
		}
	}
}

func TestTrace(t *testing.T) {
	x, _ := world(map[string]string{"root": "alice, x@remote.test"})
	tr := &Trace{}
	r := x.Expand(t.Context(), request("root@example.org"), tr)
	want := []string{"address <root@example.org>", "no: for domain <is base.test> (domain is example.org)",
		`c:5: match from any for domain <is example.org> action "example.org": matches`, "alias root: alice, x@remote.test", "deliver to alice",
		"address <x@remote.test>", "relay to x@remote.test by action out"}
	text := tr.String()
	for _, w := range want {
		if i := strings.Index(text, w); i < 0 {
			t.Errorf("no %q in the rest of\n%s", w, text)
		} else {
			text = text[i:]
		}
	}
	if ruleset.Where(r.Rule) != "c:5" {
		t.Errorf("decided by %s", ruleset.Where(r.Rule))
	}
}

// TestProperties expands recipients of random alias graphs: it always ends
// within its bounds, gives the same each time, and an accepted recipient leads
// to existing users alone.
func TestProperties(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		words := []string{"alice", "bob", "n0", "n1", "n2", "n3", "n4", "n5", "n6@example.org", "n7@example.org", "alice@plain.test",
			"x@remote.test", "n0+t", "/f", "|c", "carol@virt.test", "n1@expand.test"}
		aliases := map[string]string{}
		for i := range 8 {
			var list []string
			for range 1 + rnd.IntN(4) {
				list = append(list, words[rnd.IntN(len(words))])
			}
			aliases[fmt.Sprint("n", i)] = strings.Join(list, ", ")
		}
		x, h := world(aliases)
		h.forwards["bob"] = Forward{Present: true, Data: []byte(aliases["n0"])}
		for i := range 8 {
			q := request(fmt.Sprintf("n%d@example.org", i))
			r := x.Expand(t.Context(), q, nil)
			check(t, x, q, r)
			if again := x.Expand(t.Context(), q, &Trace{}); show(q, again) != show(q, r) {
				t.Errorf("seed %d: got %s, then %s", seed, show(q, r), show(q, again))
			}
			for _, e := range r.Branches {
				if _, known := h.users[e.User]; e.Kind == mail.KindMDA && !known && e.User != "_smtpd" {
					t.Errorf("seed %d: delivery as %s", seed, e.User)
				}
			}
		}
	}
}

// TestNodesAreBounded has lists that would grow without end.
func TestNodesAreBounded(t *testing.T) {
	aliases := map[string]string{"big": ":include:/big"}
	x, h := world(aliases)
	var b strings.Builder
	for i := range MaxEnvelopes + 10 {
		fmt.Fprintf(&b, "u%d@remote.test\n", i)
	}
	h.files["/big"] = b.String()
	q := request("big@example.org")
	if got := show(q, x.Expand(t.Context(), q, nil)); got != problem {
		t.Errorf("got %.80s", got)
	}
	for level := range 9 { // ten lists at each level, each naming all of the next
		var next []string
		for i := range 10 {
			next = append(next, fmt.Sprintf("l%d-%d@example.org", level+1, i))
		}
		for i := range 10 {
			aliases[fmt.Sprintf("l%d-%d", level, i)] = strings.Join(next, ",")
		}
	}
	x, _ = world(aliases)
	q = request("l0-0@example.org")
	if got := show(q, x.Expand(t.Context(), q, nil)); got != dead && got != problem && got != invalid {
		t.Errorf("got %.80s", got)
	}
}

func FuzzForward(f *testing.F) {
	for _, s := range []string{"bob # x", `"|a, b", \c`, "error:550 no", ":include:/x", "a@b,/f"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		items, err := ParseForward(data)
		if err != nil {
			return
		}
		x, h := world(nil)
		h.forwards["carol"] = Forward{Present: true, Data: data}
		q := request("carol@plain.test")
		r := x.Expand(t.Context(), q, nil)
		check(t, x, q, r)
		for _, e := range r.Branches {
			if strings.ContainsAny(e.Exec+e.User+e.Dest.String(), "\r\n\x00") {
				t.Errorf("a control character in %+v", e)
			}
		}
		if len(items) == 0 && r.Status.Code != 250 {
			t.Errorf("no items, but %v", r.Status)
		}
	})
}

func BenchmarkExpand(b *testing.B) {
	x, _ := world(map[string]string{"root": "alice"})
	q := request("root@example.org")
	b.ReportAllocs()
	for b.Loop() {
		if r := x.Expand(b.Context(), q, nil); r.Status.Code != 250 {
			b.Fatal(r.Status)
		}
	}
}
