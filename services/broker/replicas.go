package broker

import (
	"slices"

	"github.com/cirrolog/cirrolog/services/lead"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// Replicas names the agents that clients are told serve a partition: its leader
// first, then one more of each rack, which serves what is tiered. Agents without
// a rack count as one rack. Within a rack one that leads nothing comes before
// those that lead; of equals the partition chooses by weight, so that the
// partitions spread. A topic that is not tiered has its leader alone.
func Replicas(t *Topic, partition, leader int32, nodes []Node) []int32 {
	out := []int32{leader}
	if !t.Config.RemoteStorage || len(nodes) < 2 {
		return out
	}
	tp := ids.TopicPartition{Topic: t.ID, Partition: partition}
	var best []chosen // one of each rack
	for i := range nodes {
		n := &nodes[i]
		if n.ID == leader {
			continue
		}
		c := chosen{n, lead.Weight(tp, n.ID)}
		k := slices.IndexFunc(best, func(b chosen) bool { return b.Rack == n.Rack })
		switch {
		case k < 0:
			best = append(best, c)
		case c.before(best[k]):
			best[k] = c
		}
	}
	for _, b := range best {
		out = append(out, b.ID)
	}
	return out
}

type chosen struct {
	*Node
	weight uint64
}

func (c chosen) before(b chosen) bool {
	if c.Reader != b.Reader {
		return c.Reader
	}
	return c.weight > b.weight || c.weight == b.weight && c.ID < b.ID
}
