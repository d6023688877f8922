package parent

import (
	"slices"
	"strings"
	"time"

	"smtpd/internal/imsg"
)

// flip changes one switch and tells everyone; false: it stood so already, or
// there is no such switch.
func (p *parent) flip(name string, on bool) bool {
	s := &p.switches
	var changed bool
	switch word, key, _ := strings.Cut(name, " "); word {
	case "verbose":
		set(&s.Verbose, on)
		changed = true // repeating it is no failure
	case "mta":
		changed = set(&s.PauseMTA, on)
	case "mda":
		changed = set(&s.PauseMDA, on)
	case "smtp":
		changed = set(&s.PauseSMTP, on)
	case "trace":
		changed = p.trace(key, on)
	case "profile":
		changed = p.profile(key, on)
	}
	if !changed {
		return false
	}
	switch name {
	case "mta", "mda", "smtp":
		p.log.Info("info: " + name + " " + map[bool]string{true: "paused", false: "resumed"}[on])
	}
	p.log.SetVerbose(s.Verbose)
	for _, role := range imsg.Children {
		if c := p.children[role]; c != nil && c.running {
			copied := *s
			_ = c.link.Send(&copied, nil) // a successor gets them at its start
		}
	}
	return true
}

// set reports whether it changed anything.
func set(b *bool, on bool) bool {
	changed := *b != on
	*b = on
	return changed
}

// maxTrace bounds the number of traced topics, as imsg.Switches does.
const maxTrace = 64

// maxTraceTime bounds `trace TOPIC for TIME`. Ours.
const maxTraceTime = 30 * 24 * time.Hour

// trace changes one topic; " for TIME" behind it ends it by itself.
func (p *parent) trace(key string, on bool) bool {
	key, text, bounded := strings.Cut(key, " for ")
	span, err := time.ParseDuration(text)
	if bounded && (err != nil || span <= 0 || span > maxTraceTime) {
		return false
	}
	if t := p.traceEnds[key]; t != nil { // what is said last holds
		t.Stop()
		delete(p.traceEnds, key)
	}
	topics := slices.DeleteFunc(slices.Clone(p.switches.Trace), func(t string) bool { return t == key })
	if on && len(topics) >= maxTrace {
		return false
	}
	if on {
		topics = append(topics, key)
	}
	p.switches.Trace = topics
	if on && bounded {
		if p.traceEnds == nil {
			p.traceEnds = map[string]*time.Timer{}
		}
		p.traceEnds[key] = time.AfterFunc(span, func() {
			p.do(func() { p.flip("trace "+key, false) })
		})
	}
	return true
}

func (p *parent) profile(key string, on bool) bool {
	switch key {
	case "imsg":
		set(&p.switches.ProfileIMSG, on)
	case "queue":
		set(&p.switches.ProfileQueue, on)
	default:
		return false
	}
	return true
}
