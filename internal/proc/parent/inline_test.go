package parent

import (
	"testing"

	"smtpd/internal/config"
)

// TestInlineTables: the name of an inline table means the same in every
// configuration, wherever it stands.
func TestInlineTables(t *testing.T) {
	var in inlineTables
	list := func(name, entry string) *config.Table {
		return &config.Table{Name: name, Backend: "static", Type: config.TableList, List: []string{entry}}
	}
	make := func(host, domain string) *config.Config {
		c := config.Defaults()
		c.Tables = map[string]*config.Table{host: list(host, "smtp://relay.test"), "named": list("named", "x")}
		c.Actions["out"] = &config.Action{Name: "out", Relay: &config.Relay{Host: host, Auth: "named"}}
		c.Listeners = []*config.Listener{{Senders: host}}
		if domain != "" {
			c.Tables[domain] = list(domain, "old.test")
			c.Rules = []*config.Rule{{For: config.For{Match: config.Match{Table: domain}}, HELO: &config.Match{Table: domain}}}
			c.Filters["f"] = &config.Filter{Match: config.Match{Table: domain}}
		}
		in.name(c)
		return c
	}
	one := make("<dynamic:1>", "")
	two := make("<dynamic:2>", "<dynamic:1>")
	host := one.Actions["out"].Relay.Host
	if two.Actions["out"].Relay.Host != host || two.Listeners[0].Senders != host || two.Tables[host].List[0] != "smtp://relay.test" || two.Tables[host].Name != host {
		t.Errorf("the same list is %q and %q", host, two.Actions["out"].Relay.Host)
	}
	domain := two.Rules[0].For.Table
	if domain == host || two.Tables[domain].List[0] != "old.test" || two.Rules[0].HELO.Table != domain || two.Filters["f"].Match.Table != domain {
		t.Errorf("another list is %q too", domain)
	}
	if two.Actions["out"].Relay.Auth != "named" || two.Tables["named"] == nil || len(two.Tables) != 3 {
		t.Error("a table with a name of its own was renamed")
	}
	three := make("<dynamic:7>", "<dynamic:9>")
	if three.Actions["out"].Relay.Host != host || three.Rules[0].For.Table != domain {
		t.Error("names are not kept")
	}
}
