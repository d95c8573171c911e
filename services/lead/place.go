// Package lead decides and records who leads which partition. Leadership is a
// chain in the bucket (docs/protocol.md): a topic object, an acceptance, a
// release or a seal gives a partition on; the key-value store is what everyone
// reads. The decisions are pure functions of what was seen, so that a replay of
// the same sights gives the same ones.
package lead

import (
	"cmp"
	"encoding/binary"
	"hash/fnv"
	"slices"

	"github.com/cirrolog/cirrolog/storage/ids"
)

// Candidate is a live agent that can lead partitions.
type Candidate struct {
	Incarnation ids.Incarnation
	Node        int32
	Load        int // partitions that it leads
}

// slack is how much more than its share an agent may lead, as a divisor: a quarter.
const slack = 4

// Place chooses a leader for each of the partitions: the candidate with the
// greatest rendezvous weight that is not at its bound, a quarter above the
// average (rendezvous hashing with bounded loads). The result depends on nothing but the
// arguments; it is in the order of tps. Without candidates it is nil.
func Place(tps []ids.TopicPartition, candidates []Candidate) []ids.Incarnation {
	if len(candidates) == 0 {
		return nil
	}
	total := len(tps)
	load := make([]int, len(candidates))
	for i, c := range candidates {
		load[i] = c.Load
		total += c.Load
	}
	share := (total + len(candidates) - 1) / len(candidates)
	bound := share + (share+slack-1)/slack
	out := make([]ids.Incarnation, len(tps))
	order := make([]ranked, len(candidates))
	for i, tp := range tps {
		for k, c := range candidates {
			order[k] = ranked{k, weight(tp, c.Node)}
		}
		slices.SortFunc(order, func(a, b ranked) int {
			return cmp.Or(cmp.Compare(b.weight, a.weight), cmp.Compare(candidates[a.at].Node, candidates[b.at].Node))
		})
		at := order[0].at
		for _, o := range order {
			if load[o.at] < bound {
				at = o.at
				break
			}
		}
		load[at]++
		out[i] = candidates[at].Incarnation
	}
	return out
}

type ranked struct {
	at     int
	weight uint64
}

// Weight is the rendezvous weight of a node for a partition.
func Weight(tp ids.TopicPartition, node int32) uint64 { return weight(tp, node) }

// weight is the rendezvous weight of a node for a partition. It is part of the
// protocol between agents of different versions only as far as fewer partitions move.
func weight(tp ids.TopicPartition, node int32) uint64 {
	var b [24]byte
	copy(b[:], tp.Topic[:])
	binary.LittleEndian.PutUint32(b[16:], uint32(tp.Partition))
	binary.LittleEndian.PutUint32(b[20:], uint32(node))
	h := fnv.New64a()
	h.Write(b[:])
	x := h.Sum64() // FNV mixes its last bytes badly
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
