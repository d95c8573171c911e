package sim

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/services/group"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// committer commits growing offsets for a group of its own, and reads them.
func committer(ctx context.Context, c *client) {
	g := &groupClient{client: c, id: c.name}
	for i := 0; i < c.ops && ctx.Err() == nil; i++ {
		c.think(ctx)
		c.did("group")
		for ctx.Err() == nil {
			err := g.once(ctx, i%2 == 0)
			if err == nil {
				break
			}
			c.backoff(ctx, err)
		}
	}
}

// groupClient is one committer of one partition.
type groupClient struct {
	*client
	id    string
	acked []committed // offsets that were committed
	tried int64       // the greatest that may have been
}

// committed is an acknowledged one.
type committed struct {
	at     time.Time
	offset int64
}

// least is what a coordinator must know: what was acknowledged a lease ago. One that others have
// just taken over from may answer that long (protocol.md, the chain, 6).
func (g *groupClient) least(asked time.Time) int64 {
	for i := len(g.acked) - 1; i >= 0; i-- {
		if asked.Sub(g.acked[i].at) > ttl {
			return g.acked[i].offset
		}
	}
	return -1
}

// coordinator finds the agent that coordinates the group.
func (g *groupClient) coordinator(ctx context.Context) (*agent, error) {
	a := g.w.any(g.rng)
	if a == nil {
		return nil, errNobody
	}
	var node int32
	err := a.call(ctx, func(ctx context.Context) (err error) {
		node, err = a.broker.Groups().Find(ctx, g.id)
		return err
	})
	if err != nil {
		return nil, err
	}
	if a = g.w.node(g.rng, node); a == nil {
		return nil, errNobody
	}
	return a, nil
}

