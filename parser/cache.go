package parser

import (
	"context"
	"net/netip"
)

// cache is a System that is asked each thing once: a file with thousands of
// statements names the same users, files and hosts again and again. It lives as
// long as one check, and is not safe for concurrent use.
type cache struct {
	System
	stats  map[string]statAnswer
	hosts  map[string]hostAnswer
	users  map[string]bool
	groups map[string]bool
}

type statAnswer struct {
	info FileInfo
	err  error
}

type hostAnswer struct {
	addrs []netip.Addr
	err   error
}

func newCache(sys System) *cache {
	return &cache{System: sys, stats: map[string]statAnswer{}, hosts: map[string]hostAnswer{},
		users: map[string]bool{}, groups: map[string]bool{}}
}

// Stat implements System.
func (c *cache) Stat(name string) (FileInfo, error) {
	a, ok := c.stats[name]
	if !ok {
		a.info, a.err = c.System.Stat(name)
		c.stats[name] = a
	}
	return a.info, a.err
}

// LookupHost implements System.
func (c *cache) LookupHost(ctx context.Context, name string) ([]netip.Addr, error) {
	a, ok := c.hosts[name]
	if !ok {
		a.addrs, a.err = c.System.LookupHost(ctx, name)
		c.hosts[name] = a
	}
	return a.addrs, a.err
}

// HasUser implements System.
func (c *cache) HasUser(name string) bool {
	known, ok := c.users[name]
	if !ok {
		known = c.System.HasUser(name)
		c.users[name] = known
	}
	return known
}

// HasGroup implements System.
func (c *cache) HasGroup(name string) bool {
	known, ok := c.groups[name]
	if !ok {
		known = c.System.HasGroup(name)
		c.groups[name] = known
	}
	return known
}
