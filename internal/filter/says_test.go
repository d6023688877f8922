package filter

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A program that says little is heard word for word, of one that floods its
// error output only so much a second gets through, and it has to wait.
func TestListen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		var said []string
		over := make(chan struct{})
		go func() {
			Listen(r, func(text string) { said = append(said, text) })
			close(over)
		}()
		fmt.Fprintf(w, "hello\n\nbad\x01octet\r\n%s\n", strings.Repeat("x", 3*maxSays/2))
		synctest.Wait()
		want := []string{"hello", "bad?octet", strings.Repeat("x", maxSays), strings.Repeat("x", maxSays/2)}
		if strings.Join(said, "\n") != strings.Join(want, "\n") {
			t.Errorf("got %q", said)
		}
		time.Sleep(2 * saysMeasure)
		said = nil
		began := time.Now()
		for range 3 * saysAhead {
			fmt.Fprintln(w, "noise")
		}
		if d := time.Since(began); d < 2*saysMeasure {
			t.Errorf("it could say all that in %v", d)
		}
		time.Sleep(2 * saysMeasure)
		fmt.Fprintln(w, "the end")
		w.Close()
		<-over
		if n := len(said); n > 5*(saysSecond+1) || said[n-1] != "the end" {
			t.Errorf("%d lines, the last %q", n, said[n-1])
		}
		if text := strings.Join(said, "\n"); strings.Count(text, "more lines are left out") < 3 {
			t.Errorf("nobody says what is left out: %q", said[max(0, len(said)-5):])
		}
	})
}
