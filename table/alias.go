package table

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"smtpd/internal/mail"
)

// ItemKind is what one item of an alias list or a .forward file asks for.
type ItemKind uint8

// The kinds of item.
const (
	ItemUser    ItemKind = iota + 1 // a local name
	ItemAddress                     // a mail address
	ItemFile                        // append to this file
	ItemCommand                     // feed this command
	ItemInclude                     // the items in this file
	ItemError                       // refuse the recipient with this reply
)

// String is the kind as traces print it.
func (k ItemKind) String() string {
	return [...]string{"?", "user", "address", "file", "command", "include", "error"}[k]
}

// Item is one item of an alias list or a .forward file.
type Item struct {
	Kind ItemKind
	Text string       // user in lower case, path, command; address and reply as written
	Addr mail.Address // ItemAddress
	Code int          // ItemError: 400..599, with which Text begins
}

// MaxItems bounds the items of one list. Ours: far more than anybody writes.
const MaxItems = 10000

var (
	errItem  = errors.New("invalid item")
	errItems = errors.New("too many items")
)

// ParseItems reads a list of items: separated by commas, ended by a '#' that is
// neither quoted nor part of a word. A backslash takes the meaning from the octet after it, double
// quotes keep commas together. An empty list is no error.
func ParseItems(list string) ([]Item, error) {
	var items []Item
	for rest, more := list, true; more; {
		var word string
		word, rest, more = cutItem(rest)
		if word = strings.TrimSpace(word); word == "" {
			continue
		}
		it, err := parseItem(word)
		if err != nil {
			return nil, fmt.Errorf("%w %q", err, mail.Clean(word, 64))
		}
		if len(items) == MaxItems {
			return nil, errItems
		}
		items = append(items, it)
	}
	return items, nil
}

// cutItem cuts off what stands before the next comma that counts.
func cutItem(s string) (word, rest string, more bool) {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case c == ',' && !quoted:
			return s[:i], s[i+1:], true
		case c == '#' && !quoted && (i == 0 || isBlank(s[i-1])):
			return s[:i], "", false
		}
	}
	return s, "", false
}

// parseItem reads one item without blanks around it, by the forms in the order
// in which they are tried.
func parseItem(word string) (Item, error) {
	if hasControl(strings.ReplaceAll(word, "\t", " ")) {
		return Item{}, errItem
	}
	if text, ok := cutPrefixFold(strings.TrimPrefix(word, ":"), "error:"); ok {
		return parseErrorItem(text)
	}
	if text, ok := cutPrefixFold(strings.TrimPrefix(word, ":"), "include:"); ok {
		path := strings.TrimSpace(unescape(text))
		if !strings.HasPrefix(path, "/") {
			return Item{}, errItem
		}
		return Item{Kind: ItemInclude, Text: path}, nil
	}
	if word[0] == '|' || strings.HasPrefix(word, `"|`) {
		return parseCommandItem(word)
	}
	text := unescape(word)
	switch {
	case word[0] == '/' && len(text) <= maxCommand:
		return Item{Kind: ItemFile, Text: text}, nil
	case strings.Contains(text, "@"):
		a := mail.SplitAddress(text)
		if !addressUser(a.User) || !addressDomain(a.Domain) {
			return Item{}, errItem
		}
		return Item{Kind: ItemAddress, Text: text, Addr: a}, nil
	case userName(text):
		return Item{Kind: ItemUser, Text: Fold(text)}, nil
	}
	return Item{}, errItem
}

// parseErrorItem reads "550 text" or "550 5.7.1 text".
func parseErrorItem(text string) (Item, error) {
	st, ok := mail.ParseStatus(text)
	if !ok || st.Code < 400 || len(text) < 5 || !isAlnum(text[4]) {
		return Item{}, errItem
	}
	return Item{Kind: ItemError, Text: text, Code: st.Code}, nil
}

// parseCommandItem reads |command, "|command" and |"command".
func parseCommandItem(word string) (Item, error) {
	if word[0] == '"' {
		if len(word) < 3 || word[len(word)-1] != '"' {
			return Item{}, errItem
		}
		word = strings.ReplaceAll(strings.ReplaceAll(word[1:len(word)-1], `\"`, `"`), `\\`, `\`)
	}
	cmd := strings.TrimSpace(word[1:])
	if cmd == "" || len(cmd) > maxCommand {
		return Item{}, errItem
	}
	return Item{Kind: ItemCommand, Text: cmd}, nil
}

// maxCommand bounds a command or path, in octets. Ours: what an envelope holds.
const maxCommand = 4000

// unescape drops each backslash and keeps the octet after it.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b = append(b, s[i])
	}
	return string(b)
}

func cutPrefixFold(s, prefix string) (rest string, ok bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return s, false
	}
	return s[len(prefix):], true
}

func isAlnum(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// all reports that s is 1 to limit octets: letters and digits of ASCII, octets of
// extra, and what else UTF-8 can print (RFC 6531 section 3.3).
func all(s, extra string, limit int) bool {
	if s == "" || len(s) > limit {
		return false
	}
	for _, r := range s {
		switch {
		case r >= utf8.RuneSelf:
			if r == utf8.RuneError || !unicode.IsPrint(r) {
				return false
			}
		case !isAlnum(byte(r)) && strings.IndexByte(extra, byte(r)) < 0:
			return false
		}
	}
	return true
}

func addressUser(s string) bool   { return all(s, "!#$%*/?|^{}`~&'+-=_.", mail.MaxLocalPart) }
func addressDomain(s string) bool { return all(s, "-.", mail.MaxDomain) }
func userName(s string) bool      { return all(s, "_.-+", mail.MaxLocalPart) }
