package httpgate

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// v2Produced is the answer to a produce request, a result for every record, in
// their order.
type v2Produced struct {
	Offsets       []v2Offset `json:"offsets"`
	KeySchemaID   *int32     `json:"key_schema_id"` // always null
	ValueSchemaID *int32     `json:"value_schema_id"`
}

type v2Offset struct {
	Partition *int32  `json:"partition"`
	Offset    *int64  `json:"offset"`
	Code      *int    `json:"error_code"`
	Error     *string `json:"error"`
}

// status is that of the answer: what the records failed with does not count,
// but for what concerns the whole request.
func (p *v2Produced) status() int {
	for _, o := range p.Offsets {
		if o.Code != nil && (*o.Code == codeUnauthorized || *o.Code == codeForbidden) {
			return *o.Code / 100
		}
	}
	return http.StatusOK
}

// v2Produce stores the records of a request, in their order. Nothing is stored
// of a request that can't be decoded; otherwise every record has its own result.
func (s *Server) v2Produce(c v2Call) (*v2Produced, error) {
	format, err := v2Format(mediaType(c.r))
	if err != nil {
		return nil, err
	}
	t, err := s.topicOrCreate(c.r.Context(), c.r.PathValue("topic"))
	if err != nil {
		return nil, err
	}
	partition := int32(-1)
	if p := c.r.PathValue("partition"); p != "" {
		if partition, err = pathPartition(t, p); err != nil {
			return nil, err
		}
	}
	mem := &held{from: &s.v2Memory}
	defer mem.release()
	b, err := s.openBody(c.w, c.r, s.limits.MaxBody, 0)
	if err != nil {
		return nil, err
	}
	recs, err := decodeV2(b, format, mem)
	b.close()
	if err != nil {
		return nil, err
	}
	rules := s.rules.get(c.r.Context(), t.Topic)
	// A client that goes away leaves records that are stored or not; they can't
	// be called back.
	ctx := s.delivery.within(c.r.Context())
	errs := make([]error, len(recs))
	var stored sync.WaitGroup
	for i := range recs {
		r := &recs[i].rec
		if r.Topic = t.Topic; r.Partition == -1 {
			r.Partition = partition
		}
		if _, ok := t.Partitions[r.Partition]; !ok && r.Partition != -1 {
			errs[i] = fail(codeKafka, "Partition not found.")
		} else {
			errs[i] = rules.check(t, r)
		}
		if errs[i] != nil {
			continue
		}
		stored.Add(1)
		s.client.Produce(ctx, r, func(_ *kgo.Record, err error) {
			errs[i] = err
			stored.Done()
		})
	}
	stored.Wait()
	return v2Results(recs, errs), nil
}

func v2Results(recs []v2Record, errs []error) *v2Produced {
	p := &v2Produced{Offsets: make([]v2Offset, len(recs))}
	for i := range recs {
		if err := errs[i]; err != nil {
			code, text := v2RecordCode(err), err.Error()
			p.Offsets[i].Code, p.Offsets[i].Error = &code, &text
			continue
		}
		p.Offsets[i].Partition, p.Offsets[i].Offset = &recs[i].rec.Partition, &recs[i].rec.Offset
	}
	return p
}

// v2RecordCode is the code of a record that failed: of Confluent's only these
// four exist.
func v2RecordCode(err error) int {
	switch {
	case errors.Is(err, kerr.SaslAuthenticationFailed):
		return codeUnauthorized
	case errors.Is(err, kerr.TopicAuthorizationFailed), errors.Is(err, kerr.ClusterAuthorizationFailed):
		return codeForbidden
	}
	if _, ok := errors.AsType[*kerr.Error](err); ok && !kerr.IsRetriable(err) {
		return codeKafka
	}
	if _, ok := errors.AsType[*apiError](err); ok {
		return codeKafka
	}
	return codeKafkaRetriable // a timeout or a connection
}

// v2Format finds the format of keys and values.
func v2Format(media string) (string, error) {
	switch media {
	case mediaV2Binary, mediaV2JSON, mediaV2Text:
		return media, nil
	case "application/vnd.kafka.avro.v2+json", "application/vnd.kafka.jsonschema.v2+json", "application/vnd.kafka.protobuf.v2+json":
		return "", fail(415, "%s needs a schema registry, which this gateway does not have: send %s, %s or %s.", media, mediaV2Binary, mediaV2JSON, mediaV2Text)
	}
	return "", fail(415, "Content-Type %.80q is not supported: send %s, %s or %s.", media, mediaV2Binary, mediaV2JSON, mediaV2Text)
}

// pathPartition checks the partition in the path of a request.
func pathPartition(t kadm.TopicDetail, s string) (int32, error) {
	n, err := strconv.ParseInt(s, 10, 32)
	if _, ok := t.Partitions[int32(n)]; err != nil || !ok {
		return 0, fail(codeNoPartition, "Partition not found.")
	}
	return int32(n), nil
}

// topicOrCreate returns a topic. One that does not exist is created if the
// brokers create topics for producers.
func (s *Server) topicOrCreate(ctx context.Context, name string) (kadm.TopicDetail, error) {
	t, err := s.topics.get(ctx, name)
	if !errors.Is(err, kerr.UnknownTopicOrPartition) {
		return t, err
	}
	req, topic := kmsg.NewPtrMetadataRequest(), kmsg.NewMetadataRequestTopic()
	topic.Topic, req.AllowAutoTopicCreation = kmsg.StringPtr(name), true
	req.Topics = append(req.Topics, topic)
	ctx, cancel := context.WithTimeout(ctx, adminTime)
	defer cancel()
	if _, err := req.RequestWith(ctx, s.client); err != nil {
		return t, err
	}
	for { // Kafka answers while it still creates the topic
		if t, err = s.topics.fresh(ctx, name); err == nil {
			return t, nil
		}
		if !errors.Is(err, kerr.LeaderNotAvailable) {
			return t, err
		}
		select {
		case <-ctx.Done():
			return t, err
		case <-time.After(100 * time.Millisecond):
		}
	}
}
