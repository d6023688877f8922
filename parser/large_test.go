package parser

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"
)

// largeText is a configuration of n lines, most of them rules.
func largeText(n int) string {
	var b strings.Builder
	b.WriteString("action \"local\" mbox\naction \"out\" relay\n")
	for i := 2; i < n; i++ {
		switch i % 4 {
		case 0:
			fmt.Fprintf(&b, "table t%d { example%d.org, \"*.example%d.net\" }\n", i, i, i)
		case 1:
			fmt.Fprintf(&b, "match from any for domain <t%d> action \"local\" # customer %d\n", i-1, i)
		case 2:
			fmt.Fprintf(&b, "match from src 10.%d.%d.0/24 auth for any mail-from \"@a%d.org\" action \"out\"\n", i>>8&255, i&255, i)
		default:
			fmt.Fprintf(&b, "match from any for rcpt-to \"info@b%d.org\" reject\n", i)
		}
	}
	return b.String()
}

// cpuTime is what this process has used, in all its threads: other than the
// clock it does not depend on what else the machine does.
func cpuTime(t *testing.T) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// largeBound is what the texts below may take: twice what they do. 100,000 lines
// are to take under a second on the machine of the day, whose speed is taken from
// work of the same kind, done right before.
func largeBound(t *testing.T) time.Duration {
	t.Helper()
	start := cpuTime(t)
	words := map[string][]string{}
	for i := range 3 * 100_000 {
		w := strings.Fields(fmt.Sprintf("match from any for domain <t%d> action local%d", i, i))
		words[w[5]] = w
	}
	return largeUnits * (cpuTime(t) - start) / 3
}

// largeUnits is in times of 100,000 lines cut into words and kept by one of them.
const largeUnits = 25

// TestLarge: 100,000 lines are checked in under a second.
func TestLarge(t *testing.T) {
	o := newFake(t).options(largeText(100_000))
	bound, start := largeBound(t), cpuTime(t)
	cfg, diags := Parse(t.Context(), o)
	took := cpuTime(t) - start
	if cfg == nil {
		t.Fatal(diags[0])
	}
	t.Logf("100,000 lines took %v of CPU", took)
	if took > bound {
		t.Errorf("100,000 lines took %v of CPU, at most %v", took, bound)
	}
}

// TestLargeOld: nor does a file of the older languages take longer, translated
// as it is.
func TestLargeOld(t *testing.T) {
	lines := map[string]string{
		"accept": "table t%[1]d { example%[1]d.org }\naccept from any for domain <t%[1]d> relay via tls://mx%[1]d.example.net\n",
		"map":    "map t%[1]d source plain \"/etc/mail/aliases\"\naccept from all for domain \"example%[1]d.org\" relay via mx%[1]d.example.net port 25 tls\n",
	}
	for name, format := range lines {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			for i := range 50_000 {
				fmt.Fprintf(&b, format, i)
			}
			o := newFake(t).options(b.String())
			bound, start := largeBound(t), cpuTime(t)
			cfg, diags := Parse(t.Context(), o)
			if took := cpuTime(t) - start; cfg == nil || took > bound {
				t.Errorf("%v of CPU, %v", took, diags[0])
			} else {
				t.Logf("100,000 old lines took %v of CPU, %s", took, diags[0])
			}
		})
	}
}

// TestLargeTags: nor do as many listeners with tags, and rules that ask for them.
func TestLargeTags(t *testing.T) {
	var b strings.Builder
	for i := range 50_000 {
		fmt.Fprintf(&b, "listen on lo port %d tag t%d\nmatch tag t%d for any reject\n", 1+i, i, i)
	}
	o := newFake(t).options(b.String())
	bound, start := largeBound(t), cpuTime(t)
	cfg, diags := Parse(t.Context(), o)
	if took := cpuTime(t) - start; cfg == nil || took > bound {
		t.Errorf("%v of CPU, %v", took, diags)
	}
}

