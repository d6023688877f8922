package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"smtpd/internal/config"
)

const testQueueKey = "0123456789abcdef0123456789abcdef"

// TestAskQueueKey: a key that the configuration does not hold is read, and one
// that cannot be had is an error: never is there a queue in the clear.
func TestAskQueueKey(t *testing.T) {
	tests := map[string]struct {
		ask, stdin string
		background bool
		key        config.Secret
		err        error
	}{
		"nothing asked": {"", testQueueKey, false, "", nil},
		"stdin":         {"stdin", testQueueKey + "\n", false, testQueueKey, nil},
		"no line end":   {"stdin", testQueueKey, false, testQueueKey, nil},
		"crlf":          {"stdin", testQueueKey + "\r\nmore", false, testQueueKey, nil},
		"background":    {"prompt", testQueueKey + "\n", true, testQueueKey, nil},
		"short":         {"stdin", "short\n", false, "", errQueueKey},
		"long":          {"stdin", testQueueKey + testQueueKey + testQueueKey + testQueueKey + testQueueKey, false, "", errQueueKey},
		"nothing":       {"stdin", "", false, "", errQueueKey},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			q := &config.Queue{AskKey: tt.ask}
			err := askQueueKey(q, tt.background, strings.NewReader(tt.stdin))
			if q.EncryptionKey != tt.key || !errors.Is(err, tt.err) {
				t.Errorf("error %v, want %v; the key fits: %t", err, tt.err, q.EncryptionKey == tt.key)
			}
		})
	}
}

// TestKeepQueueKey: a reload has the key of the start.
func TestKeepQueueKey(t *testing.T) {
	asked := config.Queue{AskKey: "stdin", EncryptionKey: testQueueKey}
	tests := map[string]struct {
		before, now config.Queue
		key         config.Secret
		err         error
	}{
		"as before":  {asked, config.Queue{AskKey: "stdin"}, testQueueKey, nil},
		"prompt now": {asked, config.Queue{AskKey: "prompt"}, testQueueKey, nil},
		"no more":    {asked, config.Queue{}, "", nil},
		"new":        {config.Queue{}, config.Queue{AskKey: "stdin"}, "", errKeyLater},
		"was given":  {config.Queue{EncryptionKey: testQueueKey}, config.Queue{AskKey: "prompt"}, "", errKeyLater},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if err := keepQueueKey(&tt.now, &tt.before); !errors.Is(err, tt.err) || tt.now.EncryptionKey != tt.key {
				t.Errorf("error %v, want %v; the key fits: %t", err, tt.err, tt.now.EncryptionKey == tt.key)
			}
		})
	}
}

// TestQueueKeyRefused: without the key the daemon does not start.
func TestQueueKeyRefused(t *testing.T) {
	for ask, want := range map[string]string{"": "there is no terminal", " stdin": "invalid key for queue encryption"} {
		conf := filepath.Join(t.TempDir(), "smtpd.conf")
		replace(t, conf, "queue encryption"+ask+"\naction a relay\nmatch for any action a\n")
		cmd := exec.Command("setsid", "--wait", filepath.Join(bins, "smtpd"), "-d", "-f", conf)
		cmd.Stdin = strings.NewReader("short\n")
		cmd.Env = os.Environ()
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("%q: %v, %s", ask, err, out)
		}
	}
}
