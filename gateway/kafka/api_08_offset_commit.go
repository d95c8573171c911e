package kafka

import (
	"context"
	"math"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/services/group"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// OffsetCommit 2-10. The answer is sent when the offsets are durable. Topics
// that there are not are refused one by one. Version 10 names topics by id.
func (s *Server) apiOffsetCommit() api {
	return api{key: 8, min: 2, max: 10, name: "OffsetCommit", handle: s.offsetCommit}
}

func (s *Server) offsetCommit(ctx context.Context, _ *conn, req kmsg.Request) (kmsg.Response, error) {
	r := req.(*kmsg.OffsetCommitRequest)
	resp := r.ResponseKind().(*kmsg.OffsetCommitResponse)
	commit := group.CommitRequest{Version: r.Version, GroupID: r.Group, MemberID: r.MemberID, InstanceID: orEmpty(r.InstanceID), Generation: r.Generation}
	if ms := r.RetentionTimeMillis; r.Version <= 4 && ms > 0 {
		commit.Retention = time.Duration(min(ms, math.MaxInt64/int64(time.Millisecond))) * time.Millisecond
	}
	resp.Topics = make([]kmsg.OffsetCommitResponseTopic, len(r.Topics))
	var places []int // in resp, of the topics in commit
	for i := range r.Topics {
		t, rt := &r.Topics[i], &resp.Topics[i]
		*rt = kmsg.NewOffsetCommitResponseTopic()
		rt.Topic, rt.TopicID = t.Topic, t.TopicID
		rt.Partitions = make([]kmsg.OffsetCommitResponseTopicPartition, len(t.Partitions))
		topic, err := s.groupTopic(r.Version >= 10, t.TopicID, t.Topic)
		for j := range t.Partitions {
			rt.Partitions[j] = kmsg.NewOffsetCommitResponseTopicPartition()
			rt.Partitions[j].Partition, rt.Partitions[j].ErrorCode = t.Partitions[j].Partition, errorCode(err)
		}
		if err == nil {
			places = append(places, i)
			commit.Topics = append(commit.Topics, commitTopic(topic, t, r.Version))
		}
	}
	if len(places) == 0 {
		return resp, nil
	}
	done, err := s.b.Groups().Commit(ctx, commit)
	for n, i := range places {
		for j := range resp.Topics[i].Partitions {
			perr := err
			if perr == nil {
				perr = done.Topics[n].Partitions[j].Err
			}
			resp.Topics[i].Partitions[j].ErrorCode = errorCode(perr)
		}
	}
	return resp, nil
}

func commitTopic(topic *broker.Topic, t *kmsg.OffsetCommitRequestTopic, version int16) group.CommitTopic {
	ct := group.CommitTopic{Name: topic.Name, ID: group.TopicID(topic.ID), Partitions: make([]group.CommitPartition, len(t.Partitions))}
	for j := range t.Partitions {
		p := &t.Partitions[j]
		ct.Partitions[j] = group.CommitPartition{Partition: p.Partition, Offset: p.Offset, LeaderEpoch: -1, Metadata: orEmpty(p.Metadata)}
		if version >= 6 {
			ct.Partitions[j].LeaderEpoch = p.LeaderEpoch
		}
	}
	return ct
}

// groupTopic finds the topic of a request about offsets.
func (s *Server) groupTopic(byID bool, id [16]byte, name string) (*broker.Topic, error) {
	if byID {
		if t := s.b.TopicByID(ids.TopicID(id)); t != nil {
			return t, nil
		}
		return nil, kerr.UnknownTopicID
	}
	if t := s.b.Topic(name); t != nil {
		return t, nil
	}
	return nil, broker.ErrUnknownTopic
}

// orEmpty is a string that may be null.
func orEmpty(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// orNull is null for an empty string.
func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
