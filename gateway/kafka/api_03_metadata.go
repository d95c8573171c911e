package kafka

import (
	"context"
	"errors"
	"math"
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// Metadata 0-13. Topics are created on request when the agent allows it and the
// client does too (version 4 on). Each is told once. Replicas are the leader and those that serve what is
// tiered, see broker.Replicas. Authorized operations are never computed: there are no ACLs yet.
func (s *Server) apiMetadata() api {
	return api{key: 3, min: 0, max: 13, name: "Metadata", handle: s.metadata}
}

func (s *Server) metadata(ctx context.Context, _ *conn, req kmsg.Request) (kmsg.Response, error) {
	r := req.(*kmsg.MetadataRequest)
	resp := r.ResponseKind().(*kmsg.MetadataResponse)
	cluster := s.b.ClusterID()
	resp.ClusterID = &cluster
	resp.ControllerID = s.b.NodeID()
	resp.AuthorizedOperations = math.MinInt32
	nodes := s.b.Nodes()
	for _, n := range nodes {
		b := kmsg.NewMetadataResponseBroker()
		b.NodeID, b.Host, b.Port = n.ID, n.Host, n.Port
		if n.Rack != "" {
			b.Rack = &n.Rack
		}
		resp.Brokers = append(resp.Brokers, b)
	}
	if r.Topics == nil || r.Version == 0 && len(r.Topics) == 0 {
		for _, t := range s.b.Topics() {
			resp.Topics = append(resp.Topics, s.metadataTopic(t, nodes))
		}
		return resp, nil
	}
	seen := make(map[string]bool, len(r.Topics))
	for i := range r.Topics {
		t := &r.Topics[i]
		key := string(t.TopicID[:])
		if t.Topic != nil {
			key += *t.Topic
		}
		if !seen[key] { // a topic with many partitions, asked for many times
			seen[key] = true
			resp.Topics = append(resp.Topics, s.metadataFor(ctx, r, t, nodes))
		}
	}
	return resp, nil
}

// metadataFor answers one asked topic, by id or by name.
func (s *Server) metadataFor(ctx context.Context, r *kmsg.MetadataRequest, t *kmsg.MetadataRequestTopic, nodes []broker.Node) kmsg.MetadataResponseTopic {
	id := ids.TopicID(t.TopicID)
	if r.Version < 12 && (t.Topic == nil || !id.IsZero()) {
		return metadataError(t.Topic, id, kerr.InvalidRequest.Code) // has the fields, but not the meaning
	}
	if !id.IsZero() {
		if found := s.b.TopicByID(id); found != nil {
			return s.metadataTopic(found, nodes)
		}
		return metadataError(nil, id, kerr.UnknownTopicID.Code)
	}
	if t.Topic == nil {
		return metadataError(nil, id, kerr.InvalidTopicException.Code)
	}
	if found := s.b.Topic(*t.Topic); found != nil {
		return s.metadataTopic(found, nodes)
	}
	if err := metadata.ValidateTopicName(*t.Topic); err != nil {
		return metadataError(t.Topic, id, kerr.InvalidTopicException.Code)
	}
	if !s.b.AutoCreate() || r.Version >= 4 && !r.AllowAutoTopicCreation {
		return metadataError(t.Topic, id, kerr.UnknownTopicOrPartition.Code)
	}
	var created *broker.Topic
	var err error
	switch {
	case *t.Topic == broker.OffsetsTopic:
		created, err = s.b.Groups().Ensure(ctx)
	case broker.IsInternal(*t.Topic):
		err = broker.ErrUnknownTopic
	default:
		created, err = s.b.CreateTopic(ctx, metadata.CreateTopic{Name: *t.Topic, Partitions: -1, ReplicationFactor: -1})
	}
	if errors.Is(err, metadata.ErrTopicExists) {
		created, err = s.b.Topic(*t.Topic), nil
	}
	if err != nil || created == nil {
		return metadataError(t.Topic, id, errorCode(err))
	}
	return s.metadataTopic(created, nodes)
}

func metadataError(name *string, id ids.TopicID, code int16) kmsg.MetadataResponseTopic {
	mt := kmsg.NewMetadataResponseTopic()
	mt.Topic, mt.TopicID, mt.ErrorCode = name, id, code
	mt.AuthorizedOperations = math.MinInt32
	return mt
}

func (s *Server) metadataTopic(t *broker.Topic, nodes []broker.Node) kmsg.MetadataResponseTopic {
	mt := kmsg.NewMetadataResponseTopic()
	mt.Topic, mt.TopicID, mt.IsInternal = &t.Name, t.ID, t.Internal
	mt.AuthorizedOperations = math.MinInt32
	mt.Partitions = make([]kmsg.MetadataResponseTopicPartition, t.Partitions)
	replicas := replicaLists{topic: t, nodes: nodes}
	for i := range mt.Partitions {
		p := &mt.Partitions[i]
		*p = kmsg.NewMetadataResponseTopicPartition()
		p.Partition = int32(i)
		if p.Leader, p.LeaderEpoch = s.b.Leader(t, int32(i)); p.Leader < 0 {
			p.ErrorCode = kerr.LeaderNotAvailable.Code
			continue
		}
		p.Replicas = replicas.of(int32(i), p.Leader)
		p.ISR = p.Replicas
	}
	return mt
}

// replicaLists are the replicas of the partitions of a topic.
type replicaLists struct {
	topic *broker.Topic
	nodes []broker.Node
	last  []int32
}

// of returns the replicas of a partition; equal lists after another are one.
func (r *replicaLists) of(partition, leader int32) []int32 {
	if list := broker.Replicas(r.topic, partition, leader, r.nodes); !slices.Equal(list, r.last) {
		r.last = list
	}
	return r.last
}
