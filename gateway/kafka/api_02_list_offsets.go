package kafka

import (
	"context"
	"sync"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/services/broker"
)

// ListOffsets 1-11: latest (-1), earliest (-2), max timestamp (-3, from v7),
// earliest local (-4, v8), latest tiered (-5, v9), earliest pending upload (-6,
// v11), and the first record at or after a time, through all tiers. Partitions
// are looked up concurrently.
func (s *Server) apiListOffsets() api {
	return api{key: 2, min: 1, max: 11, name: "ListOffsets", handle: s.listOffsets}
}

// concurrentLookups bounds how many partitions of a request are searched at once.
const concurrentLookups = 16

// minSpecial is the first version that knows each special timestamp.
func minSpecial(ts int64) int16 {
	switch ts {
	case broker.TimestampMax:
		return 7
	case broker.TimestampEarliestLocal:
		return 8
	case broker.TimestampLatestTiered:
		return 9
	case broker.TimestampEarliestPendingUpload:
		return 11
	}
	return 1
}

func (s *Server) listOffsets(ctx context.Context, _ *conn, req kmsg.Request) (kmsg.Response, error) {
	r := req.(*kmsg.ListOffsetsRequest)
	resp := r.ResponseKind().(*kmsg.ListOffsetsResponse)
	slots := make(chan struct{}, concurrentLookups)
	var wg sync.WaitGroup
	resp.Topics = make([]kmsg.ListOffsetsResponseTopic, len(r.Topics))
	for i := range r.Topics {
		t, rt := &r.Topics[i], &resp.Topics[i]
		*rt = kmsg.NewListOffsetsResponseTopic()
		rt.Topic = t.Topic
		rt.Partitions = make([]kmsg.ListOffsetsResponseTopicPartition, len(t.Partitions))
		for j := range t.Partitions {
			slots <- struct{}{}
			wg.Add(1)
			go func() {
				defer wg.Done()
				s.listOffset(ctx, r.Version, t.Topic, &t.Partitions[j], &rt.Partitions[j])
				<-slots
			}()
		}
	}
	wg.Wait()
	return resp, nil
}

func (s *Server) listOffset(ctx context.Context, version int16, topic string, p *kmsg.ListOffsetsRequestTopicPartition, out *kmsg.ListOffsetsResponseTopicPartition) {
	*out = kmsg.NewListOffsetsResponseTopicPartition()
	out.Partition, out.Offset, out.Timestamp, out.LeaderEpoch = p.Partition, -1, -1, -1
	part, err := s.partition(topic, p.Partition)
	if err == nil && version >= 4 {
		err = checkEpoch(part, p.CurrentLeaderEpoch)
	}
	if err == nil && (p.Timestamp < broker.TimestampEarliestPendingUpload || version < minSpecial(p.Timestamp)) {
		err = kerr.UnsupportedVersion
	}
	var at broker.OffsetAt
	if err == nil {
		at, err = part.Offset(ctx, p.Timestamp)
	}
	if err != nil {
		out.ErrorCode = errorCode(err)
		return
	}
	out.Offset, out.Timestamp, out.LeaderEpoch = at.Offset, at.Timestamp, at.LeaderEpoch
}

// partition finds a partition by topic name.
func (s *Server) partition(topic string, p int32) (Partition, error) {
	t := s.b.Topic(topic)
	if t == nil {
		return nil, broker.ErrUnknownTopic
	}
	return s.b.Partition(t.ID, p)
}

// checkEpoch fences clients that know another leader epoch (KIP-320).
func checkEpoch(p Partition, epoch int32) error {
	switch mine := p.LeaderEpoch(); {
	case epoch < 0 || epoch == mine:
		return nil
	case epoch < mine:
		return broker.ErrFencedEpoch
	}
	return broker.ErrUnknownEpoch
}
