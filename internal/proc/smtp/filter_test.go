package smtp

import (
	"net/netip"
	"testing"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/privsep"
	engine "smtpd/internal/smtp"
)

// rules is a listener with a set of built-in filters as a site has it: none
// holds for the client of walkRules.
func rules() (*config.Config, *config.Listener) {
	list := func(name string, entries ...string) *config.Table {
		return &config.Table{Name: name, Backend: "static", Type: config.TableList, List: entries}
	}
	c := &config.Config{Filters: map[string]*config.Filter{}, Tables: map[string]*config.Table{
		"hosts":   list("hosts", "*.dyn.example", "*.dsl.example", "*.cust.example"),
		"helos":   list("helos", "ylmf-pc", "localhost.invalid", "*.local.invalid"),
		"senders": list("senders", "@spam.example", "bounce@list.example", "@*.bad.example"),
		"rcpts":   list("rcpts", "trap@dest.test", "@gone.example"),
		"nets":    list("nets", "192.0.2.0/24", "198.51.100.0/24", "203.0.113.7"),
		"rehosts": list("rehosts", "^[0-9]+-[0-9]+-[0-9]+-[0-9]+\\.", "(dyn|pool|dial)[0-9]*\\."),
		"rehelo":  list("rehelo", "^\\[?[0-9.]+\\]?$"),
		"refrom":  list("refrom", "^[0-9]{8,}@", "\\.invalid$"),
		"rercpt":  list("rercpt", "%.*@", "!.*@"),
	}}
	l := &config.Listener{}
	add := func(phase, cond, table string, not, regex bool) {
		name := phase + cond + table
		c.Filters[name] = &config.Filter{Name: name, Phase: phase, Cond: cond, Decision: "reject", Text: "550 no",
			Match: config.Match{Not: not, Table: table, Regex: regex}}
		l.Filter = append(l.Filter, name)
	}
	add("connect", "src", "nets", false, false)
	add("connect", "rdns", "hosts", false, false)
	add("connect", "rdns", "rehosts", false, true)
	add("ehlo", "fcrdns", "", true, false)
	add("ehlo", "helo", "helos", false, false)
	add("ehlo", "helo", "rehelo", false, true)
	add("mail-from", "auth", "", false, false)
	add("mail-from", "mail-from", "senders", false, false)
	add("mail-from", "mail-from", "refrom", false, true)
	add("rcpt-to", "rcpt-to", "rcpts", false, false)
	add("rcpt-to", "rcpt-to", "rercpt", false, true)
	add("data", "src", "nets", false, false)
	return c, l
}

// walkRules is what filters are asked and told in a session of one mail.
func walkRules(b testing.TB, back *backend) {
	ctx := b.Context()
	f := back.Filter(&engine.Client{Addr: netip.MustParseAddrPort("192.0.1.9:4000"), Host: "mx.sender.example", FCrDNS: "pass"})
	ask := func(p engine.Phase, param string) {
		if v := f.Ask(ctx, p, param); v.Action != engine.Proceed {
			b.Fatalf("%s: %v", p, v)
		}
	}
	ask(engine.PhaseConnect, "mx.sender.example|192.0.1.9")
	ask(engine.PhaseEhlo, "mx.sender.example")
	f.Report(engine.EventIdentify, "EHLO", "mx.sender.example")
	ask(engine.PhaseMailFrom, "someone@sender.example")
	ask(engine.PhaseRcptTo, "u17@dest.test")
	ask(engine.PhaseData, "")
	if f.Lines(ctx, nil) != nil {
		b.Fatal("lines")
	}
	ask(engine.PhaseCommit, "")
	f.Report(engine.EventTxReset, "00000000")
	ask(engine.PhaseQuit, "")
	f.Close()
}

