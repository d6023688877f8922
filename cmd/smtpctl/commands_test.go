package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"smtpd/internal/ctl"
	"smtpd/internal/mail"
)

func TestCommands(t *testing.T) {
	no := &ctl.Failure{}
	why := &ctl.Failure{Reason: "first\nsecond\x1b"}
	gone := &ctl.Failure{Reason: ctl.ReasonMissing}
	ok := outcome{"command succeeded\n", "", 0}
	bad := outcome{"command failed\n", "", 1}
	missed := outcome{"", "smtpctl: fopen: No such file or directory\n", 1}
	tests := map[string]struct {
		answer  answer
		request string
		want    outcome
	}{
		"pause mda":                                {says("", nil), "switch mda on", ok},
		"resume smtp":                              {says("", no), "switch smtp off", bad},
		"log verbose":                              {says("", nil), "switch verbose on", ok},
		"log brief":                                {says("", nil), "switch verbose off", ok},
		"trace smtp":                               {says("", nil), "switch trace smtp on", ok},
		"untrace all":                              {says("", nil), "switch trace all off", ok},
		"trace foo":                                {nil, "", outcome{"", "smtpctl: invalid trace keyword: foo\n", 1}},
		"profile imsg":                             {says("", nil), "switch profile imsg on", ok},
		"unprofile xx":                             {nil, "", outcome{"", "smtpctl: invalid profile keyword: xx\n", 1}},
		"update table nosuch":                      {says("", no), "update nosuch", bad},
		"reload":                                   {says("", why), "reload", outcome{"command failed\n", "first\nsecond\\^[\n", 1}},
		"pause mta from ::1 for x.test":            {says("", nil), "block ::1 x.test", ok},
		"resume mta from 1.2.3.4 for x":            {says("", nil), "unblock 1.2.3.4 x", ok},
		"resume route 99":                          {says("", nil), "route 99", ok},
		"sched 7f5a56b6":                           {says("1", nil), "schedule 7f5a56b6", outcome{"1 envelope scheduled\n", "", 0}},
		"schedule all":                             {says("10", nil), "schedule all", outcome{"10 envelopes scheduled\n", "", 0}},
		"schedule deadbeef":                        {says("0", nil), "schedule deadbeef", outcome{"0 envelope scheduled\n", "", 0}},
		"pause envelope all":                       {says("18", nil), "pause all", outcome{"18 envelopes paused\n", "", 0}},
		"resume envelope 7f5a56b65f591e71":         {says("1", nil), "resume 7f5a56b65f591e71", outcome{"1 envelope resumed\n", "", 0}},
		"remove deadbeefdeadbeef":                  {says("0", nil), "remove deadbeefdeadbeef", outcome{"0 envelope removed\n", "", 0}},
		"discover 7f5a56b65f591e71":                {says("1", nil), "discover 7f5a56b65f591e71", outcome{"1 envelope discovered\n", "", 0}},
		"discover 7f5a56b6":                        {says("3", nil), "discover 7f5a56b6", outcome{"3 envelopes discovered\n", "", 0}},
		"discover all":                             {says("2", nil), "discover all", outcome{"2 envelopes discovered\n", "", 0}},
		"discover deadbeefdeadbeef":                {says("0", nil), "discover deadbeefdeadbeef", outcome{"0 envelopes discovered\n", "", 0}},
		"remove all":                               {says("", no), "remove all", bad},
		"show status":                              {rows("MDA|running", "MTA|running", "SMTP|paused"), "status", outcome{"MDA running\nMTA running\nSMTP paused\n", "", 0}},
		"show stats":                               {rows("control.session|1", "uptime|2", "uptime.human|2s"), "stats", outcome{"control.session=1\nuptime=2\nuptime.human=2s\n", "", 0}},
		"show hosts":                               {data("a\n", "b\x1b[2J\n"), "show hosts", outcome{"a\nb?[2J\n", "", 0}},
		"show mta paused":                          {data("127.0.0.1 -> remote.test\n"), "show mta paused", outcome{"127.0.0.1 -> remote.test\n", "", 0}},
		"show tls x.test":                          {data("x\n"), "show tls x.test", outcome{"x\n", "", 0}},
		"show envelope 7f5a56b65f591e71":           {data("version: 3\n"), "envelope 7f5a56b65f591e71", outcome{"version: 3\n", "", 0}},
		"show envelope 0000000000000001":           {says("", gone), "envelope 0000000000000001", missed},
		"show message 00000001":                    {says("", gone), "message 00000001", missed},
		"show message 7f5a56b65f591e71":            {data("Subject: x\n", "\n"), "message 7f5a56b6", outcome{"Subject: x\n\n", "", 0}},
		"show queue":                               {rows(), "queue", outcome{"", "", 0}},
		"lookup aliases alias root":                {rows("found|bob|31"), "lookup aliases alias root", outcome{"result: found\nvalue: bob\ntime: 31us\n", "", 0}},
		"lookup aliases alias nobody":              {rows("not found||5"), "lookup aliases alias nobody", outcome{"result: not found\ntime: 5us\n", "", 1}},
		"lookup aliases alias no-answer":           {rows("temporary failure||5|it\x1bs\ndown"), "lookup aliases alias no-answer", outcome{"result: temporary failure\nreason: it\\^[s\\^Jdown\ntime: 5us\n", "", 75}},
		"lookup hosts source":                      {rows("found|192.0.2.1|5"), "lookup hosts source", outcome{"result: found\nvalue: 192.0.2.1\ntime: 5us\n", "", 0}},
		"lookup domains domain x.test":             {rows("found||5"), "lookup domains domain x.test", outcome{"result: found\ntime: 5us\n", "", 0}},
		"lookup a b " + strings.Repeat("k", 1<<16): {nil, "", outcome{"", "smtpctl: the question is too long\n", 1}},
		"remove where from=*@x.test age>2h":        {says("12", nil), "remove where  from=*@x.test age>2h", outcome{"12 envelopes removed\n", "", 0}},
		"pause where --dry-run tries>1":            {says("1", nil), "pause where dry-run tries>1", outcome{"1 envelope selected\n", "", 0}},
		"schedule where colour=red":                {nil, "", outcome{"", "smtpctl: \"colour=red\": there is no condition colour=\n", 1}},
		"show queue where":                         {nil, "", outcome{"", "smtpctl: a selection has 1 to 16 conditions\n", 1}},
		"show queue where to=x@y":                  {rows(), "queue where to=x@y", outcome{}},
		"corrupt return 170db3e6":                  {data("x\n"), "show corrupt return 170db3e6", outcome{"x\n", "", 0}},
		"q v":                                      {data("x\n"), "show queue verify", outcome{"x\n", "", 0}},
		"queue import":                             {data("1 message, 2 envelopes imported, 0 left\n"), "show queue import", outcome{"1 message, 2 envelopes imported, 0 left\n", "", 0}},
		"corrupt remove x":                         {data("error: no such item\n"), "show corrupt remove x", outcome{"error: no such item\n", "", 1}},
		"frob":                                     {nil, "", outcome{"", possibilities(t), 255}},
		"show stats now":                           {nil, "", outcome{"", "invalid command\n", 255}},
		"-x show stats":                            {nil, "", outcome{"", usageText, 1}},
		"-s":                                       {nil, "", outcome{"", usageText, 1}},
	}
	for words, tt := range tests {
		t.Run(words, func(t *testing.T) {
			d := startDaemon(t, tt.answer)
			check(t, run(t, "smtpctl", d.socket, "", strings.Fields(words)...), tt.want)
			asked := d.requests()
			if tt.request == "" && len(asked) != 0 || tt.request != "" && !slices.Equal(asked, []string{tt.request}) {
				t.Errorf("asked %q; want %q", asked, tt.request)
			}
		})
	}
}

