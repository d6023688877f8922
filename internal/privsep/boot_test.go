package privsep

import (
	"os"
	"reflect"
	"strings"
	"testing"

	"smtpd/internal/imsg"
)

// What the parent writes is what the child reads, and nothing of it stays.
func TestReadBoot(t *testing.T) {
	tests := map[string]Boot{
		"worker":  {},
		"all":     {UID: 12, GID: 34, Root: "/var/spool/a b\nc", Dir: "/", Unprivileged: true, JSONLog: true, Severity: true, Store: true},
		"as root": {UID: 100, GID: 101, Root: "/var/empty", Severity: true},
	}
	for all, i := reflect.ValueOf(tests["all"]), 0; i < all.NumField(); i++ {
		if all.Field(i).IsZero() {
			t.Errorf("%s is missing in the test", all.Type().Field(i).Name)
		}
	}
	for name, want := range tests {
		t.Run(name, func(t *testing.T) {
			for _, v := range os.Environ() {
				name, value, _ := strings.Cut(v, "=")
				t.Setenv(name, value) // for it to come back
			}
			os.Clearenv()
			for _, v := range append(want.environ(imsg.Deliver), "TZ=UTC", "LEFT=x") {
				name, value, _ := strings.Cut(v, "=")
				os.Setenv(name, value)
			}
			got, err := ReadBoot()
			if err != nil || got != want {
				t.Errorf("got %+v, %v; want %+v", got, err, want)
			}
			if left := os.Environ(); !reflect.DeepEqual(left, []string{"TZ=UTC"}) {
				t.Errorf("left: %q", left)
			}
		})
	}
}

func TestReadBootRefuses(t *testing.T) {
	for _, text := range []string{"", "1", "1 x", "x 1", "1 2 nosuch"} {
		for _, v := range os.Environ() {
			name, value, _ := strings.Cut(v, "=")
			t.Setenv(name, value)
		}
		t.Setenv(bootVar, text)
		if b, err := ReadBoot(); err == nil {
			t.Errorf("%q: %+v", text, b)
		}
	}
}
