package smtp

import (
	"errors"
	"math"
	"strconv"
	"strings"
	"time"
)

const (
	replyBadChunk = "501 5.5.4 Invalid command arguments: BDAT needs a size"
	replyChunk    = "250 2.0.0 Ok, octets: "
)

// bdat is one chunk of a message (RFC 3030). Its octets follow the command
// whatever becomes of it, so they are read in any case: what is not read would
// be taken for commands.
func (s *Session) bdat(arg string) {
	if !s.offers(extChunking) {
		s.refuse(replyUnknown)
		return
	}
	size, last, ok := parseChunk(arg)
	switch {
	case !ok:
		s.refuse(replyBadChunk)
		s.close(reasonBadInput) // nobody knows where the next command begins
		return
	case size > discardable(s.c.SMTP.MaxMessageSize):
		s.refuse(replyTooBig)
		s.close(reasonBadInput) // so much is not even read to be dropped
		return
	}
	reply := s.openChunk(last)
	m := (*message)(nil)
	if reply == "" {
		m = s.tx.msg
		if m.raw = min(m.raw, math.MaxInt64>>1) + size; m.raw > s.c.SMTP.MaxMessageSize {
			m.reject(replyTooBig)
		}
	}
	if err := s.readChunk(m, size); err != nil {
		s.broken(err)
		return
	}
	switch {
	case reply == alreadySaid:
	case reply != "":
		s.refuse(reply)
	case last:
		s.finish("")
	case m.failed():
		s.finish("") // with the refusal: the sender need not go on
	default:
		s.say(replyChunk + strconv.FormatInt(size, 10))
	}
}

// alreadySaid stands for a reply that a filter gave.
const alreadySaid = "-"

// openChunk makes the transaction ready for a chunk, or gives the reply that
// refuses it. Once a chunk has been dropped no later one may make a message: it
// would be one with a hole.
func (s *Session) openChunk(last bool) (reply string) {
	switch tx := s.tx; {
	case tx == nil || tx.refused:
		return replySequence
	case len(tx.rcpts) == 0:
		tx.refused = !last
		return replyNoRcpt
	case tx.msg != nil:
		return ""
	}
	if _, ok := s.ask(PhaseData, ""); !ok {
		s.tx.refused = true
		s.reportTx(EventTxData, "permfail")
		return alreadySaid
	}
	s.openMessage(false)
	if m := s.tx.msg; s.tx.p.binary {
		m.max = 2 * min(m.max, math.MaxInt64/2) // what becomes of it may be longer than what came
		m.binary = &unbinary{out: m.feedText}
	}
	s.reportTx(EventTxData, "ok")
	return ""
}

// parseChunk reads the argument of BDAT. A size of up to twenty digits that fits
// no integer is the largest there is.
func parseChunk(arg string) (size int64, last, ok bool) {
	num, word, has := strings.Cut(arg, " ")
	n, err := strconv.ParseUint(num, 10, 62)
	if errors.Is(err, strconv.ErrRange) && len(num) <= maxDigits {
		n, err = math.MaxInt64>>1, nil
	}
	if err != nil || num[0] == '+' || (has && !strings.EqualFold(strings.TrimSpace(word), "LAST")) {
		return 0, false, false
	}
	return int64(n), has, true
}

// readChunk reads the octets of one chunk into m, or drops them when m is nil.
func (s *Session) readChunk(m *message, size int64) error {
	w := s.wire
	start := time.Now()
	if size > smallBuffer {
		w.grow()
		defer w.shrink()
	}
	for left := size; ; {
		b := w.buffered()
		if int64(len(b)) > left {
			b = b[:left]
		}
		if m != nil {
			if err := m.feed(b); err != nil {
				return err
			}
		}
		w.skip(len(b))
		if left -= int64(len(b)); left == 0 {
			return nil
		}
		if err := s.fillBody(start, size-left); err != nil {
			return err
		}
	}
}
