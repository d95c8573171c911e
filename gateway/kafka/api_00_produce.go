package kafka

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// Produce 3-13; 0-2 are advertised, because librdkafka's feature detection
// needs them (KAFKA-18659), and answered with UNSUPPORTED_VERSION. One v2 batch
// per partition. acks=1 waits for the same as acks=all; acks=0 gets no answer,
// and an error closes the connection, as in Kafka. Version 13 names topics by id.
// Transactional requests are refused. The hints of KIP-951 are left out.
func (s *Server) apiProduce() api {
	return api{key: 0, min: 0, max: maxProduceVersion, name: "Produce"}
}

const (
	minProduceVersion = 3
	maxProduceVersion = 13
	// maxProduceWait bounds how long a request may wait for room.
	maxProduceWait = 30 * time.Second
	// maxProduceParts bounds the topics and partitions of a request, which may
	// take more memory decoded than as bytes.
	maxProduceParts = 100_000
	// pipelinedParts is how many partitions a request may have for the next
	// one to be read before its answer has left.
	pipelinedParts = 1024
)

// produceCall is a Produce request under way, recycled with all its parts.
type produceCall struct {
	reply reply
	req   kmsg.ProduceRequest
	resp  kmsg.ProduceResponse
	slots []*produceSlot
	used  int
}

// produceSlot is the place of one partition's outcome.
type produceSlot struct {
	call *produceCall
	out  *kmsg.ProduceResponseTopicPartition
	done func(broker.Produced) // the method, bound once
}

func (s *Server) produceCall(h header, a *api) *produceCall {
	p, ok := s.calls.Get().(*produceCall)
	if !ok {
		p = &produceCall{reply: reply{ready: make(chan struct{}, 1)}}
		p.reply.resp, p.reply.produce = &p.resp, p
	}
	r := &p.reply
	r.api, r.version, r.corr, r.began, r.waited, r.silent = a, h.version, h.corr, time.Now(), false, false
	p.req.Version, p.resp.Version, p.used = h.version, h.version, 0
	return p
}

// recycle gives the call back; nothing may refer to it any more.
func (p *produceCall) recycle(s *Server) {
	if p.used <= pipelinedParts && len(p.resp.Topics) <= pipelinedParts {
		s.calls.Put(p)
	}
}

// slot returns the next slot, for out.
func (p *produceCall) slot(out *kmsg.ProduceResponseTopicPartition) *produceSlot {
	if p.used == len(p.slots) {
		s := &produceSlot{call: p}
		s.done = s.finish
		p.slots = append(p.slots, s)
	}
	s := p.slots[p.used]
	p.used++
	s.out = out
	return s
}

// finish notes the outcome of a partition.
func (s *produceSlot) finish(d broker.Produced) {
	s.out.BaseOffset, s.out.LogAppendTime, s.out.LogStartOffset = d.BaseOffset, d.LogAppendTime, d.LogStart
	if d.Err != nil {
		refuse(s.out, d.Err)
	}
	s.call.reply.done()
}

func refuse(out *kmsg.ProduceResponseTopicPartition, err error) {
	out.ErrorCode, out.ErrorMessage = errorCode(err), errorMessage(err)
	out.BaseOffset = -1
}

// code is the first error of the answer.
func (p *produceCall) code() int16 {
	for i := range p.resp.Topics {
		for j := range p.resp.Topics[i].Partitions {
			if code := p.resp.Topics[i].Partitions[j].ErrorCode; code != 0 {
				return code
			}
		}
	}
	return 0
}

// produce starts the appends of a request and queues its answer; it does not
// wait for the acknowledgement.
func (c *conn) produce(h header, a *api) error {
	if h.version >= 9 {
		var err error
		if h.body, err = skipTags(h.body); err != nil {
			return fmt.Errorf("request header of produce v%d: %w", h.version, err)
		}
	}
	if err := checkProduce(h.body, h.version); err != nil {
		return fmt.Errorf("decode produce v%d: %w", h.version, err)
	}
	p := c.s.produceCall(h, a)
	req, r := &p.req, &p.reply
	if err := req.UnsafeReadFrom(h.body); err != nil { // its strings are in the frame
		return fmt.Errorf("decode produce v%d: %w", h.version, err)
	}
	r.pending.Store(1)
	ctx := &lazyTimeout{Context: c.ctx, after: min(time.Duration(max(req.TimeoutMillis, 0))*time.Millisecond, maxProduceWait)}
	defer ctx.stop()
	err := requestError(req)
	p.resp.Topics = resize(p.resp.Topics, len(req.Topics))
	for i := range req.Topics {
		c.produceTopic(ctx, p, i, h.room, err)
	}
	r.silent = req.Acks == 0
	wait := p.used > pipelinedParts
	r.waited = wait
	r.done() // p is the writer's from the next line on
	c.queue(r)
	if wait {
		<-c.sent
	}
	return nil
}

// resize returns s with length n, its elements as they were.
func resize[T any](s []T, n int) []T {
	if n > cap(s) {
		s = append(s[:cap(s)], make([]T, n-cap(s))...)
	}
	return s[:n]
}

