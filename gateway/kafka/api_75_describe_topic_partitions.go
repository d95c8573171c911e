package kafka

import (
	"context"
	"math"
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/services/broker"
)

// DescribeTopicPartitions 0 (KIP-966), by pages with a cursor.
func (s *Server) apiDescribeTopicPartitions() api {
	return api{key: 75, min: 0, max: 0, name: "DescribeTopicPartitions", handle: s.describeTopicPartitions}
}

// maxPartitionsPage is Kafka's max.request.partition.size.limit.
const maxPartitionsPage = 2000

func (s *Server) describeTopicPartitions(_ context.Context, _ *conn, req kmsg.Request) (kmsg.Response, error) {
	r := req.(*kmsg.DescribeTopicPartitionsRequest)
	resp := r.ResponseKind().(*kmsg.DescribeTopicPartitionsResponse)
	var names []string
	for _, t := range r.Topics {
		names = append(names, t.Topic)
	}
	if len(r.Topics) == 0 {
		for _, t := range s.b.Topics() {
			names = append(names, t.Name)
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	nodes := s.b.Nodes()
	left := maxPartitionsPage
	if r.ResponsePartitionLimit > 0 {
		left = min(left, int(r.ResponsePartitionLimit))
	}
	for _, name := range names {
		from := int32(0)
		if r.Cursor != nil {
			if name < r.Cursor.Topic {
				continue
			}
			if name == r.Cursor.Topic {
				from = r.Cursor.Partition
			}
		}
		if left <= 0 {
			resp.NextCursor = nextCursor(name, from)
			return resp, nil
		}
		t, next := s.describePartitions(name, nodes, from, left)
		resp.Topics = append(resp.Topics, t)
		left -= len(t.Partitions)
		if next >= 0 {
			resp.NextCursor = nextCursor(name, next)
			return resp, nil
		}
	}
	return resp, nil
}

func nextCursor(name string, partition int32) *kmsg.DescribeTopicPartitionsResponseNextCursor {
	c := kmsg.NewDescribeTopicPartitionsResponseNextCursor()
	c.Topic, c.Partition = name, partition
	return &c
}

// describePartitions describes at most limit partitions; next is where to go
// on, -1 when all are told.
func (s *Server) describePartitions(name string, nodes []broker.Node, from int32, limit int) (out kmsg.DescribeTopicPartitionsResponseTopic, next int32) {
	out = kmsg.NewDescribeTopicPartitionsResponseTopic()
	out.Topic = &name
	out.AuthorizedOperations = math.MinInt32
	t := s.b.Topic(name)
	if t == nil {
		out.ErrorCode = kerr.UnknownTopicOrPartition.Code
		if metadata.ValidateTopicName(name) != nil {
			out.ErrorCode = kerr.InvalidTopicException.Code
		}
		return out, -1
	}
	out.TopicID, out.IsInternal = t.ID, t.Internal
	replicas := replicaLists{topic: t, nodes: nodes}
	for i := max(from, 0); i < t.Partitions; i++ {
		if len(out.Partitions) == limit {
			return out, i
		}
		p := kmsg.NewDescribeTopicPartitionsResponseTopicPartition()
		p.Partition = i
		p.EligibleLeaderReplicas, p.LastKnownELR = []int32{}, []int32{} // Java's admin client fails on null
		if p.LeaderID, p.LeaderEpoch = s.b.Leader(t, i); p.LeaderID < 0 {
			p.ErrorCode = kerr.LeaderNotAvailable.Code
		} else {
			p.Replicas = replicas.of(i, p.LeaderID)
			p.ISR = p.Replicas
		}
		out.Partitions = append(out.Partitions, p)
	}
	return out, -1
}
