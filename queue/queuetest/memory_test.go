package queuetest_test

import (
	"testing"
	"time"

	"smtpd/queue"
	"smtpd/queue/queuetest"
)

func TestMemory(t *testing.T) {
	queuetest.TestStore(t, func(t *testing.T) queue.Store { return queuetest.NewMemory(t.TempDir(), time.Now) })
}