func possibilities(t *testing.T) string {
	t.Helper()
	for _, r := range readRecording(t, "commands.txt") {
		if slices.Equal(r.words, []string{"foo"}) {
			return r.output
		}
	}
	t.Fatal("not recorded")
	return ""
}

// -s names a socket just as the environment does, and wins over it.
func TestSocketOption(t *testing.T) {
	d := startDaemon(t, says("", nil))
	for _, args := range [][]string{{"-s", d.socket, "reload"}, {"-s" + d.socket, "-q", "/nowhere", "--", "reload"}} {
		check(t, run(t, "smtpctl", "/nowhere", "", args...), outcome{"command succeeded\n", "", 0})
	}
}

func TestPrivileges(t *testing.T) {
	setgid := standing{1000, 1000, 1000, 77}
	root := standing{}
	tests := map[string]struct {
		who  standing
		name string
		args string
		env  string
		want outcome
	}{
		"root, no daemon":     {root, "smtpctl", "show status", "", outcome{"", "smtpctl: smtpd doesn't seem to be running\n", 1}},
		"no setgid bit":       {ordinary, "smtpctl", "show status", "", outcome{"", "smtpctl: unknown group _nobody-has-it\n", 1}},
		"setgid, sendmail":    {ordinary, "sendmail", "bob", "", outcome{"", "sendmail: unknown group _nobody-has-it\n", 1}},
		"environment ignored": {setgid, "smtpctl", "show status", "/nowhere", outcome{"", "smtpctl: unknown group _nobody-has-it\n", 1}},
		"own daemon":          {ordinary, "smtpctl", "show status", "/nowhere", outcome{"", "smtpctl: smtpd doesn't seem to be running\n", 1}},
		"monitor":             {root, "smtpctl", "monitor", "", outcome{"", "smtpctl: smtpd doesn't seem to be running\n", 1}},
		"other name":          {root, "smtpfoo", "", "", outcome{"", "smtpctl: unsupported mode\n", 1}},
		"parse comes first":   {ordinary, "smtpctl", "log x", "", outcome{"", "possibilities are:\nlog brief\nlog verbose\n", 255}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := runWith(t, tt.name, tt.env, "", func(p *program) { p.who = tt.who; p.group = "_nobody-has-it" }, strings.Fields(tt.args)...)
			check(t, got, tt.want)
		})
	}
	t.Run("ordinary user", func(t *testing.T) {
		for name, args := range map[string]string{"smtpctl": "pause mda", "mailq": "", "newaliases": ""} {
			got := runWith(t, name, "", "", func(p *program) { p.who = standing{1000, 1000, 0, 0}; p.group = "root" }, strings.Fields(args)...)
			check(t, got, outcome{"", name + ": need root privileges\n", 1})
		}
	})
}

