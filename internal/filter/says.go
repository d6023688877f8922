package filter

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"smtpd/internal/mail"
)

// Bounds of what a program says on its error output. Ours.
const (
	maxSays     = 1024             // octets of a line
	saysSecond  = 50               // lines that are passed on in a second
	saysAhead   = 100 * saysSecond // lines that are read in a second
	saysMeasure = time.Second
)

// Listen gives say what a program says on its error output, line by line, until
// that ends. Of one that says too much a part is left out, and counted; one
// that says very much has to wait.
func Listen(r io.Reader, say func(text string)) {
	in := bufio.NewReaderSize(r, maxSays)
	began, lines := time.Now(), 0
	tell := func() {
		if lines > saysSecond {
			say(fmt.Sprintf("%d more lines are left out", lines-saysSecond))
		}
		began, lines = time.Now(), 0
	}
	for {
		line, err := in.ReadSlice('\n')
		if text := strings.TrimRight(string(line), "\r\n"); text != "" {
			if time.Since(began) >= saysMeasure {
				tell()
			}
			if lines++; lines <= saysSecond {
				say(mail.Clean(text, maxSays))
			}
		}
		if lines >= saysAhead {
			time.Sleep(time.Until(began.Add(saysMeasure)))
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			tell()
			return
		}
	}
}
