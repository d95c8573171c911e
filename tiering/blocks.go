package tiering

import (
	"container/list"
	"context"
	"sync"
)

// block is one block of an object in memory. It is in use while refs > 0.
type block struct {
	id   blockID
	data []byte
	refs int
	idle *list.Element // place among the unused ones, nil while in use or dropped
	gone bool          // dropped from the map: freed with the last reference
	// unused: it was read ahead as the loads-th load, and nobody has asked for it yet.
	unused bool
	loads  int64
}

// flight is a block that is being loaded, once for all who want it.
type flight struct {
	done    chan struct{}
	waiters int
	b       *block // set before done is closed, unless err is
	err     error
	ahead   bool // began as read-ahead
}

// blockCache holds at most slots blocks in memory, those in use and those
// that may be wanted again, and loads each missing block once however many
// ask for it. The buffers are recycled.
type blockCache struct {
	// load fills buf; with fresh it must come from the bucket; once tells that
	// it may never be wanted again. keep, if not
	// nil, is called when those who wait have been told, and unkeep when the
	// block was dropped meanwhile.
	load      func(ctx context.Context, id blockID, buf []byte, fresh, once bool) (keep, unkeep func(), err error)
	ctx       context.Context // of the loads: they outlive who asked
	wg        *sync.WaitGroup
	blockSize int
	slots     int
	maxAhead  int // read-ahead loads at once

	mu      sync.Mutex
	blocks  map[blockID]*block
	flights map[blockID]*flight
	idle    *list.List           // least recently used first
	suspect map[blockID]struct{} // dropped because of wrong bytes
	free    [][]byte             // spare buffers
	buffers int                  // allocated: in use, idle and spare
	room    []chan struct{}
	ahead   int // read-ahead loads in flight
	unused  int // blocks that were read ahead and not asked for yet
	stats   blockStats
}

type blockStats struct {
	hits, joins, loads, ahead, aheadUsed int64
}

// get returns a block of length bytes, which the caller gives back by release.
// The load goes on when ctx ends. once is as in readAhead.
func (c *blockCache) get(ctx context.Context, id blockID, length int, once bool) (*block, error) {
	c.mu.Lock()
	if b := c.blocks[id]; b != nil {
		c.use(b)
		if b.unused {
			c.stats.aheadUsed++
		}
		c.asked(b)
		c.stats.hits++
		c.mu.Unlock()
		return b, nil
	}
	f := c.flights[id]
	if f == nil {
		f = c.start(id, length, false, once)
	} else {
		c.stats.joins++
		if f.ahead {
			c.stats.aheadUsed++
			f.ahead = false
		}
	}
	f.waiters++
	c.mu.Unlock()
	select {
	case <-f.done:
		return f.b, f.err
	case <-ctx.Done():
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-f.done:
		if f.err == nil {
			c.unuse(f.b) // it was given to us already
		}
	default:
		f.waiters--
	}
	return nil, ctx.Err()
}

// readAhead begins to load a block that may be wanted soon. It reports false,
// and does nothing, when that would take more than its share. once tells that it
// may never be wanted again.
func (c *blockCache) readAhead(id blockID, length int, once bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.blocks[id] != nil || c.flights[id] != nil {
		return true
	}
	// What waits to be used must not push out itself: several sequential readers
	// share the room.
	if c.ahead >= c.maxAhead || c.ahead+c.unused >= c.slots/2 {
		return false
	}
	c.ahead++
	c.stats.ahead++
	c.start(id, length, true, once)
	return true
}

// start begins a load; c.mu is held.
func (c *blockCache) start(id blockID, length int, ahead, once bool) *flight {
	f := &flight{done: make(chan struct{}), ahead: ahead}
	c.flights[id] = f
	c.stats.loads++
	c.wg.Add(1)
	go c.run(f, id, length, ahead, once)
	return f
}

func (c *blockCache) run(f *flight, id blockID, length int, ahead, once bool) {
	defer c.wg.Done()
	buf, err := c.buffer(c.ctx)
	var keep, unkeep func()
	if err == nil {
		buf = buf[:length]
		keep, unkeep, err = c.load(c.ctx, id, buf, c.isSuspect(id), once)
	}
	c.mu.Lock()
	delete(c.flights, id)
	if err == nil {
		delete(c.suspect, id)
	}
	if ahead {
		c.ahead--
	}
	f.err = err
	if err != nil {
		if buf != nil {
			c.recycle(buf)
		}
		close(f.done)
		c.mu.Unlock()
		return
	}
	b := &block{id: id, data: buf, refs: f.waiters + 1, unused: f.ahead, loads: c.stats.loads}
	if b.unused {
		c.unused++
	}
	f.b = b
	c.blocks[id] = b
	close(f.done)
	c.mu.Unlock()
	if keep != nil {
		keep()
		if c.isGone(b) {
			unkeep()
		}
	}
	c.release(b)
}