// TestLargeMistakes: as many mistakes as lines take no longer, nor does looking
// for what each was meant to be among as many names.
func TestLargeMistakes(t *testing.T) {
	lines := map[string]string{
		"words":   "match from any for domian <x> action \"nope\"\nmatch action \"nope%d\"\n",
		"actions": "action a%[1]d mbox\nmatch action b%[1]d\n",
		"tables":  "table a%[1]d { b = c }\nmatch for domain <b%[1]d> action x\n",
		"macros":  "a%[1]d = b\nmatch action $b%[1]d\n",
		"pkis":    "pki a%[1]d.org cert \"/x\"\naction b%[1]d relay pki c%[1]d.org\n",
		"maps":    "map a%[1]d source plain \"/etc/mail/aliases\"\naccept for local alias b%[1]d deliver to mbox\n",
		"filters": "filter a%[1]d phase connect match rdns junk\nlisten on lo filter b%[1]d\n",
	}
	for name, format := range lines {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			for i := range 20_000 {
				fmt.Fprintf(&b, format, i)
			}
			o := newFake(t).options(b.String())
			bound, start := largeBound(t), cpuTime(t)
			_, diags := Parse(t.Context(), o)
			if took := cpuTime(t) - start; took > bound || len(diags) < 1000 || len(diags) > maxDiagnostics {
				t.Errorf("%d diagnostics in %v, first %s", len(diags), took, diags[0])
			}
		})
	}
}

// TestLargeShapes: nor do lines of other shapes: rules that ask for much, with
// values of their own, and names for one file of many authorities.
func TestLargeShapes(t *testing.T) {
	sys := newFake(t)
	var bundle strings.Builder
	for range 100 {
		bundle.WriteString(sys.files["/etc/mail/certs/ca.crt"].data)
	}
	sys.files["/bundle"] = fakeFile{bundle.String(), 0o644, 0}
	for name, format := range map[string]string{
		"conditions":  "match from src 10.1.%[2]d.0/24 auth helo \"h%[1]d.org\" mail-from \"@a%[1]d.org\" rcpt-to \"u@d%[1]d.org\" for domain \"d%[1]d.org\" action l\n",
		"lists":       "match from src { 10.0.0.%[2]d, 10.1.0.1 } mail-from { \"a@b%[1]d\", \"c\" } for domain { \"d%[1]d.org\", \"e.org\" } action l\n",
		"ca":          "ca a%[1]d cert \"/bundle\"\n",
		"filters":     "filter f%[1]d phase connect match rdns regex { \"^a%[1]d$\", \"b\" } reject \"550 no\"\n",
		"expressions": "match mail-from regex \"^a%[1]d@.*$\" for any action l\n",
	} {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			b.WriteString("action l mbox\n")
			for i := range 100_000 {
				fmt.Fprintf(&b, format, i, i%250)
			}
			b.WriteString("match action l\n")
			bound, start := largeBound(t), cpuTime(t)
			cfg, diags := Parse(t.Context(), sys.options(b.String()))
			if took := cpuTime(t) - start; cfg == nil || took > bound {
				t.Errorf("%v of CPU, at most %v, first %v", took, bound, diags[:min(len(diags), 1)])
			} else {
				t.Logf("100,000 lines took %v of CPU, at most %v", took, bound)
			}
		})
	}
}

// TestTooManyWords: a file with more words than are read is told so, and not of
// the statement that was broken off.
func TestTooManyWords(t *testing.T) {
	text := strings.Repeat("match from any for domain { a, b, c, d, e,\n f, g, h } reject\n", maxTokens/24)
	cfg, diags := Parse(t.Context(), newFake(t).options(text))
	if cfg != nil || len(diags) != 1 || !strings.Contains(diags[0].String(), "more than 4194304 words") {
		t.Errorf("%d diagnostics: %v", len(diags), diags[:min(len(diags), 3)])
	}
}

// TestLargeIncludes: nor do the same lines of a thousand files, which give
// thousands of actions the same line.
func TestLargeIncludes(t *testing.T) {
	sys := newFake(t)
	var b strings.Builder
	b.WriteString("accept for local deliver to mbox\n")
	for i := range 1000 {
		name := fmt.Sprintf("/inc%d", i)
		sys.files[name] = fakeFile{strings.Repeat(fmt.Sprintf("accept for domain d%d.org relay via smtp://h\n", i), 100), 0o600, 0}
		fmt.Fprintf(&b, "include %q\n", name)
	}
	bound, start := largeBound(t), cpuTime(t)
	cfg, diags := Parse(t.Context(), sys.options(b.String()))
	if took := cpuTime(t) - start; cfg == nil || took > bound {
		t.Errorf("%v, first %v", took, diags[0])
	}
}

func BenchmarkParse(b *testing.B) {
	o := newFake(b).options(largeText(10_000))
	b.ReportAllocs()
	b.SetBytes(int64(len(o.Text)))
	for b.Loop() {
		if cfg, diags := Parse(b.Context(), o); cfg == nil {
			b.Fatal(diags[0])
		}
	}
}

