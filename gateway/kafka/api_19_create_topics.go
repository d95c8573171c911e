package kafka

import (
	"context"
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/metadata"
)

// CreateTopics 2-7. A topic that was created can be used when the answer is
// sent. A manual assignment must name live agents; it sets the number of
// partitions, placement is ours.
func (s *Server) apiCreateTopics() api {
	return api{key: 19, min: 2, max: 7, name: "CreateTopics", handle: s.createTopics}
}

func (s *Server) createTopics(ctx context.Context, _ *conn, req kmsg.Request) (kmsg.Response, error) {
	r := req.(*kmsg.CreateTopicsRequest)
	resp := r.ResponseKind().(*kmsg.CreateTopicsResponse)
	times := map[string]int{}
	for _, t := range r.Topics {
		times[t.Topic]++
	}
	done := map[string]bool{}
	for i := range r.Topics {
		t := &r.Topics[i]
		if done[t.Topic] {
			continue
		}
		done[t.Topic] = true
		var err error
		rt := kmsg.NewCreateTopicsResponseTopic()
		rt.Topic, rt.NumPartitions, rt.ReplicationFactor = t.Topic, -1, -1
		if times[t.Topic] > 1 {
			err = fmt.Errorf("%w: topic %q is in the request %d times", metadata.ErrInvalidRequest, t.Topic, times[t.Topic])
		} else {
			err = s.createTopic(ctx, t, r.ValidateOnly, &rt)
		}
		if err != nil {
			rt.ErrorCode, rt.ErrorMessage = errorCode(err), errorMessage(err)
		}
		resp.Topics = append(resp.Topics, rt)
	}
	return resp, nil
}

func (s *Server) createTopic(ctx context.Context, t *kmsg.CreateTopicsRequestTopic, validateOnly bool, out *kmsg.CreateTopicsResponseTopic) error {
	if err := checkInternal(t.Topic); err != nil && s.b.Topic(t.Topic) == nil { // else it exists
		return err
	}
	spec := metadata.CreateTopic{Name: t.Topic, Partitions: t.NumPartitions, ReplicationFactor: t.ReplicationFactor, ValidateOnly: validateOnly, Configs: map[string]*string{}}
	for _, c := range t.Configs {
		if _, twice := spec.Configs[c.Name]; twice {
			return fmt.Errorf("%w: config %q is given twice", metadata.ErrInvalidRequest, c.Name)
		}
		spec.Configs[c.Name] = c.Value
	}
	if len(t.ReplicaAssignment) > 0 {
		if t.NumPartitions != -1 || t.ReplicationFactor != -1 {
			return fmt.Errorf("%w: both an assignment and numbers are given", metadata.ErrInvalidRequest)
		}
		n, err := s.checkAssignment(t.ReplicaAssignment)
		if err != nil {
			return err
		}
		spec.Partitions = n
	}
	created, err := s.b.CreateTopic(ctx, spec)
	if err != nil {
		return err
	}
	out.TopicID, out.NumPartitions, out.ReplicationFactor = created.ID, created.Partitions, 1
	out.Configs = []kmsg.CreateTopicsResponseTopicConfig{} // Java's admin client fails on null
	if validateOnly {
		return nil
	}
	entries, err := s.b.TopicConfigs(t.Topic)
	if err != nil {
		return nil // deleted again meanwhile: it was created all the same
	}
	for _, e := range entries {
		c := kmsg.NewCreateTopicsResponseTopicConfig()
		c.Name, c.Value, c.ReadOnly, c.Source, c.IsSensitive = e.Name, e.Value, e.ReadOnly, int8(e.Source), e.Sensitive
		out.Configs = append(out.Configs, c)
	}
	return nil
}

func (s *Server) checkAssignment(as []kmsg.CreateTopicsRequestTopicReplicaAssignment) (int32, error) {
	live := map[int32]bool{}
	for _, n := range s.b.Nodes() {
		live[n.ID] = true
	}
	seen := map[int32]bool{}
	for _, a := range as {
		if a.Partition < 0 || int(a.Partition) >= len(as) || seen[a.Partition] || len(a.Replicas) == 0 {
			return 0, fmt.Errorf("assignment of partition %d: %w", a.Partition, kerr.InvalidReplicaAssignment)
		}
		seen[a.Partition] = true
		if len(a.Replicas) != len(as[0].Replicas) {
			return 0, fmt.Errorf("assignments of partitions %d and %d with unlike numbers of nodes: %w", as[0].Partition, a.Partition, kerr.InvalidReplicaAssignment)
		}
		for i, id := range a.Replicas {
			if !live[id] || slices.Contains(a.Replicas[:i], id) {
				return 0, fmt.Errorf("assignment of partition %d to node %d, which is unknown or there twice: %w", a.Partition, id, kerr.InvalidReplicaAssignment)
			}
		}
	}
	return int32(len(as)), nil
}
