package parser

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Bounds of the text. The first is the language's (a token of OpenSMTPD), the
// others are ours: they hold the memory of a hostile or broken file down.
const (
	maxToken   = 8095
	maxInclude = 16       // depth
	maxFiles   = 1024     // include statements carried out
	maxInput   = 64 << 20 // octets of all files and macro expansions together
	maxTokens  = 4 << 20
)

// pos is a line of one file of the input.
type pos struct{ file, line int32 }

type tokenKind uint8

const (
	tokEOF      tokenKind = iota
	tokNL                 // end of a logical line
	tokWord               // bare word: a key word where the grammar has one
	tokString             // quoted
	tokNumber             // checked to be an int64
	tokOp                 // = => ! < > { } , ( )
	tokUnquoted           // begins with an octet that only quotes allow
	tokError              // already reported
)

type token struct {
	text string
	pos  pos
	kind tokenKind
}

// source is one file of the input, once per inclusion.
type source struct {
	name   string
	parent int32 // the file that includes it; -1: none
	line   int32 // of the include
}

// comment stands before the token with its number. Blank lines are comments
// without text.
type comment struct {
	before int
	text   string
}

type macro struct {
	value string
	pos   pos
	fixed bool // from the command line: the file does not change it
	used  bool
}

// lexer turns the main file and what it includes into one list of tokens, with
// macros expanded. Key words are not its business: they depend on the grammar.
type lexer struct {
	sys      System
	diags    *diagList
	sources  []source
	tokens   []token
	comments []comment
	macros   map[string]*macro
	input    int // octets so far
	stopped  bool
}

// reader is the place in one file.
type reader struct {
	src   string
	off   int
	exp   string // text of a macro being read, before src
	inExp bool   // the last octet came out of exp
	pos   pos
	stray *[]stray
}

// stray is a backslash that neither joins lines nor stands in quotes.
type stray struct {
	pos pos
	off int
	c   int
}

const eof = -1

func newLexer(sys System, d *diagList, defines map[string]string) *lexer {
	l := &lexer{sys: sys, diags: d, macros: map[string]*macro{}}
	for name, value := range defines {
		l.macros[name] = &macro{value: value, fixed: true}
	}
	return l
}

// file reads one file to its end. The caller made its entry in sources.
func (l *lexer) file(n int32, text string) {
	if l.grow(len(text), pos{n, 1}); l.stopped {
		return
	}
	l.tokens = slices.Grow(l.tokens, min(len(text)/6, maxTokens))
	var lone []stray
	defer func() { l.warnStray(lone) }()
	r := &reader{src: text, pos: pos{n, 1}, stray: &lone}
	if i := strings.Index(text, "\r\n"); i >= 0 {
		line := int32(1 + strings.Count(text[:i], "\n"))
		l.diags.errorf(pos{n, line}, "carriage return in file, convert the line ends")
		r.src = strings.ReplaceAll(text, "\r\n", "\n")
	}
	start, depth := len(l.tokens), 0
	whole := start // behind the last statement that has its end
	defer func() {
		if l.stopped { // what was broken off is no mistake of its own
			l.tokens = l.tokens[:whole]
		}
	}()
	for !l.stopped {
		before := len(l.tokens)
		more := l.next(r)
		if len(l.tokens) == before { // an empty line
			if !more {
				return
			}
			continue
		}
		if len(l.tokens) > maxTokens {
			l.stop(r.pos, "more than %d words", maxTokens)
		}
		switch t := &l.tokens[len(l.tokens)-1]; {
		case t.kind == tokOp && t.text == "{":
			depth++
		case t.kind == tokOp && t.text == "}":
			depth = max(depth-1, 0)
		case t.kind == tokNL:
			if depth == 0 {
				l.endLine(l.tokens[start:])
				whole = len(l.tokens)
			}
			start = len(l.tokens)
		}
		if !more {
			return
		}
	}
}

// endLine carries out what must happen before the next line is read: macros
// and includes. A line that is neither, or wrong, is left to the grammar.
func (l *lexer) endLine(line []token) {
	if len(line) == 4 && line[1].kind == tokOp && line[1].text == "=" &&
		(line[0].kind == tokWord || line[0].kind == tokString) {
		l.define(line[0], line[2])
	}
	if len(line) == 3 && line[0].kind == tokWord && line[0].text == "include" &&
		(line[1].kind == tokWord || line[1].kind == tokString) {
		l.include(line[1])
	}
}

