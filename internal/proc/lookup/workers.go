package lookup

import "sync"

// maxIdle bounds the workers that wait for a question. Ours: as many as answer
// at the same time on a busy machine; more are started and end.
const maxIdle = 32

// workers are goroutines that go on with the next question when one is
// answered: a new one for each would have to grow its stack first, which costs
// as much as the answer.
type workers struct {
	next  chan func()
	ended chan struct{}

	mu   sync.Mutex
	idle int
}

func newWorkers() *workers {
	return &workers{next: make(chan func()), ended: make(chan struct{})}
}

// run runs f on a goroutine of its own, which wg counts.
func (w *workers) run(wg *sync.WaitGroup, f func()) {
	select {
	case w.next <- f:
	default:
		wg.Go(func() { w.work(f) })
	}
}

func (w *workers) work(f func()) {
	for {
		f()
		if !w.rest(1) {
			return
		}
		select {
		case f = <-w.next:
			w.rest(-1)
		case <-w.ended:
			return
		}
	}
}

// rest counts n more idle workers, unless there are enough.
func (w *workers) rest(n int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n > 0 && w.idle >= maxIdle {
		return false
	}
	w.idle += n
	return true
}

// end ends the idle workers, and the others with their question.
func (w *workers) end() { close(w.ended) }