// TestRandomStatements puts key words and names together at random, in each of
// the languages; fuzzText says what must hold.
func TestRandomStatements(t *testing.T) {
	names := strings.Fields(`a b.org "x\"y" 'q "r"' <t> <"virtual"> < > { } ( ) , ! = => 4d 35M 10 25 "/p" "*.c"
		10.0.0.0/8 "smtps+auth://l@h" smtp+tls://h tls+auth://l@h "~/m/%a" "%{rcpt}" # " \` + "\n" + ` $m`)
	pools := [][]string{keys(modernWords), keys(acceptWords), keys(mapWords)}
	frames := []string{"table t { k = v }\nm = x\naction \"a\" mbox\nmatch action \"a\"\n",
		"table t { k = v }\nm = x\naccept for local deliver to mbox\n",
		"map t { source plain \"/etc/mail/aliases\" }\nm = x\naccept from all for local deliver to mbox\n"}
	first := [][]string{modernFirst, acceptFirst, mapFirst}
	for seed := range uint64(1500) {
		r := rand.New(rand.NewPCG(seed, 1))
		k := int(seed % 3)
		var b strings.Builder
		b.WriteString(frames[k])
		for range 1 + r.IntN(4) {
			b.WriteString(first[k][r.IntN(len(first[k]))])
			for range r.IntN(9) {
				pool := names
				if r.IntN(3) > 0 {
					pool = pools[k]
				}
				b.WriteString(" " + pool[r.IntN(len(pool))])
			}
			b.WriteByte('\n')
		}
		fuzzText(t, b.String())
		if t.Failed() {
			t.Fatalf("seed %d:\n%s", seed, b.String())
		}
	}
}

// TestGrammarSentences walks the grammars: each statement grows by a word that
// can follow, so that nearly all can be read.
func TestGrammarSentences(t *testing.T) {
	values := []token{{text: "x", kind: tokString}, {text: "t", kind: tokWord}, {text: "10", kind: tokNumber}}
	ops := []string{"{", "}", "<", ">", ",", "=", "=>", "!", "(", ")"}
	count, use := 0, newMachines()
	for seed := range uint64(120) {
		r := rand.New(rand.NewPCG(seed, 2))
		g := []*grammar{&modernGrammar, &acceptGrammar, &mapGrammar}[seed%3]
		var toks []token
		for len(toks) < 14 {
			var next []token
			for w := range g.words {
				next = append(next, token{text: w, kind: tokWord})
			}
			for _, o := range ops {
				next = append(next, token{text: o, kind: tokOp})
			}
			next = append(next, values...)
			next = append(next, values...)
			sortTokens(next)
			r.Shuffle(len(next), func(i, j int) { next[i], next[j] = next[j], next[i] })
			grown := false
			for _, n := range next {
				f := &feed{g: g, use: use, toks: append(append([]token(nil), toks...), n)}
				g.run(f)
				if f.failed == nil {
					toks, grown = append(toks, n), true
					break
				}
			}
			if !grown {
				break
			}
			f := &feed{g: g, use: use, toks: append(append([]token(nil), toks...), token{kind: tokNL})}
			if g.run(f); f.node != nil {
				count++
				fuzzText(t, frame(g, toks))
			}
		}
	}
	if count < 200 {
		t.Errorf("only %d sentences", count)
	}
}

func sortTokens(toks []token) {
	for i := range toks {
		for j := i; j > 0 && toks[j].text < toks[j-1].text; j-- {
			toks[j], toks[j-1] = toks[j-1], toks[j]
		}
	}
}

// frame makes a configuration around one statement.
func frame(g *grammar, toks []token) string {
	var b strings.Builder
	switch g {
	case &modernGrammar:
		b.WriteString("table t { k = v }\naction a mbox\nmatch action a\n")
	case &acceptGrammar:
		b.WriteString("table t { k = v }\naccept for local deliver to mbox\n")
	default:
		b.WriteString("map t { source plain \"/etc/mail/aliases\" }\naccept from all for local deliver to mbox\n")
	}
	for i := range toks {
		switch toks[i].kind {
		case tokString:
			b.WriteString(quote(toks[i].text))
		default:
			b.WriteString(toks[i].text)
		}
		b.WriteByte(' ')
	}
	b.WriteByte('\n')
	return b.String()
}
