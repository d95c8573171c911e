package rpc

import (
	"fmt"

	pb "github.com/cirrolog/cirrolog/gateway/rpc/proto"
	"github.com/cirrolog/cirrolog/services/lead"
	"github.com/cirrolog/cirrolog/storage/ids"
)

func stateMessage(s *State) *pb.StateResponse {
	m := &pb.StateResponse{Node: s.Node, Incarnation: string(s.Incarnation), Epoch: s.Epoch, Version: s.Version, Cluster: s.Cluster, Draining: s.Draining,
		LeaseLive: s.LeaseLive, Partitions: s.Partitions, Stream: &pb.Stream{Next: s.Stream.Next, Present: s.Stream.Present, Needed: s.Stream.Needed,
			BacklogBytes: s.Stream.Backlog, UsedBytes: s.Stream.Used, CapacityBytes: s.Stream.Capacity, Error: s.Stream.Error}}
	for _, a := range s.Agents {
		m.Agents = append(m.Agents, &pb.Agent{Node: a.Node, Incarnation: string(a.Incarnation), Epoch: a.Epoch, Host: a.Host, Port: a.Port, Rack: a.Rack, Reader: a.Reader,
			Rpc: a.RPC, StartedMs: a.StartedMs, Lease: a.Lease, UnchangedMs: a.UnchangedMs, Leads: a.Leads})
	}
	for _, inc := range s.Sealed {
		m.Sealed = append(m.Sealed, string(inc))
	}
	for _, r := range s.Releases {
		m.Releases = append(m.Releases, &pb.Release{Incarnation: string(r.Incarnation), Object: r.Object})
	}
	return m
}

// stateOf is what an agent has told; nothing is read from it but by people.
func stateOf(m *pb.StateResponse) State {
	st := m.GetStream()
	s := State{Node: m.GetNode(), Incarnation: ids.Incarnation(m.GetIncarnation()), Epoch: m.GetEpoch(), Version: m.GetVersion(), Cluster: m.GetCluster(), Draining: m.GetDraining(),
		LeaseLive: m.GetLeaseLive(), Partitions: m.GetPartitions(), Stream: Stream{Next: st.GetNext(), Present: st.GetPresent(), Needed: st.GetNeeded(),
			Backlog: st.GetBacklogBytes(), Used: st.GetUsedBytes(), Capacity: st.GetCapacityBytes(), Error: st.GetError()},
		Agents: []Agent{}, Sealed: []ids.Incarnation{}, Releases: []Release{}}
	for _, a := range m.GetAgents() {
		s.Agents = append(s.Agents, Agent{Node: a.GetNode(), Incarnation: ids.Incarnation(a.GetIncarnation()), Epoch: a.GetEpoch(), Host: a.GetHost(), Port: a.GetPort(), Rack: a.GetRack(),
			Reader: a.GetReader(), RPC: a.GetRpc(), StartedMs: a.GetStartedMs(), Lease: a.GetLease(), UnchangedMs: a.GetUnchangedMs(), Leads: a.GetLeads()})
	}
	for _, inc := range m.GetSealed() {
		s.Sealed = append(s.Sealed, ids.Incarnation(inc))
	}
	for _, r := range m.GetReleases() {
		s.Releases = append(s.Releases, Release{ids.Incarnation(r.GetIncarnation()), r.GetObject()})
	}
	return s
}

func partitionMessage(p *Partition) *pb.Partition {
	return &pb.Partition{Topic: p.Topic, TopicId: p.TopicID[:], Partition: p.Partition, Epoch: p.Epoch, LogStart: p.LogStart, HighWatermark: p.HighWatermark,
		TieredEnd: p.TieredEnd, LocalBytes: p.LocalBytes, BucketBytes: p.BucketBytes}
}

func partitionOf(m *pb.Partition) (Partition, error) {
	id, err := topicID(m.GetTopicId())
	return Partition{Topic: m.GetTopic(), TopicID: id, Partition: m.GetPartition(), Epoch: m.GetEpoch(), LogStart: m.GetLogStart(), HighWatermark: m.GetHighWatermark(),
		TieredEnd: m.GetTieredEnd(), LocalBytes: m.GetLocalBytes(), BucketBytes: m.GetBucketBytes()}, err
}

func topicID(b []byte) (id ids.TopicID, err error) {
	if copy(id[:], b) != len(id) || len(b) != len(id) {
		err = fmt.Errorf("a topic id of %d bytes", len(b))
	}
	return id, err
}

// comingMessages are the requests of at most maxPartitions partitions that say what is to come.
func comingMessages(to ids.Incarnation, c lead.Coming) (out []*pb.PrepareRequest) {
	var m *pb.PrepareRequest
	for i, tp := range c.Partitions {
		if i%maxPartitions == 0 {
			m = &pb.PrepareRequest{Incarnation: string(to)}
			for _, inc := range c.Streams {
				m.Streams = append(m.Streams, string(inc))
			}
			out = append(out, m)
		}
		last := len(m.Topics) - 1
		if last < 0 || string(m.Topics[last].TopicId) != string(tp.Topic[:]) {
			m.Topics = append(m.Topics, &pb.TopicPartitions{TopicId: tp.Topic[:]})
			last++
		}
		m.Topics[last].Partitions = append(m.Topics[last].Partitions, tp.Partition)
	}
	return out
}

// comingOf checks a request as much as it can be checked without looking at the bucket.
func comingOf(m *pb.PrepareRequest) (c lead.Coming, err error) {
	if n := len(m.GetStreams()); n > maxStreams {
		return c, fmt.Errorf("%d streams, at most %d are allowed", n, maxStreams)
	}
	for _, s := range m.GetStreams() {
		inc, err := ids.ParseIncarnation(s)
		if err != nil {
			return c, err
		}
		c.Streams = append(c.Streams, inc)
	}
	for _, t := range m.GetTopics() {
		id, err := topicID(t.GetTopicId())
		if err != nil {
			return c, err
		}
		if n := len(c.Partitions) + len(t.GetPartitions()); n > maxPartitions {
			return c, fmt.Errorf("%d partitions or more, at most %d are allowed", n, maxPartitions)
		}
		for _, p := range t.GetPartitions() {
			c.Partitions = append(c.Partitions, ids.TopicPartition{Topic: id, Partition: p})
		}
	}
	return c, nil
}
