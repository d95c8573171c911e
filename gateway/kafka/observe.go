package kafka

import "github.com/twmb/franz-go/pkg/kmsg"

// responseError returns the first error code in a response that is not 0.
// Produce and Fetch find theirs themselves.
func responseError(resp kmsg.Response) int16 {
	switch r := resp.(type) {
	case *kmsg.ApiVersionsResponse:
		return r.ErrorCode
	case *kmsg.FindCoordinatorResponse:
		return either(r.ErrorCode, first(r.Coordinators, func(c *kmsg.FindCoordinatorResponseCoordinator) int16 { return c.ErrorCode }))
	case *kmsg.InitProducerIDResponse:
		return r.ErrorCode
	case *kmsg.DescribeClusterResponse:
		return r.ErrorCode
	case *kmsg.MetadataResponse:
		return either(r.ErrorCode, first(r.Topics, func(t *kmsg.MetadataResponseTopic) int16 {
			return either(t.ErrorCode, first(t.Partitions, func(p *kmsg.MetadataResponseTopicPartition) int16 { return p.ErrorCode }))
		}))
	case *kmsg.ListOffsetsResponse:
		return first(r.Topics, func(t *kmsg.ListOffsetsResponseTopic) int16 {
			return first(t.Partitions, func(p *kmsg.ListOffsetsResponseTopicPartition) int16 { return p.ErrorCode })
		})
	case *kmsg.OffsetForLeaderEpochResponse:
		return first(r.Topics, func(t *kmsg.OffsetForLeaderEpochResponseTopic) int16 {
			return first(t.Partitions, func(p *kmsg.OffsetForLeaderEpochResponseTopicPartition) int16 { return p.ErrorCode })
		})
	case *kmsg.DeleteRecordsResponse:
		return first(r.Topics, func(t *kmsg.DeleteRecordsResponseTopic) int16 {
			return first(t.Partitions, func(p *kmsg.DeleteRecordsResponseTopicPartition) int16 { return p.ErrorCode })
		})
	}
	return adminError(resp)
}

// adminError is responseError for the APIs that change and describe topics.
func adminError(resp kmsg.Response) int16 {
	switch r := resp.(type) {
	case *kmsg.CreateTopicsResponse:
		return first(r.Topics, func(t *kmsg.CreateTopicsResponseTopic) int16 { return t.ErrorCode })
	case *kmsg.DeleteTopicsResponse:
		return first(r.Topics, func(t *kmsg.DeleteTopicsResponseTopic) int16 { return t.ErrorCode })
	case *kmsg.CreatePartitionsResponse:
		return first(r.Topics, func(t *kmsg.CreatePartitionsResponseTopic) int16 { return t.ErrorCode })
	case *kmsg.DescribeConfigsResponse:
		return first(r.Resources, func(x *kmsg.DescribeConfigsResponseResource) int16 { return x.ErrorCode })
	case *kmsg.AlterConfigsResponse:
		return first(r.Resources, func(x *kmsg.AlterConfigsResponseResource) int16 { return x.ErrorCode })
	case *kmsg.IncrementalAlterConfigsResponse:
		return first(r.Resources, func(x *kmsg.IncrementalAlterConfigsResponseResource) int16 { return x.ErrorCode })
	case *kmsg.DescribeLogDirsResponse:
		return either(r.ErrorCode, first(r.Dirs, func(d *kmsg.DescribeLogDirsResponseDir) int16 { return d.ErrorCode }))
	case *kmsg.DescribeTopicPartitionsResponse:
		return first(r.Topics, func(t *kmsg.DescribeTopicPartitionsResponseTopic) int16 {
			return either(t.ErrorCode, first(t.Partitions, func(p *kmsg.DescribeTopicPartitionsResponseTopicPartition) int16 { return p.ErrorCode }))
		})
	}
	return groupError(resp)
}

// groupError is responseError for the APIs of consumer groups.
func groupError(resp kmsg.Response) int16 {
	switch r := resp.(type) {
	case *kmsg.OffsetCommitResponse:
		return first(r.Topics, func(t *kmsg.OffsetCommitResponseTopic) int16 {
			return first(t.Partitions, func(p *kmsg.OffsetCommitResponseTopicPartition) int16 { return p.ErrorCode })
		})
	case *kmsg.OffsetFetchResponse:
		return either(either(r.ErrorCode, first(r.Topics, func(t *kmsg.OffsetFetchResponseTopic) int16 {
			return first(t.Partitions, func(p *kmsg.OffsetFetchResponseTopicPartition) int16 { return p.ErrorCode })
		})), first(r.Groups, func(g *kmsg.OffsetFetchResponseGroup) int16 {
			return either(g.ErrorCode, first(g.Topics, func(t *kmsg.OffsetFetchResponseGroupTopic) int16 {
				return first(t.Partitions, func(p *kmsg.OffsetFetchResponseGroupTopicPartition) int16 { return p.ErrorCode })
			}))
		}))
	case *kmsg.LeaveGroupResponse:
		return either(r.ErrorCode, first(r.Members, func(m *kmsg.LeaveGroupResponseMember) int16 { return m.ErrorCode }))
	case *kmsg.DescribeGroupsResponse:
		return first(r.Groups, func(g *kmsg.DescribeGroupsResponseGroup) int16 { return g.ErrorCode })
	case *kmsg.DeleteGroupsResponse:
		return first(r.Groups, func(g *kmsg.DeleteGroupsResponseGroup) int16 { return g.ErrorCode })
	case *kmsg.OffsetDeleteResponse:
		return either(r.ErrorCode, first(r.Topics, func(t *kmsg.OffsetDeleteResponseTopic) int16 {
			return first(t.Partitions, func(p *kmsg.OffsetDeleteResponseTopicPartition) int16 { return p.ErrorCode })
		}))
	case *kmsg.JoinGroupResponse:
		return r.ErrorCode
	case *kmsg.SyncGroupResponse:
		return r.ErrorCode
	case *kmsg.HeartbeatResponse:
		return r.ErrorCode
	case *kmsg.ListGroupsResponse:
		return r.ErrorCode
	}
	return 0
}

func either(a, b int16) int16 {
	if a != 0 {
		return a
	}
	return b
}

// first returns the first code that is not 0.
func first[T any](list []T, code func(*T) int16) int16 {
	for i := range list {
		if c := code(&list[i]); c != 0 {
			return c
		}
	}
	return 0
}