// limited runs what may wait longer than ctx.
func limited(ctx context.Context, w *world, f func() error) error {
	done := make(chan error, 1)
	w.late.Go(func() { done <- f() })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (g *groupClient) once(ctx context.Context, commit bool) error {
	a, err := g.coordinator(ctx)
	if err != nil {
		return err
	}
	tid := group.TopicID(g.w.topic.ID)
	if commit {
		g.tried++
		offset := g.tried
		err = a.call(ctx, func(ctx context.Context) error {
			return limited(ctx, g.w, func() error {
				r, err := a.broker.Groups().Commit(ctx, group.CommitRequest{GroupID: g.id, Generation: -1, Topics: []group.CommitTopic{
					{Name: "t", ID: tid, Partitions: []group.CommitPartition{{Partition: 0, Offset: offset, LeaderEpoch: -1}}}}})
				if err == nil {
					err = r.Topics[0].Partitions[0].Err
				}
				return err
			})
		})
		if err == nil {
			g.acked = append(g.acked, committed{time.Now(), offset})
			g.w.trace.add("%s: agent %d: committed %d", g.name, a.slot, offset)
		}
		return err
	}
	least := g.least(time.Now())
	var got []group.FetchTopic
	err = a.call(ctx, func(ctx context.Context) (err error) {
		got, err = a.broker.Groups().FetchOffsets(ctx, group.FetchRequest{GroupID: g.id, Topics: []group.TopicPartitions{{Name: "t", ID: tid, Partitions: []int32{0}}}})
		return err
	})
	if err != nil {
		return err
	}
	at := got[0].Partitions[0].Offset
	if at < least || at > g.tried {
		g.w.trace.violate("I1: %s: agent %d has committed offset %d, acknowledged is %d, tried was %d", g.name, a.slot, at, least, g.tried)
	}
	return nil
}

// offsets asks leaders for offsets and ends of epochs.
func offsets(ctx context.Context, c *client) {
	for i := 0; i < c.ops && ctx.Err() == nil; i++ {
		c.think(ctx)
		c.did("offsets")
		tp := c.partition()
		for ctx.Err() == nil {
			err := c.w.listOffsets(ctx, c, tp)
			if err == nil {
				break
			}
			c.backoff(ctx, err)
		}
	}
}

func (w *world) listOffsets(ctx context.Context, c *client, tp ids.TopicPartition) error {
	before := w.ledger.known(tp)
	a := w.leader(c.rng, tp.Topic, tp.Partition)
	if a == nil {
		return errNobody
	}
	var latest, earliest broker.OffsetAt
	var end broker.EpochEnd
	var lead int32
	err := a.call(ctx, func(ctx context.Context) error {
		p, err := a.broker.Partition(tp.Topic, tp.Partition)
		if err != nil {
			return err
		}
		lead = p.LeaderEpoch()
		// As gateways do: a leader that may have been replaced answers nothing.
		if r := p.Read(ctx, broker.ReadOptions{CurrentEpoch: -1, LastFetchedEpoch: -1}); errors.Is(r.Err, broker.ErrNotLeader) {
			return r.Err
		}
		if earliest, err = p.Offset(ctx, broker.TimestampEarliest); err != nil {
			return err
		}
		if latest, err = p.Offset(ctx, broker.TimestampLatest); err != nil {
			return err
		}
		end, err = p.EpochEnd(ctx, lead)
		return err
	})
	if err != nil {
		return err
	}
	w.ledger.watermark(w, tp, lead, latest.Offset, earliest.Offset, before, fmt.Sprintf("%s, agent %d", c.name, a.slot))
	if end.Epoch >= 0 && end.EndOffset < latest.Offset {
		w.trace.violate("I2: %s: agent %d: %s epoch %d ends at %d, the high watermark is %d", c.name, a.slot, tp, lead, end.EndOffset, latest.Offset)
	}
	return nil
}

// topics makes topics, writes a little and deletes them.
func topics(ctx context.Context, c *client) {
	for i := 0; i < c.ops && ctx.Err() == nil; i++ {
		c.think(ctx)
		c.did("topics")
		name := fmt.Sprintf("x%d", i/2)
		for ctx.Err() == nil {
			a := c.w.any(c.rng)
			if a == nil {
				c.backoff(ctx, errNobody)
				continue
			}
			err := a.call(ctx, func(ctx context.Context) error {
				if i%2 == 0 {
					_, err := a.broker.CreateTopic(ctx, metadata.CreateTopic{Name: name, Partitions: 2, ReplicationFactor: -1})
					if errors.Is(err, metadata.ErrTopicExists) {
						err = nil
					}
					return err
				}
				t := a.broker.Topic(name)
				if t == nil {
					return broker.ErrUnknownTopic
				}
				c.w.ledger.deleteTopic(t.ID)
				return a.broker.DeleteTopic(ctx, t.ID)
			})
			if err == nil || i%2 == 1 && errors.Is(err, broker.ErrUnknownTopic) && c.rng.IntN(20) == 0 {
				break
			}
			c.backoff(ctx, err)
		}
	}
}

// deleter deletes records of the last partition.
func deleter(ctx context.Context, c *client) {
	tp := ids.TopicPartition{Topic: c.w.topic.ID, Partition: c.w.cfg.partitions - 1}
	for i := 0; i < c.ops && ctx.Err() == nil; i++ {
		c.think(ctx)
		c.did("delete-records")
		k := c.w.ledger.known(tp)
		before := k.start + c.rng.Int64N(max(k.hw-k.start, 1)/2+1)
		if before <= k.start {
			continue
		}
		c.w.ledger.askDelete(tp, before, false, 0)
		for range 20 {
			a := c.w.leader(c.rng, tp.Topic, tp.Partition)
			err, epoch := errNobody, int32(0)
			if a != nil {
				err = a.call(ctx, func(ctx context.Context) error {
					p, err := a.broker.Partition(tp.Topic, tp.Partition)
					if err == nil {
						epoch = p.LeaderEpoch()
						_, err = p.DeleteRecords(ctx, before)
					}
					return err
				})
			}
			if err == nil {
				c.w.ledger.askDelete(tp, before, true, epoch)
				c.w.trace.add("%s: agent %d: %s deleted before %d", c.name, a.slot, tp, before)
				break
			}
			c.backoff(ctx, err)
		}
	}
}

// pids asks for producer ids.
func pids(ctx context.Context, c *client) {
	for i := 0; i < c.ops && ctx.Err() == nil; i++ {
		c.think(ctx)
		c.did("producer-ids")
		a := c.w.any(c.rng)
		if a == nil {
			continue
		}
		var id int64
		err := a.call(ctx, func(ctx context.Context) (err error) {
			id, _, err = a.broker.InitProducerID(ctx)
			return err
		})
		if err == nil {
			c.w.ledger.pid(c.w, id, a.slot)
		}
	}
}

// final checks, when all is calm again, that everything that was promised is there.
func (w *world) final(ctx context.Context) {
	w.trace.add("final: all is calm")
	limit := live + settle
	if len(w.trace.failed()) > 0 { // it is lost already: see what else is
		limit = 5 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	c := &client{w: w, name: "final", rng: newRand(w.seed, 3)}
	for p := range w.cfg.partitions {
		tp := ids.TopicPartition{Topic: w.topic.ID, Partition: p}
		end := w.finalRead(ctx, c, tp)
		if ctx.Err() != nil {
			w.trace.violate("liveness: %s can't be read at %d: %v", tp, end, c.last)
			return
		}
		w.finalPage(tp, end)
		w.finalFollowers(ctx, tp)
	}
}

// settle is after what time the sweeper indexes again what the key-value store forgot.
const settle = 15 * time.Minute

// finalRead reads a partition from its log start to its end.
func (w *world) finalRead(ctx context.Context, c *client, tp ids.TopicPartition) (pos int64) {
	k := w.ledger.known(tp)
	pos = k.start
	epoch := int32(-1)
	for ctx.Err() == nil {
		next, e, err := w.read(ctx, c, tp, pos, epoch)
		switch {
		case err != nil:
			c.backoff(ctx, err)
		case next > pos:
			pos, epoch = next, e
		case pos >= k.end && pos == w.ledger.known(tp).hw:
			return pos
		default:
			c.backoff(ctx, fmt.Errorf("the partition has %d, the answer is empty", k.end))
		}
	}
	return pos
}

// finalPage checks that all that was acknowledged was read.
func (w *world) finalPage(tp ids.TopicPartition, end int64) {
	w.ledger.mu.Lock()
	defer w.ledger.mu.Unlock()
	p := w.ledger.parts[tp]
	for offset, id := range p.acked {
		if offset >= end || p.at[offset] != id {
			w.trace.violate("I1: %s: acknowledged record %x at %d is not there, the end is %d", p.name, id, offset, end)
		}
	}
}

// finalFollowers reads what is tiered at every agent.
func (w *world) finalFollowers(ctx context.Context, tp ids.TopicPartition) {
	for _, s := range w.slots {
		a := s.agent.Load()
		if a == nil {
			continue
		}
		for pos := w.ledger.known(tp).start; ; {
			next := pos
			if err := w.readFollower(ctx, a, tp, pos, &next); err != nil || next == pos {
				break
			}
			pos = next
		}
	}
}
