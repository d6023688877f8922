package mda

import (
	"sync"
	"time"

	"smtpd/internal/log"
)

// gatherTime lies between two writes of the log while more and more deliveries
// end. Ours: some ten of them share what a write, and the parent's reading of it,
// cost.
const gatherTime = 5 * time.Millisecond

// lines is the log of deliveries. A line that comes alone is written at once,
// those that come closely behind another together, before queue hears of them.
// It is safe for concurrent use.
type lines struct {
	mu    sync.Mutex
	batch *log.Batch
	last  time.Time // written
	timer bool      // will write what there is
}

func newLines(l *log.Logger) *lines { return &lines{batch: l.Batch()} }

// add has print add to what will be written.
func (l *lines) add(print func(*log.Batch)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	print(l.batch)
	switch {
	case time.Since(l.last) >= gatherTime:
		l.write()
	case !l.timer:
		l.timer = true
		time.AfterFunc(gatherTime, l.flush)
	}
}

// flush writes what there is.
func (l *lines) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.timer = false
	l.write()
}

func (l *lines) write() {
	l.batch.Flush()
	l.last = time.Now()
}