// fromFilter answers for the tables of built-in filters.
func (w *world) fromFilter(r *ipc.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch m := r.Msg.(type) {
	case *imsg.TableChecks:
		w.checks += len(m.Queries)
		a := &imsg.TableAnswers{}
		for _, q := range m.Queries {
			a.Found = append(a.Found, q.Key == w.bad)
		}
		r.Reply(a, nil)
	case *imsg.TableCopy:
		a := &imsg.TableCopied{OK: m.Table != "server", Keys: []byte(w.bad + "\x00")}
		if w.copying == nil {
			r.Reply(a, nil)
			return
		}
		w.wanted++
		go func() { // ends with the test at the latest
			<-w.copying
			r.Reply(a, nil)
		}()
	}
}

// A table of a file is copied once it has been asked, and a change counts from
// the moment on at which lookup has said so, whatever is under way; a table that
// is not to be had is asked each time.
func TestTableCopies(t *testing.T) {
	w := newWorld(t)
	l := w.listen()
	l.Filter = []string{"f"}
	w.conf.Filters = map[string]*config.Filter{"f": {Name: "f", Phase: "ehlo", Cond: "helo", Decision: "reject", Text: "550 no",
		Match: config.Match{Table: "file"}}}
	w.mu.Lock() // it answers already
	w.bad, w.copying = "one.test", make(chan struct{}, 1)
	w.mu.Unlock()
	w.start()
	checks := func() int {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.checks
	}
	stale := func(bad string) {
		w.mu.Lock()
		w.bad = bad
		w.mu.Unlock()
		if _, err := ipc.Ask[*imsg.Done](t.Context(), w.lookup, &imsg.TableStale{Table: "file"}); err != nil {
			t.Fatal(err)
		}
	}
	d := w.dial()
	settled := func() { // until lookup is not asked any more
		w.waitFor(func() bool {
			before := checks()
			d.want("EHLO good.test", "250")
			return checks() == before
		})
	}
	d.want("", "220", "EHLO one.test", "550", "EHLO two.test", "250")
	if checks() != 2 {
		t.Errorf("%d questions before the copy has come", checks())
	}
	w.waitFor(func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.wanted > 0
	})
	stale("two.test") // the copy under way is of the time before
	w.copying <- struct{}{}
	d.want("EHLO one.test", "250", "EHLO two.test", "550")
	w.copying <- struct{}{}
	settled()
	n := checks()
	d.want("EHLO one.test", "250", "EHLO two.test", "550", "EHLO one.test", "250")
	if checks() != n {
		t.Errorf("%d questions beside the copy", checks()-n)
	}
	for _, want := range []int{1, 0} { // each is told once
		a, err := ipc.Ask[*imsg.TableTallies](t.Context(), w.lookup, &imsg.TableTally{})
		if err != nil {
			t.Fatal(err)
		}
		if len(a.Tables) != want {
			t.Errorf("counted %+v", a.Tables)
		}
		for _, c := range a.Tables { // one of them was there
			if c.Table != "file" || c.Lookups < 4 || c.Misses != c.Lookups-1 || c.Errors != 0 {
				t.Errorf("counted %+v", c)
			}
		}
	}
	stale("one.test")
	d.want("EHLO two.test", "250", "EHLO one.test", "550")
	w.copying <- struct{}{}
	settled()
	w.replace(w.lookup, w.ours.Lookup) // what a new lookup has read may be another
	n = checks()
	w.waitFor(func() bool { // smtp may not have been told yet
		d.want("EHLO good.test", "250")
		return checks() > n
	})
	d.want("EHLO one.test", "550")
	w.copying <- struct{}{}
}

// What built-in filters cost a session of one mail. A mail costs the daemon
// about 230 us in all (bench/run J).
func BenchmarkRules(b *testing.B) {
	c, l := rules()
	f, err := newFilters(c, l)
	if err != nil {
		b.Fatal(err)
	}
	back := &backend{s: &server{env: &privsep.Env{Now: time.Now}}, l: l, filters: f}
	b.ReportAllocs()
	for b.Loop() {
		walkRules(b, back)
	}
}
