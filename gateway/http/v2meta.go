package httpgate

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

type v2Topic struct {
	Name       string             `json:"name"`
	Configs    map[string]*string `json:"configs"`
	Partitions []v2Partition      `json:"partitions"`
}

type v2Partition struct {
	Partition int32       `json:"partition"`
	Leader    int32       `json:"leader"` // -1: none
	Replicas  []v2Replica `json:"replicas"`
}

type v2Replica struct {
	Broker int32 `json:"broker"`
	Leader bool  `json:"leader"`
	InSync bool  `json:"in_sync"`
}

type v2BrokerList struct {
	Brokers []int32 `json:"brokers"`
}

type v2Bounds struct {
	Beginning int64 `json:"beginning_offset"`
	End       int64 `json:"end_offset"` // of the next record
}

func (s *Server) v2Root(v2Call) (struct{}, error) { return struct{}{}, nil }

func (s *Server) v2Brokers(c v2Call) (v2BrokerList, error) {
	ctx, cancel := context.WithTimeout(c.r.Context(), adminTime)
	defer cancel()
	all, err := s.admin.ListBrokers(ctx)
	if err != nil {
		return v2BrokerList{}, err
	}
	ids := slices.AppendSeq([]int32{}, slices.Values(all.NodeIDs()))
	return v2BrokerList{ids}, nil
}

// v2Topics lists the topics that are not internal, by name.
func (s *Server) v2Topics(c v2Call) ([]string, error) {
	ctx, cancel := context.WithTimeout(kadm.WithAuthorizedOps(c.r.Context()), adminTime)
	defer cancel()
	all, err := s.admin.ListTopics(ctx)
	if err != nil {
		return nil, err
	}
	return slices.AppendSeq([]string{}, slices.Values(all.Names())), nil
}

func (s *Server) v2Topic(c v2Call) (v2Topic, error) {
	ctx, cancel := context.WithTimeout(c.r.Context(), adminTime)
	defer cancel()
	t, err := s.topics.fresh(ctx, c.r.PathValue("topic"))
	if err != nil {
		return v2Topic{}, err
	}
	all, err := s.admin.DescribeTopicConfigs(ctx, t.Topic)
	if err != nil {
		return v2Topic{}, err
	}
	one, err := all.On(t.Topic, nil)
	if err == nil {
		err = one.Err
	}
	if err != nil {
		return v2Topic{}, err
	}
	answer := v2Topic{Name: t.Topic, Configs: map[string]*string{}, Partitions: partitionsOf(t)}
	for _, k := range one.Configs {
		answer.Configs[k.Key] = k.Value
	}
	return answer, nil
}

func (s *Server) v2Partitions(c v2Call) ([]v2Partition, error) {
	ctx, cancel := context.WithTimeout(c.r.Context(), adminTime)
	defer cancel()
	t, err := s.topics.fresh(ctx, c.r.PathValue("topic"))
	if err != nil {
		return nil, err
	}
	return partitionsOf(t), nil
}

func (s *Server) v2Partition(c v2Call) (v2Partition, error) {
	ctx, cancel := context.WithTimeout(c.r.Context(), adminTime)
	defer cancel()
	t, err := s.topics.fresh(ctx, c.r.PathValue("topic"))
	if err != nil {
		return v2Partition{}, err
	}
	p, err := pathPartition(t, c.r.PathValue("partition"))
	if err != nil {
		return v2Partition{}, err
	}
	return partitionAnswer(t.Partitions[p]), nil
}

func (s *Server) v2Offsets(c v2Call) (v2Bounds, error) {
	ctx, cancel := context.WithTimeout(c.r.Context(), adminTime)
	defer cancel()
	t, err := s.topics.fresh(ctx, c.r.PathValue("topic"))
	if err != nil {
		return v2Bounds{}, err
	}
	p, err := pathPartition(t, c.r.PathValue("partition"))
	if err != nil {
		return v2Bounds{}, err
	}
	sp, first, err := s.bounds(ctx, t.Topic, c.r.PathValue("partition"))
	if err != nil {
		return v2Bounds{}, err
	}
	return v2Bounds{first[p], sp.end[p]}, nil
}

func partitionsOf(t kadm.TopicDetail) []v2Partition {
	all := make([]v2Partition, 0, len(t.Partitions))
	for _, p := range slices.Sorted(maps.Keys(t.Partitions)) {
		all = append(all, partitionAnswer(t.Partitions[p]))
	}
	return all
}

func partitionAnswer(p kadm.PartitionDetail) v2Partition {
	a := v2Partition{Partition: p.Partition, Leader: p.Leader, Replicas: []v2Replica{}}
	for _, b := range p.Replicas {
		a.Replicas = append(a.Replicas, v2Replica{b, b == p.Leader, slices.Contains(p.ISR, b)})
	}
	return a
}

// fresh is get without what is known already.
func (c *topicCache) fresh(ctx context.Context, name string) (kadm.TopicDetail, error) {
	if !validTopic(name) {
		return kadm.TopicDetail{}, kerr.InvalidTopicException
	}
	all, err := c.admin.ListTopicsWithInternal(kadm.WithAuthorizedOps(ctx), name) // without them the client has a cache
	if err != nil {
		return kadm.TopicDetail{}, err
	}
	t, ok := all[name]
	if !ok {
		return t, kerr.UnknownTopicOrPartition
	}
	return t, t.Err
}

// readiness keeps for a moment whether the brokers answer. One question is on
// its way at a time, for all clients.
type readiness struct {
	mu     sync.Mutex
	asking chan struct{} // closed with the answer; nil: no question
	err    error
	until  time.Time
	over   bool // no more questions
	wg     sync.WaitGroup
}

const (
	readyTime = time.Second     // an answer counts
	readyWait = 2 * time.Second // for an answer
)

// isReady tells whether a broker answers in time. While the gateway stops it is
// not ready.
func (s *Server) isReady(w http.ResponseWriter, r *http.Request) error {
	if err := s.askReady(r.Context()); err != nil {
		return fail(codeNoBroker, "No broker answers: %v", err)
	}
	return writeJSON(w, mediaJSON, map[string]string{"status": "ready"})
}

func (s *Server) askReady(ctx context.Context) error {
	q := &s.ready
	q.mu.Lock()
	if q.over || s.ctx.Err() != nil {
		q.mu.Unlock()
		return context.Canceled
	}
	if q.asking == nil && time.Now().After(q.until) {
		q.asking = make(chan struct{})
		q.wg.Go(s.ask)
	}
	asking, err := q.asking, q.err
	q.mu.Unlock()
	if asking == nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, readyWait)
	defer cancel()
	select {
	case <-asking:
		q.mu.Lock()
		defer q.mu.Unlock()
		return q.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ask asks any broker. The client waits for a connection that is being made
// without looking at its context, so nobody waits for ask but stop.
func (s *Server) ask() {
	_, err := s.admin.BrokerMetadata(kadm.WithAuthorizedOps(s.ctx)) // without them the client has a cache
	s.ready.mu.Lock()
	defer s.ready.mu.Unlock()
	s.ready.err, s.ready.until = err, time.Now().Add(readyTime)
	close(s.ready.asking)
	s.ready.asking = nil
}

// stop waits for the last question, when the client is closed and the
// server's context has ended.
func (q *readiness) stop() {
	q.mu.Lock()
	q.over = true
	q.mu.Unlock()
	q.wg.Wait()
}

// healthy tells that the gateway runs; that does not depend on the brokers.
func (s *Server) healthy(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, mediaJSON, map[string]string{"status": "healthy"})
}
