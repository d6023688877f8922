package smtp

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
)

// asker asks another process, and waits no longer than down while that is not
// there.
type asker struct {
	link *ipc.Link
	down time.Duration
}

// bounded is ctx, shortened while the process is not there.
func (a asker) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if a.link.Up() {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, a.down)
}

// ask asks once.
func ask[A imsg.Msg](ctx context.Context, to asker, m imsg.Msg) (A, error) {
	r, f, err := askFile[A](ctx, to, m)
	if f != nil {
		f.Close()
	}
	return r, err
}

// askFile asks once, for an answer that may come with a descriptor.
func askFile[A imsg.Msg](ctx context.Context, to asker, m imsg.Msg) (A, *os.File, error) {
	ctx, cancel := to.bounded(ctx)
	defer cancel()
	r, f, err := ipc.AskFile[A](ctx, to.link, m)
	if err != nil {
		return r, nil, fmt.Errorf("ask %s: %w", to.link.Peer, err)
	}
	return r, f, nil
}

// askAgain asks what may be asked twice: when the process dies in mid call, its
// successor is asked.
func askAgain[A imsg.Msg](ctx context.Context, to asker, m imsg.Msg) (A, error) {
	r, err := ask[A](ctx, to, m)
	if errors.Is(err, ipc.ErrGone) {
		ctx, cancel := context.WithTimeout(ctx, to.down)
		defer cancel()
		r, err = ask[A](ctx, to, m)
	}
	return r, err
}
