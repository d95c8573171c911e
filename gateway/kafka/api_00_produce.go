package kafka

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// Produce 3-13; 0-2 are advertised and refused (see ApiVersions). One v2 batch
// per partition. acks=1 waits for the same as acks=all; acks=0 gets no answer,
// and an error closes the connection, as in Kafka. Version 13 names topics by id.
// Transactional batches are refused.
func (s *Server) apiProduce() api {
	return api{key: 0, min: 0, max: 13, name: "Produce"}
}

const minProduceVersion = 3

// produce starts the appends of a request and queues its answer; it does not
// wait for the acknowledgement.
func (c *conn) produce(h header, req *kmsg.ProduceRequest, r *reply) error {
	if h.version < minProduceVersion {
		return fmt.Errorf("produce v%d is not served (from %d)", h.version, minProduceVersion)
	}
	if err := checkProduce(h.body, h.version); err != nil {
		return fmt.Errorf("decode produce v%d: %w", h.version, err)
	}
	if err := req.ReadFrom(h.body); err != nil {
		return fmt.Errorf("decode produce v%d: %w", h.version, err)
	}
	resp := req.ResponseKind().(*kmsg.ProduceResponse)
	r.resp = resp
	r.pending.Store(1)
	ctx := &lazyTimeout{Context: c.ctx, after: min(time.Duration(max(req.TimeoutMillis, 0))*time.Millisecond, maxProduceWait)}
	defer ctx.stop()
	code := requestError(req)
	resp.Topics = make([]kmsg.ProduceResponseTopic, len(req.Topics))
	for i := range req.Topics {
		c.produceTopic(ctx, &req.Topics[i], &resp.Topics[i], r, code)
	}
	r.done()
	if req.Acks == 0 {
		<-r.ready
		return acksZeroError(resp)
	}
	return c.queue(r)
}

// maxProduceWait bounds how long a request may wait for room.
const maxProduceWait = 30 * time.Second

func requestError(req *kmsg.ProduceRequest) error {
	switch {
	case req.Acks < -1 || req.Acks > 1:
		return kerr.InvalidRequiredAcks
	case req.TransactionID != nil:
		return broker.ErrTransactionalUnsupported
	}
	return nil
}

func (c *conn) produceTopic(ctx context.Context, t *kmsg.ProduceRequestTopic, out *kmsg.ProduceResponseTopic, r *reply, refuse error) {
	*out = kmsg.NewProduceResponseTopic()
	out.Topic, out.TopicID = t.Topic, t.TopicID
	out.Partitions = make([]kmsg.ProduceResponseTopicPartition, len(t.Partitions))
	var topic *broker.Topic
	var missing error = broker.ErrUnknownTopic
	if r.version >= 13 {
		topic, missing = c.s.b.TopicByID(ids.TopicID(t.TopicID)), kerr.UnknownTopicID
	} else {
		topic = c.s.b.Topic(t.Topic)
	}
	for j := range t.Partitions {
		p, o := &t.Partitions[j], &out.Partitions[j]
		*o = kmsg.NewProduceResponseTopicPartition()
		o.Partition = p.Partition
		o.BaseOffset, o.LogAppendTime, o.LogStartOffset = -1, -1, -1
		err := refuse
		if err == nil && topic == nil {
			err = missing
		}
		var part Partition
		if err == nil {
			part, err = c.s.b.Partition(topic.ID, p.Partition)
		}
		if err != nil {
			o.ErrorCode, o.ErrorMessage = errorCode(err), errorMessage(err)
			continue
		}
		c.s.observer.Produced(topic.Name, len(p.Records))
		r.pending.Add(1)
		part.Produce(ctx, p.Records, func(d broker.Produced) {
			o.BaseOffset, o.LogAppendTime, o.LogStartOffset = d.BaseOffset, d.LogAppendTime, d.LogStart
			if d.Err != nil {
				o.ErrorCode, o.ErrorMessage = errorCode(d.Err), errorMessage(d.Err)
			}
			r.done()
		})
	}
}

func acksZeroError(resp *kmsg.ProduceResponse) error {
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			if p.ErrorCode != 0 {
				return fmt.Errorf("produce with acks=0 to %s-%d: %w", t.Topic, p.Partition, kerr.ErrorForCode(p.ErrorCode))
			}
		}
	}
	return nil
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

// checkProduce walks a request without allocating and refuses counts and
// lengths that do not fit, before kmsg makes arrays of them.
func checkProduce(b []byte, version int16) error {
	w := walker{b: b, flexible: version >= 9}
	w.skipString() // transactional id
	w.skip(2 + 4)  // acks, timeout
	for range w.count(3) {
		if version >= 13 {
			w.skip(16)
		} else {
			w.skipString()
		}
		for range w.count(6) {
			w.skip(4)
			w.skipBytes()
			w.skipTags()
		}
		w.skipTags()
	}
	w.skipTags()
	if w.bad {
		return errLies
	}
	return nil
}

// walker walks the primitive types of the protocol; after the first misfit it
// is bad and everything is zero.
type walker struct {
	b        []byte
	flexible bool
	bad      bool
}

func (w *walker) skip(n int) {
	if w.bad || n < 0 || n > len(w.b) {
		w.bad = true
		return
	}
	w.b = w.b[n:]
}

func (w *walker) uvarint() int {
	n, k := binary.Uvarint(w.b)
	if w.bad || k <= 0 || n > 1<<31 {
		w.bad = true
		return 0
	}
	w.b = w.b[k:]
	return int(n)
}

// count reads an array's length; each element needs at least elem bytes.
func (w *walker) count(elem int) int {
	n := 0
	if w.flexible {
		n = w.uvarint() - 1
	} else if len(w.b) >= 4 {
		n = int(int32(binary.BigEndian.Uint32(w.b)))
		w.skip(4)
	} else {
		w.bad = true
	}
	if w.bad || n > len(w.b)/elem {
		w.bad = true
		return 0
	}
	return max(n, 0)
}

func (w *walker) skipString() {
	if w.flexible {
		w.skip(max(w.uvarint()-1, 0))
		return
	}
	if len(w.b) < 2 {
		w.bad = true
		return
	}
	n := int(int16(binary.BigEndian.Uint16(w.b)))
	w.skip(2)
	w.skip(max(n, 0))
}

func (w *walker) skipBytes() {
	if w.flexible {
		w.skip(max(w.uvarint()-1, 0))
		return
	}
	if len(w.b) < 4 {
		w.bad = true
		return
	}
	n := int(int32(binary.BigEndian.Uint32(w.b)))
	w.skip(4)
	w.skip(max(n, 0))
}

func (w *walker) skipTags() {
	if !w.flexible {
		return
	}
	for range w.uvarint() {
		w.uvarint()
		w.skip(w.uvarint())
		if w.bad {
			return
		}
	}
}
