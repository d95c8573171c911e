package kafka

import (
	"bufio"
	"context"
	"errors"
	"net"
	"time"
)

// maxWait bounds how long a request may wait; the limits of group rebalances are
// far below.
const maxWait = 24 * time.Hour

// waiting runs f, which may take minutes, in the place of the reader: later
// requests of the connection wait, as in Kafka. The context that f gets ends
// when the client goes away. Nothing of the request's frame is counted
// meanwhile, so f holds little.
func (c *conn) waiting(f func(ctx context.Context)) {
	c.keep(0)
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	c.expect(maxWait)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		if c.untilGone() {
			cancel()
		}
	}()
	f(ctx)
	c.stopReading() // ends untilGone; the next read sets its own time
	<-gone
}

// untilGone returns true when the connection can't be read any more. It
// returns false when the client has sent so much that there is no telling.
func (c *conn) untilGone() bool {
	for {
		_, err := c.br.Peek(c.br.Buffered() + 1)
		if err != nil {
			return !errors.Is(err, bufio.ErrBufferFull)
		}
	}
}

// clientHost is the client's address as Kafka writes it in groups.
func (c *conn) clientHost() string {
	addr := c.nc.RemoteAddr().String()
	if host, _, err := net.SplitHostPort(addr); err == nil {
		addr = host
	}
	return "/" + addr
}
