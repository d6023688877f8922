package enqueue

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
)

func mkfifo(path string) error { return syscall.Mkfifo(path, 0o600) }

func TestOffline(t *testing.T) {
	dir := t.TempDir()
	args := []string{"-v", "-F", "The Boss", "bob"}
	o, err := OpenOffline(dir, args, when)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ReadOffline(dir, filepath.Base(o.tmp)); !errors.Is(err, ErrOfflineBusy) {
		t.Errorf("under way: got %v; want ErrOfflineBusy", err)
	}
	const text = "Subject: offline\n\nbody\n"
	if err := o.Store(strings.NewReader(text)); err != nil {
		t.Fatal(err)
	}
	name := only(t, dir)
	if !regexp.MustCompile(`^1795217133\.\d+$`).MatchString(name) {
		t.Errorf("name %q", name)
	}
	if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Mode() != 0o600 {
		t.Errorf("got %v, %v; want mode 0600", st, err)
	}
	k, err := ReadOffline(dir, name)
	if err != nil {
		t.Fatal(err)
	}
	defer k.File.Close()
	rest, err := io.ReadAll(k.File)
	if k.UID != uint32(os.Getuid()) || !slices.Equal(k.Args, args) || string(rest) != text || err != nil {
		t.Errorf("got %d, %q, %q, %v", k.UID, k.Args, rest, err)
	}
}

// only is the name of the one file in dir.
func only(t *testing.T, dir string) string {
	t.Helper()
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 1 {
		t.Fatalf("got %v, %v; want one file", names, err)
	}
	return names[0].Name()
}

// What cannot be kept leaves nothing behind.
func TestOfflineRefused(t *testing.T) {
	dir := t.TempDir()
	for _, args := range [][]string{{"-F", "a|b", "bob"}, {"a\nb"}, {"a\x00"}, {strings.Repeat("x", maxOfflineArgs)}} {
		_, err := OpenOffline(dir, args, when)
		if _, ok := errors.AsType[*Refused](err); !ok {
			t.Errorf("%.20q: got %v; want a refusal", args, err)
		}
	}
	if _, err := OpenOffline(dir, []string{"-F", "a|b"}, when); err == nil || err.Error() != "a|b contains illegal character" {
		t.Errorf("got %v", err)
	}
	o, err := OpenOffline(dir, nil, when)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Store(iotest.ErrReader(io.ErrClosedPipe)); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("got %v", err)
	}
	if names, err := os.ReadDir(dir); len(names) != 0 || err != nil {
		t.Errorf("left behind: %v, %v", names, err)
	}
	if _, err := OpenOffline(filepath.Join(dir, "none"), nil, when); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestReadOffline(t *testing.T) {
	write := func(text string) func(string) error {
		return func(path string) error { return os.WriteFile(path, []byte(text), 0o600) }
	}
	tests := map[string]struct {
		make func(path string) error
		args []string
		fail string
	}{
		"no arguments": {write("\nbody\n"), nil, ""},
		"arguments":    {write("-t|bob\nbody\n"), []string{"-t", "bob"}, ""},
		"empty":        {write(""), nil, "empty file"},
		"cut":          {write("-F"), nil, "no line of arguments"},
		"long":         {write(strings.Repeat("x", maxOfflineArgs+2) + "\n"), nil, "no line of arguments"},
		"nul":          {write("a\x00b\n"), nil, "no line of arguments"},
		"folder":       {func(path string) error { return os.Mkdir(path, 0o700) }, nil, "not a plain file"},
		"fifo":         {mkfifo, nil, "not a plain file"},
		"link":         {func(path string) error { return os.Symlink("/etc/passwd", path) }, nil, "too many levels"},
		"hard link": {func(path string) error {
			return errors.Join(os.WriteFile(path, []byte("-t\n"), 0o600), os.Link(path, path+".2"))
		}, nil, "not a plain file"},
		"gone": {func(string) error { return nil }, nil, "no such file"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := tt.make(filepath.Join(dir, "1.2")); err != nil {
				t.Fatal(err)
			}
			k, err := ReadOffline(dir, "1.2")
			if tt.fail != "" {
				if err == nil || !strings.Contains(err.Error(), tt.fail) {
					t.Errorf("got %v; want %q", err, tt.fail)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer k.File.Close()
			if !slices.Equal(k.Args, tt.args) {
				t.Errorf("got %q; want %q", k.Args, tt.args)
			}
		})
	}
}

func FuzzReadOffline(f *testing.F) {
	f.Add("-t|bob\nSubject: x\n")
	f.Add("|\n")
	f.Fuzz(func(t *testing.T, text string) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "1.2"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		k, err := ReadOffline(dir, "1.2")
		if err != nil {
			return
		}
		defer k.File.Close()
		if err := CheckArgs(k.Args); err != nil {
			t.Errorf("arguments %q: %v", k.Args, err)
		}
		rest, err := io.ReadAll(k.File)
		if got := strings.Join(k.Args, "|") + "\n" + string(rest); got != text || err != nil {
			t.Errorf("got %q, %v; want %q", got, err, text)
		}
	})
}

func TestMailName(t *testing.T) {
	one, two, none := t.TempDir(), t.TempDir(), t.TempDir()
	for dir, text := range map[string]string{one: "  mx.example.org \nother\n", two: "not a name\n"} {
		if err := os.WriteFile(filepath.Join(dir, "mailname"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	host := func() (string, error) { return "box.example", nil }
	nobody := func() (string, error) { return "", io.EOF }
	tests := map[string]struct {
		dirs []string
		host func() (string, error)
		want string
	}{
		"file":        {[]string{none, one}, host, "mx.example.org"},
		"first file":  {[]string{one, two}, host, "mx.example.org"},
		"no good":     {[]string{two}, host, "box.example"},
		"no file":     {[]string{none}, host, "box.example"},
		"no name":     {[]string{none}, nobody, ""},
		"bad name":    {nil, func() (string, error) { return "a..b", nil }, ""},
		"rooted name": {nil, func() (string, error) { return "a.b.", nil }, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := MailName(tt.dirs, tt.host)
			if got != tt.want || (err == nil) != (tt.want != "") {
				t.Errorf("got %q, %v; want %q", got, err, tt.want)
			}
		})
	}
}
