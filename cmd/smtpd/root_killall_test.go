package main

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// life is one run of the daemon, which ended by a kill.
type life struct {
	start time.Time
	gone  map[string]bool // envelopes whose end was on disk, and the scheduler told
}

// copyOf is a mail that arrived.
type copyOf struct {
	message string // id
	when    time.Time
}

var (
	goneLine   = regexp.MustCompile(`scheduler: gone ([0-9a-f]{16})`)
	receivedID = regexp.MustCompile(`(?m)\bid ([0-9a-f]{8})\b`)
)

// TestRootSurvivesKillOfAll kills every process at once during load, many
// rounds, and starts again: no acknowledged mail is missing, and what came twice
// was on its way at a kill.
func TestRootSurvivesKillOfAll(t *testing.T) {
	if !asRoot(t) {
		return
	}
	sink, err := startSink("127.0.0.1:2525", filepath.Join(t.TempDir(), "sink"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sink.close)
	l := &ledger{acked: map[string]string{}}
	rounds, perRound := killRounds(t)
	var lives []life
	for range rounds {
		begin := time.Now()
		d := startRoot(t, rootConf, "-T", "scheduler")
		stop, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			l.send(1<<30, 20, []string{"alice@localhost", "someone@far.test"}, stop)
		}()
		enough := l.len() + 1 + rand.N(2*perRound)
		tick := time.NewTicker(time.Millisecond)
		for end := time.Now().Add(2 * time.Minute); l.len() < enough && time.Now().Before(end); {
			<-tick.C
		}
		tick.Stop()
		d.kill()
		close(stop)
		<-done
		waitFor(t, "all processes to end", func() bool { return len(workersAlive()) == 0 })
		// What they sent before is kept in this life: else it looks like the next one's.
		waitFor(t, "the sink to have read all", func() bool { return sink.sessions.Load() == 0 })
		lives = append(lives, life{begin, endsIn(d.log())})
	}
	lives = append(lives, life{start: time.Now()})
	d := startRoot(t, rootConf)
	waitEmpty(t, d, 3*time.Minute)
	dirs := []string{"/home/alice/Maildir/new", sink.dir}
	l.check(t, collect(t, dirs...), true)
	checkCopies(t, lives, copies(t, dirs...))
	if err := d.stop(); err != nil {
		t.Error(err)
	}
}

// endsIn are the envelopes whose end a log with traces of the scheduler tells.
func endsIn(log string) map[string]bool {
	gone := map[string]bool{}
	for _, m := range goneLine.FindAllStringSubmatch(log, -1) {
		gone[m[1]] = true
	}
	return gone
}

// copies reads when what arrived, by token.
func copies(t *testing.T, dirs ...string) map[string][]copyOf {
	t.Helper()
	all := map[string][]copyOf{}
	for _, dir := range dirs {
		files, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			info, err := os.Stat(f)
			if err != nil {
				t.Fatal(err)
			}
			head, rest, ok := strings.Cut(string(b), "X-Token: ")
			id := receivedID.FindStringSubmatch(head)
			if !ok || id == nil {
				t.Fatalf("%s: no token, or no id:\n%s", f, tail(b, 10))
			}
			token, _, _ := strings.Cut(rest, "\n")
			all[token] = append(all[token], copyOf{id[1], info.ModTime()})
		}
	}
	return all
}

// checkCopies: each copy but the last was made in a life of its own that ended
// before it was recorded that the mail had been delivered.
func checkCopies(t *testing.T, lives []life, all map[string][]copyOf) {
	t.Helper()
	ends, again, inLife, recorded, other := 0, 0, 0, 0, 0
	for _, l := range lives {
		ends += len(l.gone)
	}
	for token, cs := range all {
		slices.SortFunc(cs, func(a, b copyOf) int { return a.when.Compare(b.when) })
		for i, c := range cs[:len(cs)-1] {
			again++
			l := lifeAt(lives, c.when)
			switch {
			case cs[i+1].message != c.message:
				other++
				t.Logf("%s: two messages, %s and %s", token, c.message, cs[i+1].message)
			case l == lifeAt(lives, cs[i+1].when):
				inLife++
				t.Logf("%s: message %s twice between two kills", token, c.message)
			case lives[l].gone[c.message+"00000001"]:
				recorded++
				t.Logf("%s: message %s again after its end was recorded", token, c.message)
			}
		}
	}
	t.Logf("%d copies too many; %d ends seen in the logs; %d between two kills, %d after a recorded end, %d of other messages",
		again, ends, inLife, recorded, other)
	if inLife+recorded+other > 0 {
		t.Error("copies of mail that was not on its way at a kill")
	}
	if ends == 0 {
		t.Error("no log tells of an end: nothing is compared")
	}
}

// lifeAt is the number of the life at a time.
func lifeAt(lives []life, when time.Time) int {
	n := 0
	for i, l := range lives {
		if !when.Before(l.start) {
			n = i
		}
	}
	return n
}
