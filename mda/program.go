package mda

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
)

// maxKept bounds what ReadText keeps in memory, in octets.
const maxKept = 1 << 20

// ReadText reads a message from a stream, into memory or when it is long into a
// file without a name. done closes that; call it when the text is no longer
// used.
func ReadText(r io.Reader) (t Text, done func(), err error) {
	var b bytes.Buffer
	n, err := io.CopyN(&b, r, maxKept)
	if err == io.EOF {
		return Text{Data: b.Bytes()}, func() {}, nil
	}
	if err != nil {
		return Text{}, nil, fmt.Errorf("read the message: %w", err)
	}
	f, err := os.CreateTemp("", "mail.")
	if err != nil {
		return Text{}, nil, err
	}
	_ = os.Remove(f.Name()) // it needs no name
	rest, err := io.Copy(f, io.MultiReader(&b, r))
	if err != nil {
		f.Close()
		return Text{}, nil, fmt.Errorf("keep the message: %w", err)
	}
	return Text{File: f, Size: max(rest, n)}, func() { f.Close() }, nil
}

// Literal makes a path that is to be taken as it is fit for Delivery.Path.
func Literal(path string) string { return strings.ReplaceAll(path, "%", "%%") }

// Program makes one delivery for a program of that name: the message is read
// from in and nothing is put in front of it. A failure goes to errw as one line.
// The result is the exit status, one of sysexits(3).
func Program(ctx context.Context, d *Deliverer, name string, v *Delivery, in io.Reader, errw io.Writer) int {
	text, done, err := ReadText(in)
	if err != nil {
		fmt.Fprintf(errw, "%s: %v\n", name, err)
		return exTempfail
	}
	defer done()
	v.Text, v.AsIs = text, true
	r := d.Deliver(ctx, v)
	if r.Exit != 0 {
		line := strings.Trim(r.Line, `"`)
		if !strings.HasPrefix(line, name) {
			line = name + ": " + line
		}
		fmt.Fprintln(errw, line)
	}
	return r.Exit
}
