package filter

import "testing"

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