func (l *lexer) define(name, value token) {
	if strings.ContainsAny(name.text, " \t\n\v\f\r") {
		l.diags.errorf(name.pos, "macro name cannot contain whitespace")
		return
	}
	switch m := l.macros[name.text]; {
	case m == nil:
		l.macros[name.text] = &macro{value: value.text, pos: name.pos}
	case !m.fixed:
		m.value, m.pos = value.text, name.pos
	}
}

func (l *lexer) include(path token) {
	depth := 0
	for i := path.pos.file; i >= 0; i = l.sources[i].parent {
		if l.sources[i].name == path.text {
			l.diags.errorf(path.pos, "failed to include file %s: it includes itself", path.text)
			return
		}
		depth++
	}
	switch {
	case depth > maxInclude:
		l.diags.errorf(path.pos, "failed to include file %s: more than %d deep", path.text, maxInclude)
		return
	case len(l.sources) > maxFiles:
		l.stop(path.pos, "more than %d files included", maxFiles)
		return
	}
	if !strings.HasPrefix(path.text, "/") {
		l.diags.warnf(path.pos, "include %q is relative: it depends on the folder smtpd is started in", path.text)
	}
	text, err := l.sys.ReadFile(path.text, maxInput)
	if err != nil {
		l.diags.errorf(path.pos, "failed to include file %s: %v", path.text, cause(err))
		return
	}
	n := int32(len(l.sources))
	l.sources = append(l.sources, source{path.text, path.pos.file, path.pos.line})
	l.diags.sources = l.sources
	l.file(n, string(text))
}

// grow counts input, and stops when there is too much of it.
func (l *lexer) grow(n int, at pos) {
	if l.input += n; l.input > maxInput {
		l.stop(at, "the configuration is larger than %d MiB", maxInput>>20)
	}
}

func (l *lexer) stop(at pos, format string, args ...any) {
	if !l.stopped {
		l.diags.errorf(at, format, args...)
	}
	l.stopped = true
}

func (l *lexer) emit(kind tokenKind, text string, at pos) {
	l.tokens = append(l.tokens, token{text: text, kind: kind, pos: at})
}

func (l *lexer) emitNL(at pos) {
	if n := len(l.tokens); n > 0 && l.tokens[n-1].kind != tokNL {
		l.emit(tokNL, "", at)
		return
	}
	if n := len(l.comments); n > 0 && l.comments[n-1].before == len(l.tokens) &&
		l.comments[n-1].text == "" {
		return
	}
	l.comments = append(l.comments, comment{before: len(l.tokens)})
}

// next reads one token, or one line without any. False means that the file has
// ended; a line end that is missing there is supplied.
func (l *lexer) next(r *reader) bool {
	c := r.get()
	for c == ' ' || c == '\t' {
		c = r.get()
	}
	at := r.pos
	switch {
	case c == '#':
		return l.comment(r)
	case c == eof:
		if n := len(l.tokens); n > 0 && l.tokens[n-1].kind != tokNL {
			l.emit(tokNL, "", at)
		}
		return false
	case c == '\n':
		if !r.inExp {
			at.line--
		}
		l.emitNL(at)
	case c == '"' || c == '\'':
		l.quoted(r, byte(c), at)
	case c == '$' && r.inExp:
		l.diags.errorf(at, "a macro inside the value of a macro is not expanded")
		l.word(r, c, tokError)
	case c == '$':
		l.expand(r, at)
	case c == '-' || isDigit(c):
		l.number(r, c, at)
	case startsWord(c):
		l.word(r, c, tokWord)
	case c == '=':
		save := *r
		if r.get() == '>' {
			l.emit(tokOp, "=>", at)
		} else {
			*r = save
			l.emit(tokOp, "=", at)
		}
	case strings.IndexByte("(){}<>!,", byte(c)) >= 0:
		l.emit(tokOp, string(rune(c)), at)
	default:
		l.word(r, c, tokUnquoted)
	}
	return true
}

