package lookup

import (
	"context"

	"smtpd/internal/explain"
	"smtpd/internal/imsg"
	"smtpd/internal/mail"
)

// cutHere ends an explanation that is longer than an answer may be.
const cutHere = "... the rest is left out\n"

// explain says what becomes of a mail and why, with the tables, accounts and
// .forward files of now.
func (s *server) explain(ctx context.Context, w *world, m *imsg.Explain) *imsg.Explained {
	q, err := explain.ParseFacts(w.conf, m.Facts)
	if err != nil {
		return &imsg.Explained{Exit: explain.ExitError, Text: []byte(mail.Clean(err.Error(), mail.MaxStatusText)), Fail: true}
	}
	v := explain.Decide(ctx, w.expand, q)
	text := v.Text()
	if m.JSON {
		text = v.JSON()
		for n := len(v.Steps); len(text) > imsg.MaxData && n > 0; { // an object cannot be cut
			n /= 2
			v.Steps = v.Steps[:n]
			v.Envelopes = v.Envelopes[:min(n, len(v.Envelopes))]
			v.Notes = []string{"the rest is left out"}
			text = v.JSON()
		}
	}
	if len(text) > imsg.MaxData {
		text = text[:imsg.MaxData-len(cutHere)] + cutHere
	}
	return &imsg.Explained{Exit: uint8(v.Exit()), Text: []byte(text)}
}
