package mta

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"smtpd/internal/config"
)

func TestRations(t *testing.T) {
	tests := map[string]struct {
		limits  func(l *config.MTALimits)
		domains int // with the MX mxN.prov.test
		mails   int // to each
		least   time.Duration
		most    time.Duration
	}{
		"none":                     {func(l *config.MTALimits) {}, 3, 20, 0, time.Second},
		"ten a minute to a domain": {func(l *config.MTALimits) { l.MaxMailsPerDomain = 10 }, 1, 25, 2 * time.Minute, 2*time.Minute + 10*time.Second},
		"each for itself":          {func(l *config.MTALimits) { l.MaxMailsPerDomain = 10 }, 3, 10, 0, time.Second},
		"ten a minute to a group":  {func(l *config.MTALimits) { l.MaxMailsPerGroup = 10 }, 3, 10, 2 * time.Minute, 2*time.Minute + 10*time.Second},
		"5 s between mails":        {func(l *config.MTALimits) { l.MailDelayDomain = 5 * time.Second }, 1, 7, 30 * time.Second, 31 * time.Second},
		"5 s in a group":           {func(l *config.MTALimits) { l.MailDelayGroup = 5 * time.Second }, 3, 2, 25 * time.Second, 27 * time.Second},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			tt.limits(&w.cfg.MTA.Default)
			h := &goodHost{ext: []string{"PIPELINING"}}
			for d := range tt.domains {
				w.mx(fmt.Sprintf("d%d.test", d), fmt.Sprintf("10 mx%d.prov.test 192.0.2.%d", d, d+1))
				w.hosts[fmt.Sprintf("192.0.2.%d:25", d+1)] = h.serve
			}
			var took time.Duration
			w.run(func(e *Engine) {
				begin := time.Now()
				for d := range tt.domains {
					w.many(e, &config.Relay{}, tt.mails, fmt.Sprintf("d%d.test", d))
				}
				w.wait(tt.domains * tt.mails)
				took = time.Since(begin)
			})
			if w.codes()[250] != tt.domains*tt.mails || took < tt.least || took > tt.most {
				t.Errorf("codes %v, took %v, want %v to %v", w.codes(), took, tt.least, tt.most)
			}
		})
	}
}

func TestGroupConnections(t *testing.T) {
	w := newWorld(t)
	w.cfg.MTA.Default.MaxConnPerGroup = 100
	l := config.DefaultMTALimits()
	l.MaxConnPerGroup = 2
	w.cfg.MTA.Domain["prov.test"] = &l // by where the MX are
	h := &goodHost{ext: []string{"PIPELINING"}}
	for d := range 20 {
		w.mx(fmt.Sprintf("d%d.test", d), fmt.Sprintf("10 mx%d.eu.prov.test 192.0.2.%d", d, d+1))
		w.hosts[fmt.Sprintf("192.0.2.%d:25", d+1)] = h.serve
	}
	var took time.Duration
	w.run(func(e *Engine) {
		begin := time.Now()
		for d := range 20 {
			w.many(e, &config.Relay{}, 5, fmt.Sprintf("d%d.test", d))
		}
		w.wait(100)
		took = time.Since(begin)
		w.pass(time.Hour)
		e.mu.Lock()
		defer e.mu.Unlock()
		if len(e.groups) != 0 {
			t.Errorf("%d groups left", len(e.groups))
		}
	})
	if w.codes()[250] != 100 || h.peak > 2 || took > 10*time.Second {
		t.Errorf("codes %v, %d connections at a time, took %v", w.codes(), h.peak, took)
	}
}

func TestGroupName(t *testing.T) {
	for mx, want := range map[string]string{
		"aspmx.l.google.com": "l.google.com", "mx.d.test": "d.test", "d.test": "d.test", "localhost": "localhost",
		"d-test.mail.protection.outlook.com": "mail.protection.outlook.com", "192.0.2.1": "192.0.2.1", "": "",
	} {
		if got := groupName(mx); got != want {
			t.Errorf("%s: got %s, want %s", mx, got, want)
		}
	}
}

func TestPrefer(t *testing.T) {
	tests := map[string]struct {
		action, limits string
		want           []string
	}{
		"IPv4 by the action":       {"inet4", "", []string{"192.0.2.1:25", "192.0.2.2:25", "[2001:db8::1]:25"}},
		"IPv6 by the action":       {"inet6", "", []string{"[2001:db8::1]:25", "192.0.2.1:25", "192.0.2.2:25"}},
		"IPv4 by the limits":       {"", "inet4", []string{"192.0.2.1:25", "192.0.2.2:25", "[2001:db8::1]:25"}},
		"the action before limits": {"inet6", "inet4", []string{"[2001:db8::1]:25", "192.0.2.1:25", "192.0.2.2:25"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.mx("d.test", "10 a.test 192.0.2.1 192.0.2.2 2001:db8::1")
			w.cfg.MTA.Default.Prefer = tt.limits
			w.run(func(e *Engine) {
				w.many(e, &config.Relay{Prefer: tt.action}, 1, "d.test")
				w.wait(1)
			})
			// Within a family the order is the resolver's.
			if !slices.Equal(w.dialed, tt.want) {
				t.Errorf("dialed %v, want %v", w.dialed, tt.want)
			}
		})
	}
}

// Limits hold for the host that an action names: by its name, its address, or a
// domain above it, those of a group too.
func TestLimitsOfHosts(t *testing.T) {
	tests := map[string]struct {
		limit, host string
		applies     bool
	}{
		"name":            {"hub.prov.test", "smtp://Hub.prov.test", true},
		"domain above":    {"prov.test", "hub.prov.test", true},
		"address":         {"192.0.2.1", "smtp://192.0.2.1", true},
		"other spelling":  {"2001:db8::1", "smtp://[2001:DB8:0::1]", true},
		"another domain":  {"other.test", "smtp://hub.prov.test", false},
		"another address": {"192.0.2.2", "smtp://192.0.2.1", false},
		"no octets above": {"0.2.1", "smtp://192.0.2.1", false},
	}
	for name, tt := range tests {
		for kind, set := range map[string]func(*config.MTALimits){
			"domain": func(l *config.MTALimits) { l.MaxMailsPerDomain = 10 },
			"group":  func(l *config.MTALimits) { l.MaxMailsPerGroup = 10 },
		} {
			t.Run(name+", "+kind, func(t *testing.T) {
				w := newWorld(t)
				own := config.DefaultMTALimits()
				set(&own)
				w.cfg.MTA.Domain[tt.limit] = &own
				w.addr("hub.prov.test", "192.0.2.1")
				w.lists = map[string][]string{"h": {tt.host}}
				h := &goodHost{}
				w.hosts["192.0.2.1:25"], w.hosts["[2001:db8::1]:25"] = h.serve, h.serve
				var took time.Duration
				w.run(func(e *Engine) {
					begin := time.Now()
					w.many(e, &config.Relay{Host: "h"}, 15, "d.test")
					w.wait(15)
					took = time.Since(begin)
				})
				if w.codes()[250] != 15 || (took >= time.Minute) != tt.applies {
					t.Errorf("codes %v, took %v", w.codes(), took)
				}
			})
		}
	}
}
