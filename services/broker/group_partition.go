package broker

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cirrolog/cirrolog/services/group"
	"github.com/cirrolog/cirrolog/storage/batch"
)

// groupPartition runs the coordinator of one partition of OffsetsTopic. Its
// goroutine loads the partition, appends what the coordinator writes, reports
// what became of it, and calls the coordinator when something is due.
type groupPartition struct {
	o      *GroupOptions
	ctx    context.Context // ends when the groups are closed, or the partition is given up
	stop   func()
	ended  chan struct{} // closed when run has returned
	log    groupLog
	logger *slog.Logger
	exists func(topic string) bool

	mu      sync.Mutex
	c       *group.Coordinator // nil while it is not loaded
	loaded  chan struct{}      // closed while it is
	waiting map[group.Ticket]chan group.Response
	last    group.Ticket
	queue   []group.Write // to append, in order
	armed   time.Time     // when the goroutine wakes by itself

	wake chan struct{} // one value when there is something to do
	turn chan struct{} // held by the request that comes next; those that wait for it have it in their order

	// flying is how many batches are being written; the goroutine's.
	flying int
	ackMu  sync.Mutex
	acks   []groupAck
}

// groupWrite is a write of the coordinator on its way into the log.
type groupWrite struct {
	id   group.WriteID
	left int // batches, of those it is in, that are not yet written
	err  error
}

// groupAck is what became of a batch.
type groupAck struct {
	writes []*groupWrite
	err    error
}

const (
	// loadWait is how long a request waits for the load of its partition, so
	// that most clients never see that there is one.
	loadWait = 5 * time.Second
	// loadPause is the time between tries to load.
	loadPause = 500 * time.Millisecond
	// loadBytes is how much of the log is read at once.
	loadBytes = 1 << 20
	// batchBytes is how much of records goes into one batch, if each is smaller.
	batchBytes = 256 << 10
	// recordFraming is the most that a record of a batch needs beside its key
	// and value: lengths and deltas.
	recordFraming = 40
	// recordRoom is what a batch may need beside the value of its only record:
	// names of up to 32 KiB and framing.
	recordRoom = 128 << 10
	// appendWait is how long appends wait for room.
	appendWait = 30 * time.Second
	// idleWake bounds how long the goroutine sleeps.
	idleWake = time.Hour
)

func newGroupPartition(ctx context.Context, o *GroupOptions, log groupLog, logger *slog.Logger, exists func(topic string) bool) *groupPartition {
	return &groupPartition{o: o, ctx: ctx, log: log, logger: logger, exists: exists, loaded: make(chan struct{}),
		waiting: map[group.Ticket]chan group.Response{}, wake: make(chan struct{}, 1), turn: make(chan struct{}, 1)}
}

func (p *groupPartition) kick() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// ready waits a while for the partition to be loaded.
func (p *groupPartition) ready(ctx context.Context) error {
	t := time.NewTimer(loadWait)
	defer t.Stop()
	return p.await(ctx, t.C)
}

// await waits for the load, at most until late.
func (p *groupPartition) await(ctx context.Context, late <-chan time.Time) error {
	p.mu.Lock()
	loaded := p.loaded
	p.mu.Unlock()
	select {
	case <-loaded:
		return nil
	default:
	}
	select {
	case <-loaded:
		return nil
	case <-late:
	case <-ctx.Done():
	case <-p.ctx.Done():
		return group.ErrNotCoordinator
	}
	return ErrGroupsLoading
}

// enter is ready for one request after the other, in the order in which they came; who has
// taken the turn gives it back. A commit whose client waits no longer would otherwise be carried out after the
// next one, which was acknowledged.
func (p *groupPartition) enter(ctx context.Context) error {
	t := time.NewTimer(loadWait)
	defer t.Stop()
	select {
	case p.turn <- struct{}{}:
	case <-t.C:
		return ErrGroupsLoading
	case <-ctx.Done():
		return ErrGroupsLoading
	case <-p.ctx.Done():
		return group.ErrNotCoordinator
	}
	err := p.await(ctx, t.C)
	if err != nil {
		<-p.turn
	}
	return err
}

// with calls the coordinator and does what follows from it.
func (p *groupPartition) with(call func(c *group.Coordinator, now time.Time) group.Effects) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.c == nil {
		return ErrGroupsLoading
	}
	p.effects(call(p.c, p.o.now()))
	return nil
}

// ask calls the coordinator with a ticket, in the request's turn, and waits for the answer, or until
// wait ends. ctx bounds what comes before.
func (p *groupPartition) ask(ctx, wait context.Context, call request) (group.Response, error) {
	if err := p.enter(ctx); err != nil {
		return nil, err
	}
	answer := make(chan group.Response, 1)
	var ticket group.Ticket
	err := p.with(func(c *group.Coordinator, now time.Time) group.Effects {
		p.last++
		ticket = p.last
		p.waiting[ticket] = answer
		return call(c, ticket, now)
	})
	<-p.turn
	if err != nil {
		return nil, err
	}
	select {
	case r := <-answer:
		return r, nil
	case <-wait.Done():
	}
	p.mu.Lock()
	delete(p.waiting, ticket)
	p.mu.Unlock()
	return nil, context.Cause(wait)
}

// effects queues writes, sends answers and sees to the next deadline. p.mu is
// held.
func (p *groupPartition) effects(fx group.Effects) {
	p.queue = append(p.queue, fx.Writes...)
	p.answer(fx.Answers)
	if at, ok := p.c.Deadline(); len(fx.Writes) > 0 || ok && at.Before(p.armed) {
		p.kick()
	}
}

