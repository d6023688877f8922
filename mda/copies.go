package mda

import (
	"sync"

	"smtpd/internal/mail"
)

// maxCopies bounds the copies that are remembered. Ours: the recipients of one
// message come together, so that the latest are enough.
const maxCopies = 1024

// copyKey is a message in a folder.
type copyKey struct {
	message  mail.MessageID
	dev, ino uint64
}

// oneCopy is the delivery of a message to a folder.
type oneCopy struct {
	done chan struct{} // closed when it has ended
	ok   bool          // how; valid then
}

// copies are the messages that were put into folders lately: of two recipients
// that end in one folder, such as a user and the user with a tag that has no
// folder of its own, one makes the file for both. The zero value is empty.
type copies struct {
	mu    sync.Mutex
	known map[copyKey]*oneCopy
	order []copyKey // as they came
}

// once has make put a message into a folder unless that was done. It waits for
// one that is under way, and takes over when that fails.
func (c *copies) once(key copyKey, make func() error) error {
	for {
		mine, other := c.enter(key)
		if other == nil {
			err := make()
			c.leave(key, mine, err == nil)
			return err
		}
		<-other.done
		if other.ok {
			return nil
		}
	}
}

func (c *copies) enter(key copyKey) (mine, other *oneCopy) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if other = c.known[key]; other != nil {
		return nil, other
	}
	if c.known == nil {
		c.known = map[copyKey]*oneCopy{}
	}
	for len(c.order) >= maxCopies {
		delete(c.known, c.order[0]) // who waits for it has it in hand
		c.order = c.order[1:]
	}
	mine = &oneCopy{done: make(chan struct{})}
	c.known[key] = mine
	c.order = append(c.order, key)
	return mine, nil
}

func (c *copies) leave(key copyKey, mine *oneCopy, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if mine.ok = ok; !ok && c.known[key] == mine {
		delete(c.known, key)
		for i := len(c.order) - 1; i >= 0; i-- {
			if c.order[i] == key {
				c.order = append(c.order[:i], c.order[i+1:]...)
				break
			}
		}
	}
	close(mine.done)
}