func requestError(req *kmsg.ProduceRequest) error {
	switch {
	case req.Version < minProduceVersion:
		return kerr.UnsupportedVersion
	case req.Acks < -1 || req.Acks > 1:
		return kerr.InvalidRequiredAcks
	case req.TransactionID != nil:
		return broker.ErrTransactionalUnsupported
	}
	return nil
}

// produceTopic starts the appends to the i-th topic, or refuses all of them.
func (c *conn) produceTopic(ctx context.Context, p *produceCall, i int, room *broker.Room, refused error) {
	t, out := &p.req.Topics[i], &p.resp.Topics[i]
	parts := resize(out.Partitions, len(t.Partitions))
	*out = kmsg.NewProduceResponseTopic()
	out.TopicID, out.Partitions = t.TopicID, parts
	topic, err := c.produceTo(t, p.req.Version)
	if topic != nil {
		out.Topic = topic.Name
	} else {
		out.Topic = strings.Clone(t.Topic)
	}
	if refused != nil {
		err = refused
	}
	for j := range t.Partitions {
		in, o := &t.Partitions[j], &parts[j]
		*o = kmsg.NewProduceResponseTopicPartition()
		o.Partition = in.Partition
		o.BaseOffset, o.LogAppendTime, o.LogStartOffset = -1, -1, -1
		slot := p.slot(o)
		if err != nil {
			refuse(o, err)
			continue
		}
		part, err := c.s.b.Await(ctx, topic.ID, in.Partition)
		if err == nil {
			err = checkRecords(in.Records, p.req.Version)
		}
		if err != nil {
			refuse(o, err)
			continue
		}
		c.s.observer.Produced(topic.Name, len(in.Records))
		p.reply.pending.Add(1)
		part.Produce(ctx, in.Records, room, slot.done) // what is before the records in the room may be gone now
	}
}

// zstdVersion is the first version in which a producer may use zstd (KIP-110).
const zstdVersion = 7

// checkRecords refuses what depends on the version of the request.
func checkRecords(b []byte, version int16) error {
	if len(b) == 0 {
		return fmt.Errorf("%w: no records", batch.ErrInvalid)
	}
	if version >= zstdVersion {
		return nil
	}
	if h, err := batch.Parse(b); err == nil && h.Codec() == batch.CodecZstd {
		return fmt.Errorf("%w: zstd in a Produce request of version %d, from %d on", kerr.UnsupportedCompressionType, version, zstdVersion)
	}
	return nil
}

// produceTo finds the topic.
func (c *conn) produceTo(t *kmsg.ProduceRequestTopic, version int16) (*broker.Topic, error) {
	if version >= 13 {
		if topic := c.s.b.TopicByID(ids.TopicID(t.TopicID)); topic != nil {
			return topic, checkInternal(topic.Name)
		}
		return nil, kerr.UnknownTopicID
	}
	if topic := c.s.b.Topic(t.Topic); topic != nil {
		return topic, checkInternal(topic.Name)
	}
	if err := metadata.ValidateTopicName(t.Topic); err != nil {
		return nil, err
	}
	return nil, broker.ErrUnknownTopic
}

// lazyTimeout is a context that only starts a timer when somebody waits on it:
// most appends never do.
type lazyTimeout struct {
	context.Context
	after time.Duration

	mu    sync.Mutex
	inner context.Context
	end   context.CancelFunc
}

func (l *lazyTimeout) started() context.Context {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.inner == nil {
		l.inner, l.end = context.WithTimeout(l.Context, l.after)
	}
	return l.inner
}

// Done starts the clock.
func (l *lazyTimeout) Done() <-chan struct{} { return l.started().Done() }

// Err reports why the context ended.
func (l *lazyTimeout) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.inner == nil {
		return l.Context.Err()
	}
	return l.inner.Err()
}

func (l *lazyTimeout) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.end != nil {
		l.end()
	}
}

var errLies = errors.New("a count or length is larger than the request")

// produceTopics walks to the topics of a Produce request and returns how many there are.
func (w *walker) produceTopics(version int16) int {
	if version >= 3 {
		w.skipString() // transactional id
	}
	w.skip(2 + 4) // acks, timeout
	return w.count(3)
}

// skipTopic skips the name of a topic in a Produce request, or its id.
func (w *walker) skipTopic(version int16) {
	if version >= 13 {
		w.skip(16)
	} else {
		w.skipString()
	}
}

// checkProduce walks a request without allocating and refuses counts and
// lengths that do not fit, before kmsg makes arrays of them.
func checkProduce(b []byte, version int16) error {
	w := walker{b: b, flexible: version >= 9}
	topics, parts := w.produceTopics(version), 0
	for range topics {
		w.skipTopic(version)
		n := w.count(5)
		if parts += n; topics+parts > maxProduceParts {
			return errLies
		}
		for range n {
			w.skip(4)
			w.skipBytes()
			w.skipTags()
		}
		w.skipTags()
	}
	w.skipTags()
	if w.bad || topics > maxProduceParts {
		return errLies
	}
	return nil
}