func (c *blockCache) isSuspect(id blockID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.suspect[id]
	return ok
}

func (c *blockCache) isGone(b *block) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return b.gone
}

// buffer returns a buffer of blockSize bytes, waiting until there is room.
func (c *blockCache) buffer(ctx context.Context) ([]byte, error) {
	for {
		c.mu.Lock()
		if n := len(c.free); n > 0 {
			buf := c.free[n-1]
			c.free = c.free[:n-1]
			c.mu.Unlock()
			return buf[:c.blockSize], nil
		}
		if c.buffers < c.slots {
			c.buffers++
			c.mu.Unlock()
			return make([]byte, c.blockSize), nil
		}
		if b := c.victim(); b != nil {
			c.forget(b)
			buf := b.data[:c.blockSize]
			c.mu.Unlock()
			return buf, nil
		}
		wake := make(chan struct{})
		c.room = append(c.room, wake)
		c.mu.Unlock()
		select {
		case <-wake:
		case <-ctx.Done():
			c.passOn(wake)
			return nil, ctx.Err()
		}
	}
}

// victim returns the block to give up, the least recently used one: but what was
// read ahead and is still to be used stays, unless its reader seems to have gone.
// c.mu is held.
func (c *blockCache) victim() *block {
	for e := c.idle.Front(); e != nil; e = e.Next() {
		b := e.Value.(*block)
		if !b.unused || c.stats.loads-b.loads > int64(4*c.slots) {
			return b
		}
	}
	if e := c.idle.Front(); e != nil {
		return e.Value.(*block)
	}
	return nil
}

// passOn gives a wake-up that came too late to the next one waiting.
func (c *blockCache) passOn(wake chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, w := range c.room {
		if w == wake {
			c.room = append(c.room[:i], c.room[i+1:]...)
			return
		}
	}
	c.wakeOne()
}

// wakeOne lets one waiting load look for room again; c.mu is held.
func (c *blockCache) wakeOne() {
	if len(c.room) > 0 {
		close(c.room[0])
		c.room = c.room[1:]
	}
}

// asked notes that a block is wanted, or gone; c.mu is held.
func (c *blockCache) asked(b *block) {
	if b.unused {
		b.unused = false
		c.unused--
	}
}

// forget takes a block that is not in use out of the map; c.mu is held.
func (c *blockCache) forget(b *block) {
	c.asked(b)
	c.idle.Remove(b.idle)
	b.idle, b.gone = nil, true
	delete(c.blocks, b.id)
}

// use takes a reference; c.mu is held.
func (c *blockCache) use(b *block) {
	if b.idle != nil {
		c.idle.Remove(b.idle)
		b.idle = nil
	}
	b.refs++
}

// unuse gives a reference back; c.mu is held.
func (c *blockCache) unuse(b *block) {
	b.refs--
	if b.refs > 0 {
		return
	}
	if b.gone {
		c.recycle(b.data)
		return
	}
	b.idle = c.idle.PushBack(b)
	c.wakeOne()
}

// recycle keeps a buffer for the next load; c.mu is held.
func (c *blockCache) recycle(buf []byte) {
	c.free = append(c.free, buf[:c.blockSize])
	c.wakeOne()
}

func (c *blockCache) release(b *block) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unuse(b)
}

// maxSuspects bounds the blocks remembered as wrong; they are few, as each is
// forgotten when it was loaded again.
const maxSuspects = 1024

// drop gives up a block with wrong bytes: the next get loads it from the bucket.
func (c *blockCache) drop(id blockID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.suspect) >= maxSuspects {
		clear(c.suspect)
	}
	c.suspect[id] = struct{}{}
	b := c.blocks[id]
	if b == nil {
		return
	}
	if b.refs == 0 {
		c.forget(b)
		c.recycle(b.data)
		return
	}
	c.asked(b)
	delete(c.blocks, id)
	b.gone = true
}

// memory returns the bytes of all buffers.
func (c *blockCache) memory() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return int64(c.buffers) * int64(c.blockSize)
}

func (c *blockCache) snapshot() blockStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stats
}