// entryOf is the entry that a recorded line shows.
func entryOf(t *testing.T, line string) *ctl.Entry {
	t.Helper()
	f := strings.SplitN(line, "|", 14)
	if len(f) != 14 {
		t.Fatalf("line %q", line)
	}
	kinds := map[string]string{"mda": "1", "mta": "2", "bounce": "3"}
	flags := map[string]string{"": "0", "suspend": "8"}
	states := map[string]string{"pending": "1", "inflight": "2"}
	client := map[string]string{"inet4": "127.0.0.1"}
	e, err := ctl.ParseEntry([]string{f[0], client[f[1]], kinds[f[2]], flags[f[3]], f[4], f[5], f[6], f[7], "0", f[9], f[10],
		states[f[11]], "0", "0", f[13], "0", "", "", "act", ""})
	if err != nil {
		t.Fatalf("line %q: %v", line, err)
	}
	now := time.Unix(1795217035, 0)
	d, err := time.ParseDuration(f[12] + "s")
	if err != nil {
		t.Fatal(err)
	}
	if f[11] == "inflight" {
		d = -d
	}
	e.Since = now.Add(d)
	return e
}

func TestShowQueueRecorded(t *testing.T) {
	var lines []string
	for _, r := range append(readRecording(t, "busy.txt"), readRecording(t, "commands.txt")...) {
		if len(r.words) > 1 && r.words[1][0] == 'q' && r.status == 0 {
			for line := range strings.Lines(r.output) {
				if !strings.Contains(line, "|bounce|") { // their expiry is another field's
					lines = append(lines, strings.TrimSuffix(line, "\n"))
				}
			}
		}
	}
	if len(lines) < 30 {
		t.Fatalf("got %d lines from the recordings", len(lines))
	}
	d := startDaemon(t, func(c *ctl.Conn, _ []string) (string, error) {
		for _, l := range lines {
			if err := c.Send(ctl.KindRow, entryOf(t, l).Fields()...); err != nil {
				return "", err
			}
		}
		return "", nil
	})
	want := outcome{strings.Join(lines, "\n") + "\n", "", 0}
	check(t, run(t, "smtpctl", d.socket, "", "show", "queue"), want)
	check(t, run(t, "mailq", d.socket, ""), want)
	check(t, run(t, "sendmail", d.socket, "", "-bp"), want)
}

func TestShowQueueForms(t *testing.T) {
	now := time.Unix(1795217035, 0)
	e := ctl.Entry{State: ctl.StatePending, Since: now.Add(396 * time.Second), Envelope: mail.Envelope{
		ID: 0xc5cf85294c46b74c, Kind: mail.KindMTA, Dispatcher: "out", Client: "127.0.0.1",
		Rcpt: mail.Address{User: "x", Domain: "broken.test"}, Dest: mail.Address{User: "y", Domain: "broken.test"},
		Created: now.Add(-time.Hour), TTL: 4 * 24 * time.Hour, LastTry: now.Add(-5 * time.Minute), Retry: 2,
		LastStatus: mail.Status{Code: 450, Enh: [3]uint8{4, 2, 1}, Text: "later"}, LastError: "450 4.2.1 later", RemoteMTA: "mx.broken.test",
	}}
	d := startDaemon(t, func(c *ctl.Conn, _ []string) (string, error) { return "", c.Send(ctl.KindRow, e.Fields()...) })
	check(t, run(t, "smtpctl", d.socket, "", "show", "queue", "-v"), outcome{
		"c5cf85294c46b74c  mta by action \"out\"\n  from:    <>\n  to:      x@broken.test (now y@broken.test)\n" +
			"  age:     1h, tried 2 times, last 5m ago, expires in 3d23h\n  state:   time: next try in 6m36s\n" +
			"  reply:   mx.broken.test: 450 4.2.1 later\n", "", 0})
	check(t, run(t, "smtpctl", d.socket, "", "show", "queue", "--json"), outcome{
		`{"envelope":"c5cf85294c46b74c","message":"c5cf8529","source":"inet4","client":"127.0.0.1","kind":"mta","action":"out",` +
			`"flags":[],"sender":"","recipient":"x@broken.test","destination":"y@broken.test",` +
			`"created":"2026-11-20T22:23:55Z","expires":"2026-11-24T22:23:55Z","last_try":"2026-11-20T23:18:55Z","tries":2,` +
			`"state":"pending","next_try":"2026-11-20T23:30:31Z","waits_for":"time: next try in 6m36s",` +
			`"last_status":"450 4.2.1 later","last_status_from":"mx.broken.test","last_error":"450 4.2.1 later"}` + "\n", "", 0})
}

