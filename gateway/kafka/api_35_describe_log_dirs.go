package kafka

import (
	"context"
	"sort"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// DescribeLogDirs 1-5: SSD and bucket as two log directories, which is where
// UIs take a topic's size from.
func (s *Server) apiDescribeLogDirs() api {
	return api{key: 35, min: 1, max: 5, name: "DescribeLogDirs", handle: s.describeLogDirs}
}

func (s *Server) describeLogDirs(ctx context.Context, _ *conn, req kmsg.Request) (kmsg.Response, error) {
	r := req.(*kmsg.DescribeLogDirsRequest)
	resp := r.ResponseKind().(*kmsg.DescribeLogDirsResponse)
	var asked map[string]map[int32]bool
	if r.Topics != nil {
		asked = map[string]map[int32]bool{}
		for _, t := range r.Topics {
			m := map[int32]bool{}
			for _, p := range t.Partitions {
				m[p] = true
			}
			asked[t.Topic] = m
		}
	}
	for _, d := range s.b.LogDirs(ctx) {
		resp.Dirs = append(resp.Dirs, s.logDir(d, asked))
	}
	return resp, nil
}

func (s *Server) logDir(d broker.LogDir, asked map[string]map[int32]bool) kmsg.DescribeLogDirsResponseDir {
	out := kmsg.NewDescribeLogDirsResponseDir()
	out.Dir, out.TotalBytes, out.UsableBytes = d.Path, d.Total, d.Usable
	byTopic := map[ids.TopicID][]kmsg.DescribeLogDirsResponseDirTopicPartition{}
	for tp, size := range d.Partitions {
		p := kmsg.NewDescribeLogDirsResponseDirTopicPartition()
		p.Partition, p.Size = tp.Partition, size
		byTopic[tp.Topic] = append(byTopic[tp.Topic], p)
	}
	for _, t := range s.b.Topics() {
		want := asked[t.Name]
		if asked != nil && want == nil {
			continue
		}
		dt := kmsg.NewDescribeLogDirsResponseDirTopic()
		dt.Topic = t.Name
		for _, p := range byTopic[t.ID] {
			if asked == nil || want[p.Partition] {
				dt.Partitions = append(dt.Partitions, p)
			}
		}
		sort.Slice(dt.Partitions, func(i, j int) bool { return dt.Partitions[i].Partition < dt.Partitions[j].Partition })
		if len(dt.Partitions) > 0 {
			out.Topics = append(out.Topics, dt)
		}
	}
	return out
}
