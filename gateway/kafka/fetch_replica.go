package kafka

import (
	"errors"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// Preferred read replicas (KIP-392). The leader sends a consumer that names its
// rack and wants what only the bucket has to a replica of that rack; there it
// reads up to the end of what is tiered and is sent back.

// find finds the partition of a result: as its leader, or to serve what is tiered.
func (f *fetching) find(r *fetchResult) error {
	p, err := f.c.s.b.Partition(r.topic.ID, r.part.partition)
	if err == nil {
		r.p = p
		return nil
	}
	if !errors.Is(err, broker.ErrNotLeader) {
		return err
	}
	if r.p, err = f.c.s.b.Follower(r.topic.ID, r.part.partition); err == nil {
		r.follower = true
	}
	return err
}

// firstPreferred is the first version whose answer has a preferred replica.
const firstPreferred = 11

// sendAway names a replica in the client's rack for a read that would go to the
// bucket, and reports whether there is one.
func (f *fetching) sendAway(r *fetchResult) bool {
	if r.follower || !r.res.Indexed || r.part.lastEpoch >= 0 || f.req.Version < firstPreferred || f.req.Rack == "" {
		return false
	}
	if f.nodes == nil {
		f.nodes = f.c.s.b.Nodes()
	}
	self := f.c.s.b.NodeID()
	for _, id := range broker.Replicas(r.topic, r.part.partition, self, f.nodes) {
		for i := range f.nodes {
			n := &f.nodes[i]
			if n.ID != id || n.ID == self || n.Rack != f.req.Rack {
				continue
			}
			if !f.c.away.send(ids.TopicPartition{Topic: r.topic.ID, Partition: r.part.partition}, time.Now()) {
				return false
			}
			r.preferred, f.failed = id, true
			return true
		}
	}
	return false
}

// sendBack names the leader to a consumer that has read all that this agent has.
// The error makes clients of Java forget the replica; franz-go and librdkafka
// heed the leader that comes with it, and nothing else brings franz-go back.
func (f *fetching) sendBack(r *fetchResult) {
	if !r.follower || r.code != kerr.NotLeaderForPartition.Code || f.req.Version < firstPreferred || f.req.Rack == "" {
		return
	}
	if leader, _ := f.c.s.b.Leader(r.topic, r.part.partition); leader > 0 && leader != f.c.s.b.NodeID() {
		r.preferred = leader
	}
}

// awayList are the partitions for which a connection's client was sent to a
// replica lately. One that comes back soon is not sent again: it does not know
// the replica, or that could not serve it, or it reads about as slowly as records
// leave the leader's disk. librdkafka wants the same minute between two moves.
type awayList map[ids.TopicPartition]time.Time

const (
	awayPause = time.Minute
	awayMax   = 10_000 // partitions
)

// send notes that the client is sent away, and reports whether it may be.
func (l *awayList) send(tp ids.TopicPartition, now time.Time) bool {
	if at, ok := (*l)[tp]; ok && now.Sub(at) < awayPause {
		return false
	}
	if *l == nil {
		*l = awayList{}
	}
	if len(*l) >= awayMax {
		for tp, at := range *l {
			if now.Sub(at) >= awayPause {
				delete(*l, tp)
			}
		}
		if len(*l) >= awayMax {
			return false
		}
	}
	(*l)[tp] = now
	return true
}