// get reads one octet outside quotes. A backslash joins lines, or is dropped
// before anything else.
func (r *reader) get() int {
	for {
		c := r.raw()
		if c != '\\' {
			return c
		}
		if c = r.raw(); c != '\n' {
			if s := *r.stray; len(s) == 0 || s[len(s)-1].off < r.off {
				*r.stray = append(s, stray{r.pos, r.off, c})
			}
			return c
		}
	}
}

func (l *lexer) warnStray(lone []stray) {
	for _, s := range lone {
		if s.c != eof {
			l.diags.warnf(s.pos, "a backslash before %q has no meaning outside quotes", rune(s.c))
		}
	}
}

// raw reads one octet and counts lines.
func (r *reader) raw() int {
	if r.inExp = r.exp != ""; r.inExp {
		c := r.exp[0]
		r.exp = r.exp[1:]
		return int(c)
	}
	if r.off >= len(r.src) {
		return eof
	}
	c := r.src[r.off]
	r.off++
	if c == '\n' {
		r.pos.line++
	}
	return int(c)
}

// comment reads to the end of the logical line, and ends it.
func (l *lexer) comment(r *reader) bool {
	at, first := r.pos, true
	r.exp = ""
	for {
		end := strings.IndexByte(r.src[r.off:], '\n')
		last := end < 0
		if last {
			end = len(r.src) - r.off
		}
		text := r.src[r.off : r.off+end]
		r.off = min(r.off+end+1, len(r.src))
		goesOn := oddBackslash(text)
		l.addComment(text, first)
		if !first && strings.Trim(strings.TrimSuffix(text, "\\"), " \t") != "" {
			l.diags.warnf(at, "the comment ends in a backslash, so line %d is part of it", r.pos.line)
		}
		first = false
		if last {
			return true
		}
		r.pos.line++
		if !goesOn {
			break
		}
	}
	if n := len(l.tokens); n > 0 && l.tokens[n-1].kind != tokNL {
		l.emit(tokNL, "", at)
	}
	return true
}

// addComment keeps a comment so that it can be printed on a line of its own.
func (l *lexer) addComment(text string, first bool) {
	for {
		text = strings.TrimRight(text, " \t\r")
		if !oddBackslash(text) {
			break
		}
		text = text[:len(text)-1]
	}
	if !first && !strings.HasPrefix(text, "#") {
		text = strings.TrimRight("# "+strings.TrimLeft(text, " \t"), " ")
	} else if first {
		text = "#" + text
	}
	l.comments = append(l.comments, comment{len(l.tokens), text})
}

