package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// client is an actor with operations and thinking times of its own, drawn from the seed.
type client struct {
	w    *world
	name string
	rng  *rand.Rand
	ops  int
	work func(ctx context.Context, c *client)
	last error // of the operation under way
}

func (c *client) run(ctx context.Context) { c.work(ctx, c) }

// think waits until the next operation is due.
func (c *client) think(ctx context.Context) {
	mean := c.w.cfg.span / time.Duration(max(c.ops, 1))
	c.pause(ctx, time.Duration(c.rng.Int64N(int64(2*mean)+1)))
}

func (c *client) pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// backoff waits before an operation is tried again.
func (c *client) backoff(ctx context.Context, err error) {
	c.last = err
	c.pause(ctx, time.Duration(20+c.rng.IntN(60))*time.Millisecond)
}

// did counts an operation.
func (c *client) did(kind string) {
	c.w.ops.Add(1)
	c.w.done[kind].Add(1)
}

// kinds of clients, with the share of operations that all of a kind have, in percent.
var kinds = []struct {
	name       string
	n, percent int
	work       func(ctx context.Context, c *client)
}{
	{"produce", 8, 40, nil}, {"plain", 2, 6, plainProducer}, {"consume", 6, 28, consumer}, {"follow", 3, 9, follower},
	{"group", 3, 9, committer}, {"offsets", 2, 4, offsets}, {"topics", 1, 1, topics}, {"delete-records", 1, 1, deleter}, {"producer-ids", 1, 2, pids},
}

func (w *world) clients() (out []*client) {
	for k, kind := range kinds {
		w.done[kind.name] = &atomic.Int64{}
		for i := range kind.n {
			c := &client{w: w, name: fmt.Sprintf("%s-%d", kind.name, i), rng: rand.New(rand.NewPCG(w.seed, uint64(1000*(k+1)+i))), ops: (w.cfg.ops*kind.percent/100 + kind.n - 1) / kind.n, work: kind.work}
			if kind.name == "produce" {
				p := &producer{client: c, pid: int64(5000 + i), tp: ids.TopicPartition{Topic: w.topic.ID, Partition: int32(i) % w.cfg.partitions}}
				c.work = p.run
			}
			out = append(out, c)
		}
	}
	return out
}

// partition draws one.
func (c *client) partition() ids.TopicPartition {
	return ids.TopicPartition{Topic: c.w.topic.ID, Partition: c.rng.Int32N(c.w.cfg.partitions)}
}

// encode makes a batch.
func encode(records []uint64, p *batch.Producer) []byte {
	rs := make([]batch.Record, len(records))
	for i, id := range records {
		rs[i] = batch.Record{Timestamp: time.Now().UnixMilli(), Value: value(id)}
	}
	b, err := batch.Encode(rs, batch.EncodeOptions{Producer: p})
	if err != nil {
		panic(err) // the test's mistake
	}
	return b
}

// outcome is what became of the i-th batch.
type outcome struct {
	i int
	broker.Produced
}

// producer is an idempotent one with several batches under way, which sends again, in order,
// what it knows nothing of, as Kafka's clients do.
type producer struct {
	*client
	tp      ids.TopicPartition
	pid     int64
	seq     int32
	made    uint64
	epoch   int32 // the greatest that acknowledged
	unacked []*sent
}

type sent struct {
	seq     int32
	records []uint64
}

func (p *producer) run(ctx context.Context, _ *client) {
	for left := p.ops; ctx.Err() == nil && (left > 0 || len(p.unacked) > 0); {
		window := 1 + p.rng.IntN(4)
		for left > 0 && len(p.unacked) < window {
			p.think(ctx)
			s := &sent{seq: p.seq}
			for range 1 + p.rng.IntN(3) {
				p.made++
				s.records = append(s.records, uint64(p.pid)<<32|p.made)
			}
			p.seq += int32(len(s.records))
			p.unacked = append(p.unacked, s)
			left--
			p.did("produce")
		}
		if err := p.send(ctx); err != nil {
			p.backoff(ctx, err)
		}
	}
}

