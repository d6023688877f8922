package queue_test

import (
	"testing"

	"smtpd/queue"
	"smtpd/queue/queuetest"
)

func reopen(o queue.Options) queuetest.Reopen {
	return func(dir string, disk queue.FS, moved func(string)) (queue.Store, error) {
		o := o
		if o.LogSize == 0 {
			o.LogSize = 64 << 10 // begun anew every now and then
		}
		o.FS, o.Moved = disk, func(m queue.Moved) { moved(m.Name + ": " + m.Reason) }
		s, err := queue.Open(dir, o)
		if err != nil {
			return nil, err // not a nil *Bolt in an interface
		}
		return s, nil
	}
}

func TestCrash(t *testing.T) {
	t.Run("one", func(t *testing.T) { queuetest.TestCrash(t, reopen(queue.Options{}), 1, 3, 3) })
	t.Run("many", func(t *testing.T) { queuetest.TestCrash(t, reopen(queue.Options{}), 4, 3, 1) })
	t.Run("short log", func(t *testing.T) { queuetest.TestCrash(t, reopen(queue.Options{LogSize: 16 << 10}), 2, 3, 2) })
	t.Run("sealed", func(t *testing.T) { queuetest.TestCrash(t, reopen(variants["both"]), 1, 2, 1) })
	t.Run("faults", func(t *testing.T) { queuetest.TestCrashFaults(t, reopen(queue.Options{}), 40, 1) })
	t.Run("twice", func(t *testing.T) { queuetest.TestCrashTwice(t, reopen(queue.Options{}), 12) })
}