func oddBackslash(s string) bool {
	return (len(s)-len(strings.TrimRight(s, `\`)))%2 == 1
}

// quoted reads a string up to its quote. Line ends inside are dropped.
func (l *lexer) quoted(r *reader, quote byte, at pos) {
	var b []byte
	for {
		c := r.raw()
		switch {
		case c == eof:
			end := r.pos
			if strings.HasSuffix(r.src, "\n") {
				end.line--
			}
			l.diags.errorf(end, "reached end of file while parsing quoted string, opened in line %d", at.line)
			l.emit(tokError, "", at)
			return
		case c == '\n':
			continue
		case c == 0:
			l.diags.errorf(r.pos, "syntax error: NUL in a quoted string")
			l.findEOL(r, at)
			return
		case c == '\\':
			save := *r
			switch n := r.raw(); n {
			case int(quote), ' ', '\t':
				c = n
			case '\n':
				continue
			default:
				*r = save
			}
		case c == int(quote):
			l.emit(tokString, string(b), at)
			return
		}
		if b = append(b, byte(c)); len(b) > maxToken {
			l.diags.errorf(r.pos, "string too long, more than %d characters", maxToken)
			l.findEOL(r, at)
			return
		}
	}
}

func (l *lexer) findEOL(r *reader, at pos) {
	for c := r.get(); c != '\n' && c != eof; c = r.get() {
	}
	l.emit(tokError, "", at)
	l.emit(tokNL, "", at)
}

// number reads digits; when more than digits follow, it is a word after all.
func (l *lexer) number(r *reader, c int, at pos) {
	save := *r
	b := []byte{byte(c)}
	prev := *r
	n := r.get()
	for isDigit(n) && len(b) <= maxToken {
		b = append(b, byte(n))
		prev = *r
		n = r.get()
	}
	*r = prev
	alone := n == eof || strings.IndexByte(" \t\n\v\f\r),/}=", byte(n)) >= 0
	if !alone || len(b) == 1 && c == '-' {
		*r = save
		kind := tokWord
		if c == '-' {
			kind = tokUnquoted
		}
		l.word(r, c, kind)
		return
	}
	text := string(b)
	if _, err := strconv.ParseInt(text, 10, 64); err != nil {
		why := "too large"
		if c == '-' {
			why = "too small"
		}
		l.diags.errorf(at, "%q invalid number: %s", text, why)
		l.emit(tokError, text, at)
		return
	}
	l.emit(tokNumber, text, at)
}

// word reads on from its first octet c. The usual word is a piece of the file,
// not a copy.
func (l *lexer) word(r *reader, c int, kind tokenKind) {
	at := r.pos
	if start := r.off - 1; !r.inExp && r.exp == "" && start >= 0 && r.src[start] == byte(c) &&
		(start == 0 || r.src[start-1] != '\\') {
		end := r.off
		for end < len(r.src) && inWord(int(r.src[end])) && r.src[end] != '\\' {
			end++
		}
		if end == len(r.src) || r.src[end] != '\\' {
			r.off = end
			l.emitWord(r, r.src[start:end], kind, at)
			return
		}
	}
	b := []byte{byte(c)}
	for {
		save := *r
		c := r.get()
		if !inWord(c) {
			*r = save
			break
		}
		if b = append(b, byte(c)); len(b) > maxToken {
			break
		}
	}
	l.emitWord(r, string(b), kind, at)
}

func (l *lexer) emitWord(r *reader, text string, kind tokenKind, at pos) {
	if len(text) > maxToken {
		l.diags.errorf(at, "string too long, more than %d characters", maxToken)
		l.findEOL(r, at)
		return
	}
	l.emit(kind, text, at)
}

// expand reads the name of a macro and puts its value before what follows.
func (l *lexer) expand(r *reader, at pos) {
	var b []byte
	for {
		save := *r
		c := r.get()
		if !isDigit(c) && !isLetter(c) && c != '_' || len(b) > maxToken {
			*r = save
			break
		}
		b = append(b, byte(c))
	}
	m := l.macros[string(b)]
	if m == nil {
		l.diags.errorf(at, "macro '%s' not defined%s", b, l.diags.suggestion(string(b), near(l.macros)))
		l.emit(tokError, "", at)
		return
	}
	m.used = true
	if l.grow(len(m.value), at); !l.stopped {
		r.exp = m.value
	}
}

func isDigit(c int) bool  { return c >= '0' && c <= '9' }
func isLetter(c int) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }

func startsWord(c int) bool { return isDigit(c) || isLetter(c) || c == ':' || c == '_' }

// inWord reports the octets that go on a bare word: letters, digits and ASCII
// punctuation that is no operator.
func inWord(c int) bool {
	return c > ' ' && c < 0x7f && strings.IndexByte("(){}<>!=#,", byte(c)) < 0
}

// bareText reports whether text, printed without quotes, is read as one word.
func bareText(text string) bool {
	if text == "" || len(text) > maxToken || !startsWord(int(text[0])) {
		return false
	}
	digits := true
	for i := range len(text) {
		if !inWord(int(text[i])) || text[i] == '\\' {
			return false
		}
		digits = digits && isDigit(int(text[i]))
	}
	return !digits
}

// int64 is the value of a number token, clipped to what an int holds anywhere.
func (t *token) number() int64 {
	n, err := strconv.ParseInt(t.text, 10, 64)
	if err != nil {
		return math.MaxInt32
	}
	return n
}

func (t *token) String() string {
	switch t.kind {
	case tokNL, tokEOF:
		return "the end of the line"
	case tokNumber:
		return "the number " + t.text
	}
	return fmt.Sprintf("%q", t.text)
}

// finish reports the macros that nobody used.
func (l *lexer) finish(verbose bool) {
	if !verbose {
		return
	}
	for _, n := range keys(l.macros) {
		switch m := l.macros[n]; {
		case m.used:
		case m.fixed:
			l.diags.warnf(noPos(), "macro '%s' of the command line not used", n)
		default:
			l.diags.warnf(m.pos, "macro '%s' not used", n)
		}
	}
}