// send sends all that is not acknowledged once, some of it twice, and takes what is.
func (p *producer) send(ctx context.Context) error {
	a := p.w.leader(p.rng, p.tp.Topic, p.tp.Partition)
	if a == nil {
		return errNobody
	}
	twice := p.rng.IntN(10) == 0
	answers := make(chan outcome, 2*len(p.unacked))
	got := make([]*broker.Produced, len(p.unacked))
	epoch := int32(-1)
	err := a.call(ctx, func(ctx context.Context) error {
		part, err := a.broker.Partition(p.tp.Topic, p.tp.Partition)
		if err != nil {
			return err
		}
		epoch = part.LeaderEpoch()
		n := 0
		for range 1 + btoi(twice) {
			for i, s := range p.unacked {
				part.Produce(ctx, encode(s.records, &batch.Producer{ID: p.pid, BaseSequence: s.seq}), nil, func(r broker.Produced) { answers <- outcome{i, r} })
				n++
			}
		}
		for range n {
			select {
			case o := <-answers:
				if have := got[o.i]; have == nil || have.Err != nil {
					got[o.i] = &o.Produced
				} else if o.Err == nil && have.BaseOffset != o.BaseOffset {
					p.w.trace.violate("I1: %s: batch %d is at %d and at %d", p.name, p.unacked[o.i].seq, have.BaseOffset, o.BaseOffset)
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	if errors.Is(err, errDead) || a.link.gone() {
		return errDead // nothing came back
	}
	return p.take(a, epoch, got, err)
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// take takes acknowledgements in order.
func (p *producer) take(a *agent, epoch int32, got []*broker.Produced, err error) error {
	n := 0
	for i, s := range p.unacked {
		if got[i] == nil {
			break
		}
		if e := got[i].Err; e != nil {
			if i == 0 && (errors.Is(e, broker.ErrOutOfOrderSequence) || errors.Is(e, broker.ErrDuplicateSequence)) {
				if epoch >= p.epoch {
					p.w.trace.violate("I1: %s: agent %d, epoch %d, answers to batch %d, all before are acknowledged: %v", p.name, a.slot, epoch, s.seq, e)
				}
				p.w.stale.Add(1)
			}
			err = e
			break
		}
		p.w.ledger.ack(p.w, p.tp, got[i].BaseOffset, s.records, fmt.Sprintf("%s, agent %d", p.name, a.slot))
		p.w.trace.add("%s: agent %d: %s batch %d acknowledged at %d", p.name, a.slot, p.tp, s.seq, got[i].BaseOffset)
		p.w.acked.Add(int64(len(s.records)))
		p.epoch = max(p.epoch, epoch)
		n++
	}
	p.unacked = slices.Delete(p.unacked, 0, n)
	return err
}

// plainProducer sends batches without sequences, and never one twice.
func plainProducer(ctx context.Context, c *client) {
	made := uint64(0)
	me := uint64(c.rng.Uint32N(1<<30)) << 32
	for i := 0; i < c.ops && ctx.Err() == nil; i++ {
		c.think(ctx)
		c.did("plain")
		tp := c.partition()
		for ctx.Err() == nil {
			a := c.w.leader(c.rng, tp.Topic, tp.Partition)
			if a == nil {
				c.backoff(ctx, errNobody)
				continue
			}
			var records []uint64
			for range 1 + c.rng.IntN(4) {
				made++
				records = append(records, plainRecord|me|made)
			}
			var out broker.Produced
			err := a.call(ctx, func(ctx context.Context) error {
				part, err := a.broker.Partition(tp.Topic, tp.Partition)
				if err != nil {
					return err
				}
				answer := make(chan broker.Produced, 1)
				part.Produce(ctx, encode(records, nil), nil, func(r broker.Produced) { answer <- r })
				select {
				case out = <-answer:
					return out.Err
				case <-ctx.Done():
					return ctx.Err()
				}
			})
			if err == nil {
				c.w.ledger.ack(c.w, tp, out.BaseOffset, records, fmt.Sprintf("%s, agent %d", c.name, a.slot))
				c.w.acked.Add(int64(len(records)))
				break
			}
			c.backoff(ctx, err)
		}
	}
}

// consumer reads a partition from its leader again and again, and follows leader epochs.
func consumer(ctx context.Context, c *client) {
	tp := c.partition()
	pos, epoch := int64(0), int32(-1)
	for i := 0; i < c.ops && ctx.Err() == nil; i++ {
		c.think(ctx)
		c.did("consume")
		if c.rng.IntN(20) == 0 {
			tp, pos, epoch = c.partition(), 0, -1
		}
		for ctx.Err() == nil {
			next, e, err := c.w.read(ctx, c, tp, pos, epoch)
			if err == nil {
				pos, epoch = next, e
				break
			}
			if errors.Is(err, broker.ErrOffsetOutOfRange) {
				pos, epoch = max(pos, c.w.ledger.known(tp).start), -1 // auto.offset.reset
			}
			c.backoff(ctx, err)
		}
	}
}

// read reads at the leader of a partition from an offset on; epoch is that of the record before, -1 for none.
func (w *world) read(ctx context.Context, c *client, tp ids.TopicPartition, pos int64, epoch int32) (next int64, last int32, err error) {
	before := w.ledger.known(tp)
	a := w.leader(c.rng, tp.Topic, tp.Partition)
	if a == nil {
		return pos, epoch, errNobody
	}
	next, last = pos, epoch
	o := broker.ReadOptions{Offset: pos, MaxBytes: 1 << (9 + c.rng.IntN(8)), MinOneBatch: true, CurrentEpoch: -1, LastFetchedEpoch: -1}
	if c.rng.IntN(2) == 0 {
		o.LastFetchedEpoch = epoch
	}
	var res broker.ReadResult
	var lead int32
	var hw int64
	err = a.call(ctx, func(ctx context.Context) error {
		part, err := a.broker.Partition(tp.Topic, tp.Partition)
		if err != nil {
			return err
		}
		lead = part.LeaderEpoch()
		res = part.Read(ctx, o)
		// Later than the answer, which may have waited for the bucket.
		hw = part.Read(ctx, broker.ReadOptions{Offset: pos, CurrentEpoch: -1, LastFetchedEpoch: -1}).HighWatermark
		for i, d := range res.Data {
			res.Data[i] = slices.Clone(d)
		}
		if res.Release != nil {
			res.Release()
		}
		return res.Err
	})
	by := fmt.Sprintf("%s, agent %d", c.name, a.slot)
	switch {
	case errors.Is(err, broker.ErrOffsetOutOfRange) && pos >= w.ledger.known(tp).start && pos <= before.hw && lead >= before.epoch:
		w.trace.violate("I2: %s: %s offset %d of epoch %d is out of range (%d to %d), the high watermark was %d in epoch %d", by, tp, pos, lead, res.LogStart, res.HighWatermark, before.hw, before.epoch)
	case err != nil:
		return pos, epoch, err
	case res.Diverging != nil && lead >= before.epoch:
		w.trace.violate("I2: %s: %s at %d of epoch %d is told that epoch %d ends at %d", by, tp, pos, epoch, res.Diverging.Epoch, res.Diverging.EndOffset)
	}
	if err != nil || res.Diverging != nil {
		return pos, epoch, err
	}
	w.ledger.watermark(w, tp, lead, res.HighWatermark, res.LogStart, before, by)
	next, last, err = w.take(tp, res.Data, pos, by)
	if next > hw {
		w.trace.violate("I2: %s: %s gave offset %d at high watermark %d", by, tp, next-1, hw)
	}
	if last < 0 {
		last = epoch
	}
	return next, last, err
}

// take checks what was read from an offset on: contiguous, and the records that others saw.
func (w *world) take(tp ids.TopicPartition, data [][]byte, pos int64, by string) (next int64, epoch int32, err error) {
	next, epoch = pos, -1
	for _, b := range data {
		for len(b) > 0 {
			h, err := batch.Parse(b)
			if err != nil {
				w.trace.violate("%s: %s at %d: %v", by, tp, next, err)
				return next, epoch, err
			}
			if h.BaseOffset > next || h.LastOffset() < next {
				w.trace.violate("I2: %s: %s gave offsets %d to %d for %d", by, tp, h.BaseOffset, h.LastOffset(), next)
			}
			if next, err = w.ledger.records(w, tp, b[:h.Size()], by, true); err != nil {
				return next, epoch, err
			}
			epoch = h.LeaderEpoch
			b = b[h.Size():]
		}
	}
	return next, epoch, nil
}

// follower reads what is tiered at any agent.
func follower(ctx context.Context, c *client) {
	for i := 0; i < c.ops && ctx.Err() == nil; i++ {
		c.think(ctx)
		c.did("follow")
		tp := c.partition()
		known := c.w.ledger.known(tp)
		a := c.w.any(c.rng)
		if a == nil || known.end == 0 {
			continue
		}
		pos := c.rng.Int64N(known.end)
		if err := c.w.readFollower(ctx, a, tp, pos, nil); err != nil {
			c.last = err
		}
	}
}

// readFollower reads at an agent that need not lead; got, if not nil, gets the offset behind what was read.
func (w *world) readFollower(ctx context.Context, a *agent, tp ids.TopicPartition, pos int64, got *int64) error {
	var res broker.ReadResult
	err := a.call(ctx, func(ctx context.Context) error {
		f, err := a.broker.Follower(tp.Topic, tp.Partition)
		if err != nil {
			return err
		}
		res = f.Read(ctx, broker.ReadOptions{Offset: pos, MaxBytes: 1 << 14, MinOneBatch: true, CurrentEpoch: -1, LastFetchedEpoch: -1})
		for i, d := range res.Data {
			res.Data[i] = slices.Clone(d)
		}
		if res.Release != nil {
			res.Release()
		}
		return res.Err
	})
	if err != nil {
		return err
	}
	next, _, err := w.take(tp, res.Data, pos, fmt.Sprintf("follower %d", a.slot))
	if got != nil {
		*got = next
	}
	return err
}