func TestWaitsFor(t *testing.T) {
	now := time.Unix(1795217035, 0)
	tests := map[string]ctl.Entry{
		"the daemon, which is not running":                             {State: ctl.StateOffline},
		"its action to be configured again, or to be removed":          {State: ctl.StateInvalid},
		"the end of the attempt that began 5s ago":                     {State: ctl.StateInflight, Since: now.Add(-5 * time.Second)},
		"an operator: resume envelope":                                 {State: ctl.StatePending, Envelope: mail.Envelope{Flags: mail.FlagSuspended}},
		"its release: its action holds mail":                           {State: ctl.StatePending, Wait: mail.WaitRelease},
		"its release: its action holds mail, the next window is in 2h": {State: ctl.StatePending, Wait: mail.WaitWindow, Since: now.Add(2 * time.Hour)},
		"a limit: its relay has as much as it can use":                 {State: ctl.StatePending, Wait: mail.WaitRelay},
		"a limit, LIMIT_HOST of [relay:a.test,smtp]":                   {State: ctl.StateInflight, Reason: "a limit, LIMIT_HOST of [relay:a.test,smtp]"},
		"its turn: due now":                                            {State: ctl.StatePending, Since: now},
	}
	for want, e := range tests {
		if got := waitsFor(&e, now); got != want {
			t.Errorf("got %q; want %q", got, want)
		}
	}
}

func TestMonitor(t *testing.T) {
	stats := [][]string{
		{}, {},
		{"smtp.session.inet4|3", "smtp.session|0", "scheduler.envelope|1", "scheduler.delivery.ok|1", "scheduler.delivery.permfail|1", "queue.bounce|1"},
		{"smtp.session.inet4|4", "scheduler.envelope|0", "scheduler.delivery.ok|3", "scheduler.delivery.permfail|1", "queue.bounce|1", "uptime.human|4s"},
		{"smtp.session.inet4|2", "smtp.session|2"}, // the processes were replaced
	}
	n := 0
	d := startDaemon(t, func(c *ctl.Conn, r []string) (string, error) {
		n++
		return rows(stats[min(n, len(stats))-1]...)(c, r)
	})
	tick := make(chan time.Time, 100)
	for range 25 {
		tick <- time.Time{}
	}
	close(tick)
	got := runWith(t, "smtpctl", d.socket, "", func(p *program) { p.tick = tick }, "monitor")
	head := "--- client ---  -- envelope --   ---- relay/delivery --- ------- misc -------\n" +
		"curr conn disc  curr  enq  deq   ok tmpfail prmfail loop expire remove bounce\n"
	zeros := "   0    0    0     0    0    0    0       0       0    0      0      0      0\n"
	still := strings.Replace(zeros, "   0", "   2", 1)
	want := head + zeros + zeros +
		"   0    3    3     1    3    2    1       0       1    0      0      0      1\n" +
		"   0    1    1     0    1    2    2       0       0    0      0      0      0\n" +
		still + strings.Repeat(still, 20) + "\n" + head + still
	check(t, got, outcome{want, "", 0})
}

func TestEncrypt(t *testing.T) {
	for prefix, args := range map[string][]string{"$6$": {"encrypt", "secret"}, "$2": {"encrypt", "-a", "bcrypt", "secret"}, "$y$": {"encrypt", "-a", "yescrypt", "x"}} {
		got := run(t, "smtpctl", "", "", args...)
		if got.status != 0 || got.err != "" || !strings.HasPrefix(got.out, prefix) || strings.Count(got.out, "\n") != 1 {
			t.Errorf("%v: got %+v", args, got)
		}
	}
	got := run(t, "smtpctl", "", "one\ntwo\n", "encrypt")
	if got.status != 0 || strings.Count(got.out, "$6$") != 2 || strings.Count(got.out, "\n") != 2 {
		t.Errorf("two lines: got %+v", got)
	}
	check(t, run(t, "smtpctl", "", strings.Repeat("x", 2000)+"\n", "encrypt"), outcome{"", "smtpctl: password too long\n", 1})
}
