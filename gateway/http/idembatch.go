package httpgate

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// appendBatch adds a record batch, format v2, uncompressed, with the sequence
// numbers from seq on. A record without a timestamp gets now. The same records
// with the same arguments give the same bytes.
func appendBatch(b []byte, recs []*kgo.Record, pid int64, epoch int16, seq int32, now time.Time) []byte {
	stamp := func(r *kgo.Record) int64 {
		if r.Timestamp.IsZero() {
			return now.UnixMilli()
		}
		return r.Timestamp.UnixMilli()
	}
	first, last := stamp(recs[0]), int64(math.MinInt64)
	for _, r := range recs {
		last = max(last, stamp(r))
	}
	start := len(b)
	be := binary.BigEndian
	b = be.AppendUint64(b, 0)          // base offset
	b = be.AppendUint32(b, 0)          // length, below
	b = be.AppendUint32(b, 0xFFFFFFFF) // leader epoch: none
	b = append(b, 2)
	b = be.AppendUint32(b, 0) // CRC, below
	b = be.AppendUint16(b, 0) // attributes
	b = be.AppendUint32(b, uint32(len(recs)-1))
	b = be.AppendUint64(b, uint64(first))
	b = be.AppendUint64(b, uint64(last))
	b = be.AppendUint64(b, uint64(pid))
	b = be.AppendUint16(b, uint16(epoch))
	b = be.AppendUint32(b, uint32(seq))
	b = be.AppendUint32(b, uint32(len(recs)))
	var body []byte
	for i, r := range recs {
		body = append(body[:0], 0)
		body = binary.AppendVarint(body, stamp(r)-first)
		body = binary.AppendVarint(body, int64(i))
		body = appendVarBytes(body, r.Key)
		body = appendVarBytes(body, r.Value)
		body = binary.AppendVarint(body, int64(len(r.Headers)))
		for _, h := range r.Headers {
			body = append(binary.AppendVarint(body, int64(len(h.Key))), h.Key...)
			body = appendVarBytes(body, h.Value)
		}
		b = append(binary.AppendVarint(b, int64(len(body))), body...)
	}
	be.PutUint32(b[start+8:], uint32(len(b)-start-12))
	be.PutUint32(b[start+17:], crc32.Checksum(b[start+21:], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func appendVarBytes(b, v []byte) []byte {
	if v == nil {
		return binary.AppendVarint(b, -1)
	}
	return append(binary.AppendVarint(b, int64(len(v))), v...)
}

// errUnknownOutcome is a produce of which nobody knows whether it is stored.
var errUnknownOutcome = errors.New("the brokers did not say whether the records are stored")

const (
	retryPause    = 50 * time.Millisecond
	retryPauseMax = time.Second
)

// produceBatch sends one batch to the leader of its partition until the brokers
// have stored it or refused it for good; sent again it is the same batch to
// them. An error that is not errUnknownOutcome means that this call stored
// nothing.
func (s *Server) produceBatch(ctx context.Context, topic string, partition int32, batch []byte) (offset int64, err error) {
	unknown := false
	for pause := retryPause; ; pause = min(2*pause, retryPauseMax) {
		var code *kerr.Error
		offset, err = s.tryBatch(ctx, topic, partition, batch)
		switch refused := errors.As(err, &code); {
		case err == nil:
			return offset, nil
		case refused && !code.Retriable:
			if unknown {
				err = fmt.Errorf("%w: %w", errUnknownOutcome, err)
			}
			return 0, err
		default:
			unknown = true
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return 0, fmt.Errorf("%w: %w", errUnknownOutcome, err)
		}
	}
}

func (s *Server) tryBatch(ctx context.Context, topic string, partition int32, batch []byte) (int64, error) {
	t, err := s.topics.get(ctx, topic)
	if err != nil {
		return 0, err
	}
	leader := t.Partitions[partition].Leader
	if _, ok := t.Partitions[partition]; !ok || leader < 0 {
		return 0, kerr.LeaderNotAvailable
	}
	req := kmsg.NewPtrProduceRequest()
	req.Acks, req.TimeoutMillis = -1, int32(s.limits.DeliveryTime.Milliseconds())
	rt, rp := kmsg.NewProduceRequestTopic(), kmsg.NewProduceRequestTopicPartition()
	rt.Topic, rt.TopicID = topic, t.ID
	rp.Partition, rp.Records = partition, batch
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	resp, err := s.client.Broker(int(leader)).Request(ctx, req)
	if err != nil {
		s.topics.forget(topic)
		return 0, err
	}
	p, ok := resp.(*kmsg.ProduceResponse)
	if !ok || len(p.Topics) != 1 || len(p.Topics[0].Partitions) != 1 {
		return 0, errors.New("produce: the answer is not of this request")
	}
	got := p.Topics[0].Partitions[0]
	if err := kerr.ErrorForCode(got.ErrorCode); err != nil {
		s.topics.forget(topic)
		return 0, err
	}
	return got.BaseOffset, nil
}

// slot is a producer id and the sequence numbers that come next. It serves one
// key at a time and never another while the outcome of one is unknown: so what
// a retry sends again is always the newest batch of its producer id.
type slot struct {
	pid   int64
	epoch int16
	next  map[topicPartition]int32
}

type topicPartition struct {
	topic     kadm.TopicID
	partition int32
}

const (
	slotSequences  = 1 << 30 // a slot is given up before its sequence numbers begin anew
	slotPartitions = 4096    // of one slot
)

// pids are the slots that nobody uses.
type pids struct {
	client *kgo.Client
	mu     sync.Mutex
	free   []*slot
}

// get returns a free slot, the one used last, or makes one.
func (p *pids) get(ctx context.Context) (*slot, error) {
	p.mu.Lock()
	if n := len(p.free); n > 0 {
		s := p.free[n-1]
		p.free = p.free[:n-1]
		p.mu.Unlock()
		return s, nil
	}
	p.mu.Unlock()
	req := kmsg.NewPtrInitProducerIDRequest()
	req.ProducerID, req.ProducerEpoch = -1, -1
	resp, err := req.RequestWith(ctx, p.client)
	if err != nil {
		return nil, fmt.Errorf("get producer id: %w", err)
	}
	if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
		return nil, fmt.Errorf("get producer id: %w", err)
	}
	return &slot{pid: resp.ProducerID, epoch: resp.ProducerEpoch, next: map[topicPartition]int32{}}, nil
}

// put gives a slot back of which every batch has a known outcome.
func (p *pids) put(s *slot) {
	for _, seq := range s.next {
		if seq > slotSequences {
			return
		}
	}
	if len(s.next) > slotPartitions {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free = append(p.free, s)
}
