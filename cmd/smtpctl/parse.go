package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"smtpd/internal/ctl"
	"smtpd/internal/mail"
)

// node is one word of the command language with what may follow it.
type node struct {
	word     string // a literal, or a placeholder "<type>"
	extra    bool   // a word that OpenSMTPD does not have: works, but is not offered
	children []*node
	run      handler // a command may end here
}

// grammar makes the tree of all commands, their words in the order in which
// they are offered.
func grammar() *node {
	root := &node{}
	for _, c := range commands() {
		root.add(strings.Fields(c.words), c.extra, c.run)
	}
	return root
}

func (n *node) add(words []string, extra bool, run handler) {
	if len(words) == 0 {
		n.run = run
		return
	}
	for _, c := range n.children {
		if c.word == words[0] {
			c.add(words[1:], extra, run)
			return
		}
	}
	c := &node{word: words[0], extra: extra}
	n.children = append(n.children, c)
	c.add(words[1:], extra, run)
}

// follow finds the child that a word stands for: the literal itself, a
// placeholder that takes it, or the one literal that begins so. Words of our
// own come last, so that they never take an abbreviation from the others.
func (n *node) follow(word string) *node {
	for _, c := range n.children {
		if c.word == word && !c.placeholder() {
			return c
		}
	}
	for _, c := range n.children {
		if c.takes(word) {
			return c
		}
	}
	for _, extra := range []bool{false, true} {
		var found *node
		count := 0
		for _, c := range n.children {
			if c.extra == extra && !c.placeholder() && word != "" && strings.HasPrefix(c.word, word) {
				found = c
				count++
			}
		}
		if count == 1 {
			return found
		}
		if count > 1 {
			return nil
		}
	}
	return nil
}

func (n *node) placeholder() bool { return strings.HasPrefix(n.word, "<") }

// takes reports whether a placeholder accepts the word.
func (n *node) takes(word string) bool {
	var err error
	switch n.word {
	case "<str>", "<facts>":
		return true
	case "<evpid>":
		_, err = mail.ParseEnvelopeID(word)
	case "<msgid>":
		_, err = mail.ParseMessageID(word)
	case "<routeid>":
		var id uint64
		if id, err = strconv.ParseUint(word, 10, 63); id == 0 {
			return false
		}
	case "<addr>":
		_, err = netip.ParseAddr(word)
	default:
		return false
	}
	return err == nil
}

// parse finds the command that the words name, and the words that stand for
// its placeholders.
func (n *node) parse(words []string) (handler, []string, error) {
	var path, params []string
	for i, w := range words {
		next := n.follow(w)
		if next == nil {
			return nil, nil, n.possibilities(path)
		}
		switch next.word {
		case ctl.Where:
			return next.run, words[i+1:], nil // the conditions are the daemon's to read
		case "<facts>":
			return next.run, words[i:], nil // as are these
		}
		if next.placeholder() {
			params = append(params, w)
		}
		path = append(path, next.word)
		n = next
	}
	if n.run == nil {
		return nil, nil, n.possibilities(path)
	}
	return n.run, params, nil
}

// misuse is words that name no command, with the lines for the user.
type misuse struct{ text string }

func (e *misuse) Error() string { return e.text }

func (n *node) possibilities(path []string) error {
	if len(n.children) == 0 {
		return &misuse{"invalid command\n"}
	}
	var b strings.Builder
	b.WriteString("possibilities are:\n")
	all := !slices.ContainsFunc(n.children, func(c *node) bool { return !c.extra })
	for _, c := range n.children {
		if all || !c.extra {
			fmt.Fprintln(&b, strings.Join(append(path[:len(path):len(path)], c.word), " "))
		}
	}
	return &misuse{b.String()}
}
