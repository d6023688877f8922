// Package rfc5322 knows the header of a message: it writes the fields that a
// server adds and rewrites the ones that it must, line by line and in one pass.
// It owns nothing but the memory of one header, which is bounded; it must never
// judge a message by its body, nor keep one.
package rfc5322

import "time"

// dateForm is RFC 5322 section 3.3 with the name of the zone as a comment.
const dateForm = "Mon, 2 Jan 2006 15:04:05 -0700 (MST)"

// Date is t as a Date or Received field has it, with English names whatever the
// locale: "Fri, 20 Nov 2026 23:17:50 +0000 (UTC)". The zone is that of t.
func Date(t time.Time) string { return t.Format(dateForm) }

// AppendDate appends Date(t) to b.
func AppendDate(b []byte, t time.Time) []byte { return t.AppendFormat(b, dateForm) }