func (p *groupPartition) answer(answers []group.Answer) {
	for _, a := range answers {
		if ch, ok := p.waiting[a.Ticket]; ok { // else its client has gone
			delete(p.waiting, a.Ticket)
			ch <- a.Response
		}
	}
}

// run serves the partition until the groups are closed. After a write has
// failed, what the coordinator thinks and what the log says may differ: it
// begins again from the log.
func (p *groupPartition) run() {
	for p.ctx.Err() == nil {
		if err := p.load(); err != nil {
			if p.ctx.Err() == nil {
				p.logger.Warn("consumer groups can't be loaded", "err", err)
				p.pause()
			}
			continue
		}
		if err := p.serve(); err != nil {
			p.logger.Warn("consumer groups can't be written; loading them again", "err", err)
			p.unload()
			p.pause()
			continue
		}
		p.unload()
	}
}

func (p *groupPartition) pause() {
	select {
	case <-time.After(loadPause):
	case <-p.ctx.Done():
	}
}

// serve works until the groups are closed (nil) or a write fails.
func (p *groupPartition) serve() error {
	timer := time.NewTimer(idleWake)
	defer timer.Stop()
	expire := time.NewTicker(p.o.ExpireInterval)
	defer expire.Stop()
	for {
		p.append()
		if err := p.report(); err != nil {
			return err
		}
		timer.Reset(p.arm())
		select {
		case <-p.wake:
		case <-timer.C:
			_ = p.with(func(c *group.Coordinator, now time.Time) group.Effects { return c.Tick(now) })
		case <-expire.C:
			_ = p.with(func(c *group.Coordinator, now time.Time) group.Effects { return c.ExpireOffsets(now) })
		case <-p.ctx.Done():
			return nil
		}
	}
}

// arm notes when the goroutine has to wake by itself and returns in how long.
func (p *groupPartition) arm() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.o.now()
	p.armed = now.Add(idleWake)
	if at, ok := p.c.Deadline(); ok && at.Before(p.armed) {
		p.armed = at
	}
	return max(p.armed.Sub(now), 0)
}

// append puts the queued writes into the log, in order, several in a batch. A
// write with a record that the log does not take is refused as a whole: nothing
// of it is in the log.
func (p *groupPartition) append() {
	p.mu.Lock()
	queue := p.queue
	p.queue = nil
	p.mu.Unlock()
	if len(queue) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(p.ctx, appendWait)
	defer cancel()
	var records []batch.Record
	var writes []*groupWrite
	limit := p.log.MaxBytes()
	size := batch.HeaderSize
	now := p.o.now().UnixMilli()
	flush := func() {
		if len(records) > 0 {
			p.appendBatch(ctx, records, writes)
		}
		records, writes, size = records[:0], nil, batch.HeaderSize
	}
	for _, w := range queue {
		gw := &groupWrite{id: w.ID}
		if err := fits(w.Records, limit); err != nil || len(w.Records) == 0 {
			gw.left, gw.err = 1, err
			p.flying++
			p.acked(groupAck{writes: []*groupWrite{gw}})
			continue
		}
		for _, r := range w.Records {
			n := recordBytes(r)
			if size+n > min(batchBytes, limit) {
				flush()
			}
			if len(writes) == 0 || writes[len(writes)-1] != gw {
				writes = append(writes, gw)
				gw.left++
			}
			records = append(records, batch.Record{Timestamp: now, Key: r.Key, Value: r.Value})
			size += n
		}
	}
	flush()
}

// recordBytes is the most that a record takes in a batch.
func recordBytes(r group.Record) int { return len(r.Key) + len(r.Value) + recordFraming }

// fits is an error if a record is larger than the log takes.
func fits(records []group.Record, limit int) error {
	for _, r := range records {
		if n := batch.HeaderSize + recordBytes(r); n > limit {
			return fmt.Errorf("%w: %d bytes, the topic takes %d", group.ErrRecordTooLarge, n, limit)
		}
	}
	return nil
}

func (p *groupPartition) appendBatch(ctx context.Context, records []batch.Record, writes []*groupWrite) {
	p.flying++
	done := func(r Produced) { p.acked(groupAck{writes, r.Err}) }
	b, err := batch.Encode(records, batch.EncodeOptions{})
	if err != nil {
		done(Produced{Err: err})
		return
	}
	p.log.Produce(ctx, b, nil, done)
}

// acked notes what became of a batch. It does not block.
func (p *groupPartition) acked(a groupAck) {
	p.ackMu.Lock()
	p.acks = append(p.acks, a)
	p.ackMu.Unlock()
	p.kick()
}

// take returns what the log has said of batches since the last call.
func (p *groupPartition) take() []groupAck {
	p.ackMu.Lock()
	defer p.ackMu.Unlock()
	acks := p.acks
	p.acks = nil
	p.flying -= len(acks)
	return acks
}

// report tells the coordinator what became of its writes.
func (p *groupPartition) report() (failed error) {
	acks := p.take()
	if len(acks) == 0 {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range acks {
		if a.err != nil && failed == nil {
			failed = a.err
		}
		for _, w := range a.writes {
			w.left--
			if a.err != nil {
				w.err = a.err
			}
			if w.left == 0 {
				p.effects(p.c.Written(w.id, w.err, p.o.now()))
			}
		}
	}
	return failed
}

// unload answers all that wait and lets the last appends end: the next load has
// to see them.
func (p *groupPartition) unload() {
	p.mu.Lock()
	p.answer(p.c.Unload())
	p.c, p.queue, p.loaded = nil, nil, make(chan struct{})
	p.mu.Unlock()
	for p.take(); p.flying > 0; p.take() {
		<-p.wake
	}
}
