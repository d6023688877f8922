package filter

import (
	"strings"
	"testing"
)

func TestMaskLogin(t *testing.T) {
	const head = "filter|0.7|1576147242.200225|smtp-in|"
	tests := map[string]struct{ line, want string }{
		"login":         {head + "auth|7641df9771b4ed00|1ef1c203cc576e5d|PLAIN AGEAYg==", head + "auth|7641df9771b4ed00|1ef1c203cc576e5d|PLAIN ********"},
		"bars in it":    {head + "auth|7641df9771b4ed00|1ef1c203cc576e5d|PLAIN A|B C", head + "auth|7641df9771b4ed00|1ef1c203cc576e5d|PLAIN ********"},
		"no secret":     {head + "auth|7641df9771b4ed00|1ef1c203cc576e5d|LOGIN", head + "auth|7641df9771b4ed00|1ef1c203cc576e5d|LOGIN"},
		"another phase": {head + "helo|7641df9771b4ed00|1ef1c203cc576e5d|a b", head + "helo|7641df9771b4ed00|1ef1c203cc576e5d|a b"},
		"no question":   {"report|0.7|1|smtp-in|auth|1|1|a b", "report|0.7|1|smtp-in|auth|1|1|a b"},
		"short":         {"filter|0.7", "filter|0.7"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := maskLogin(tt.line); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// What is traced is one line each, in which a tab and other control characters
// can be told apart.
func TestTrace(t *testing.T) {
	var got []string
	on := false
	p := &Program{o: Options{Tracing: func() bool { return on }, Trace: func(text string) { got = append(got, text) }}}
	p.trace("<- ", []byte("unseen\n"))
	on = true
	p.trace("<- ", []byte("config|ready\nfilter|0.7|1|smtp-in|data-line|1|2|\tid\tx\x1b[1m\n"))
	p.trace("-> ", []byte("last\tone"))
	want := "<- config|ready\n<- filter|0.7|1|smtp-in|data-line|1|2|\\tid\\tx?[1m\n-> last\\tone"
	if text := strings.Join(got, "\n"); text != want {
		t.Errorf("got %q, want %q", text, want)
	}
}
