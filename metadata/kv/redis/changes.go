package redis

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/cirrolog/cirrolog/metadata/kv"
)

// readEntries bounds the commits of one read of the log.
const readEntries = 64

// changes hands the changes of a namespace to the watches of this process. One
// goroutine, from the first Watch on, reads the log over a connection of its
// own, which waits on the server for the next entry. Each entry names the
// revision before it, so whatever is missing (trimmed away, or lost by the
// server) is noticed; then all watches end.
type changes struct {
	s     *Store
	dial  func() *node
	ctx   context.Context // ends with close
	stop  context.CancelFunc
	start func() // starts the goroutine, once
	wg    sync.WaitGroup

	// Of the goroutine.
	verify   bool // ask for the position before the next read
	behind   bool // there are entries after at, so a read need not wait
	troubled bool // the last read failed

	mu     sync.Mutex
	node   *node // replaced by the goroutine only
	hub    *kv.Hub
	synced bool          // at counts
	at     kv.Revision   // of the last entry handed out
	moved  chan struct{} // closed, and replaced, when at or err changes
	err    error         // why the last read failed
	closed bool
}

func newChanges(s *Store, dial func() *node) *changes {
	c := &changes{s: s, dial: dial, hub: kv.NewHub(), moved: make(chan struct{}), verify: true}
	c.ctx, c.stop = context.WithCancel(context.Background())
	c.start = sync.OnceFunc(func() { c.wg.Go(c.run) })
	return c
}

// watch registers a watch once everything up to at has been handed out, so that
// it gets what comes later and nothing else.
func (c *changes) watch(ctx context.Context, prefix string, at kv.Revision) (<-chan []kv.Item, error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, kv.ErrClosed
	}
	c.start()
	c.mu.Unlock()
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		c.mu.Lock()
		if c.synced && c.at >= at {
			defer c.mu.Unlock()
			return c.hub.Watch(ctx, prefix)
		}
		moved, err := c.moved, c.err
		c.mu.Unlock()
		select {
		case <-moved:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-c.ctx.Done():
			return nil, kv.ErrClosed
		case <-late.C:
			return nil, fmt.Errorf("watch %q: %w: changes do not arrive: %v", prefix, kv.ErrUnavailable, err)
		}
	}
}

// run reads the log until close. It resumes after what was handed out last,
// whatever happened to the connection meanwhile.
func (c *changes) run() {
	c.redial()
	defer func() { _ = c.node.close() }()
	pause := firstPause
	for c.ctx.Err() == nil {
		err := c.step()
		if c.ctx.Err() != nil {
			return
		}
		c.report(err)
		if err == nil {
			pause = firstPause
			continue
		}
		c.verify = true
		_ = sleep(c.ctx, pause)
		pause = min(2*pause, lastPause)
	}
}

// report logs the beginning and the end of trouble.
func (c *changes) report(err error) {
	if err != nil && !c.troubled {
		c.s.logger.Warn("changes of metadata can't be read; trying again", "err", err)
	}
	if err == nil && c.troubled {
		c.s.logger.Info("changes of metadata are read again")
	}
	c.troubled = err != nil
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err = err; err != nil {
		c.signalLocked()
	}
}

func (c *changes) signalLocked() {
	close(c.moved)
	c.moved = make(chan struct{})
}

// step does one read of the log, after a look at the position if one is due.
func (c *changes) step() error {
	if c.verify {
		if err := c.locate(); err != nil {
			return err
		}
		c.verify = false
	}
	block := c.s.opts.blockFor
	if c.behind {
		block = -1 // do not wait
	}
	entries, err := c.read(block)
	switch {
	case errors.Is(err, goredis.Nil) || err == nil && len(entries) == 0:
		if c.behind {
			c.gap("changes are no longer kept")
		}
		c.verify = true
		return nil
	case err != nil:
		return err
	}
	c.behind = false
	for _, e := range entries {
		prev, at, items, err := decodeEntry(e)
		if err != nil {
			c.gap("an entry of the log is damaged")
			return err
		}
		if !c.publish(prev, at, items) {
			c.gap("changes are no longer kept, or were lost")
			return nil
		}
	}
	return nil
}

// read waits for entries after the last one handed out.
func (c *changes) read(block time.Duration) ([]goredis.XMessage, error) {
	client, err := c.node.client(c.ctx)
	if err != nil {
		return nil, err
	}
	after := strconv.FormatUint(uint64(c.at), 10) + "-0" // only this goroutine writes c.at
	res, err := client.XRead(c.ctx, &goredis.XReadArgs{Streams: []string{c.s.keys.log, after}, Count: readEntries, Block: block}).Result()
	if err != nil {
		c.node.moved(c.ctx, err)
		return nil, err
	}
	if len(res) == 0 {
		return nil, nil
	}
	return res[0].Messages, nil
}

// locate compares the position of the namespace with that of the watches.
func (c *changes) locate() error {
	ctx, cancel := context.WithTimeout(c.ctx, patience)
	defer cancel()
	rev, err := c.s.position(ctx)
	if err != nil {
		if errors.Is(err, ErrDataLost) {
			c.gap("the namespace is gone")
		}
		return err
	}
	if c.synced && rev < c.at {
		c.gap("redis lost changes that it had told of")
	}
	c.behind = c.synced && rev > c.at
	if !c.synced {
		c.mu.Lock()
		c.synced, c.at = true, rev
		c.signalLocked()
		c.mu.Unlock()
	}
	return nil
}

// publish hands out one commit, if it follows the last one.
func (c *changes) publish(prev, at kv.Revision, items []kv.Item) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if prev != c.at {
		return false
	}
	c.hub.Publish(items)
	c.at = at
	c.signalLocked()
	return true
}

// gap ends all watches, and begins anew at the position that is found next, on
// a new connection: the old one may lead to a server that was replaced.
func (c *changes) gap(why string) {
	c.mu.Lock()
	old, was := c.hub, c.synced
	c.hub, c.synced = kv.NewHub(), false
	c.mu.Unlock()
	old.Close()
	c.verify, c.behind = true, false
	c.redial()
	if was {
		c.s.logger.Warn("all watches of metadata end", "reason", why)
	}
}

func (c *changes) redial() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.node != nil {
		_ = c.node.close()
	}
	c.node = c.dial()
	if c.closed {
		_ = c.node.close()
	}
}

// close ends the goroutine and the watches.
func (c *changes) close() {
	c.mu.Lock()
	c.closed = true
	c.stop()
	if c.node != nil {
		_ = c.node.close() // ends a read that waits
	}
	c.mu.Unlock()
	c.wg.Wait()
	c.hub.Close()
}

// decodeEntry reads an entry of the log.
func decodeEntry(e goredis.XMessage) (prev, at kv.Revision, items []kv.Item, err error) {
	id, _ := strings.CutSuffix(e.ID, "-0")
	if at, err = parseRevision(id); err != nil {
		return 0, 0, nil, fmt.Errorf("entry %q of the log has no revision", e.ID)
	}
	for field, v := range e.Values {
		value, _ := v.(string)
		if key, ok := strings.CutPrefix(field, "+"); ok {
			items = append(items, kv.Item{Key: key, Value: []byte(value), Revision: at})
		} else if key, ok := strings.CutPrefix(field, "-"); ok {
			items = append(items, kv.Item{Key: key, Revision: at})
		}
	}
	before, _ := e.Values["p"].(string)
	if prev, err = parseRevision(before); err != nil {
		return 0, 0, nil, fmt.Errorf("entry %q of the log has no revision before it", e.ID)
	}
	return prev, at, items, nil
}
