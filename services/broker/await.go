package broker

import (
	"context"
	"errors"
	"time"

	"github.com/cirrolog/cirrolog/storage/ids"
)

// arriveWait bounds how long a request waits for a partition that this agent was given.
const arriveWait = 500 * time.Millisecond

// Await is Partition. A partition that this agent was given and does not serve yet is waited for, at most half a
// second: whoever asks has learnt early who leads, and refused it would come back later than
// needed. Safe for concurrent use.
func (b *Broker) Await(ctx context.Context, id ids.TopicID, p int32) (*Partition, error) {
	part, err := b.Partition(id, p)
	if !errors.Is(err, ErrNotLeader) || !b.arriving(id, p) {
		return part, err
	}
	end := time.NewTimer(arriveWait)
	defer end.Stop()
	for {
		changed := *b.shown.Load()
		if part, err = b.Partition(id, p); !errors.Is(err, ErrNotLeader) {
			return part, err
		}
		select {
		case <-changed:
		case <-end.C:
			return nil, ErrNotLeader
		case <-ctx.Done():
			return nil, ErrNotLeader
		}
	}
}

// arriving tells whether this agent is the one that a partition was given to.
func (b *Broker) arriving(id ids.TopicID, p int32) bool {
	if b.opts.Leaders == nil {
		return false
	}
	node, _ := b.opts.Leaders.Leader(id, p)
	return node == b.opts.Self.ID
}

// noteShown wakes those who wait for partitions. b.mu is held.
func (b *Broker) noteShown() {
	next := make(chan struct{})
	if old := b.shown.Swap(&next); old != nil {
		close(*old)
	}
}
