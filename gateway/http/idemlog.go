package httpgate

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// KeyTopic holds the idempotency keys of all gateways of a cluster; see
// docs/design/http-idempotency.md.
const KeyTopic = "__cirrolog_idempotency"

const (
	keyPartitions = 8
	keyLifetime   = 24 * time.Hour // also how long brokers remember a producer id
	keyMargin     = time.Hour      // in which an unfinished key is not tried any more, for clocks that differ
	keySweep      = 10 * time.Minute
	keySweepFull  = 10 * time.Second // while there is no room for a key
	keyLoad       = 20 * time.Second // a request waits for the topic to be read
)

// States of a key in the topic.
const (
	keyBegin = "begin" // its batches have producer id and sequences; they are stored or not
	keyDone  = "done"  // its answer is known
	keyFree  = "free"  // nothing was stored: it may be used again
)

// keyRecord is the value of a record of KeyTopic; its key is the idempotency key.
type keyRecord struct {
	State       string     `json:"state"`
	At          int64      `json:"at"`              // ms; of its writer
	Begin       int64      `json:"begin,omitempty"` // of done and free: the offset of the begin that they end
	Gateway     string     `json:"gateway,omitempty"`
	Fingerprint string     `json:"fingerprint,omitempty"` // of the request
	Topic       string     `json:"topic,omitempty"`
	Partitions  int32      `json:"partitions,omitempty"` // of the topic when records were given theirs
	Fallback    int32      `json:"fallback,omitempty"`   // partition of records without a key
	Timestamp   int64      `json:"timestamp,omitempty"`  // ms; of records without one
	ProducerID  int64      `json:"producer_id,omitempty"`
	Epoch       int16      `json:"epoch,omitempty"`
	Batches     []keyBatch `json:"batches,omitempty"`
}

// keyBatch is the batch of one partition.
type keyBatch struct {
	Partition int32  `json:"partition"`
	Sequence  int32  `json:"sequence"`
	Count     int32  `json:"count"`
	Offset    *int64 `json:"offset,omitempty"` // of the first record; absent: not stored
	Code      int    `json:"error_code,omitempty"`
	Message   string `json:"message,omitempty"`
}

type keyHash [16]byte

func hashKey(key string) (h keyHash) {
	sum := sha256.Sum256([]byte(key))
	copy(h[:], sum[:])
	return h
}

func (h keyHash) partition() int32 { return int32(h[0]) % keyPartitions }

// keyEntry is what is known of a key.
type keyEntry struct {
	begin int64 // offset of the begin that counts
	done  int64 // offset of its done; -1: not finished
	at    int64 // ms; time of begin
}

func (e keyEntry) expired(now int64) bool { return now-e.at > keyLifetime.Milliseconds() }

// keyIndex is what all records of KeyTopic up to now say, the same in every
// gateway. Only begins and ends that count change it: the first begin of a key
// that is not known or expired wins, later ones have no effect.
type keyIndex map[keyHash]keyEntry

// apply takes a record of the topic. Those of a partition must come in order.
func (x keyIndex) apply(h keyHash, offset int64, r *keyRecord) {
	e, known := x[h]
	switch r.State {
	case keyBegin:
		if !known || e.expired(r.At) {
			x[h] = keyEntry{begin: offset, done: -1, at: r.At}
		}
	case keyDone:
		if known && e.begin == r.Begin && e.done < 0 {
			e.done = offset
			x[h] = e
		}
	case keyFree:
		if known && e.begin == r.Begin && e.done < 0 {
			delete(x, h)
		}
	}
}

// keyLog is KeyTopic as this gateway has read it. It reads on until it fails
// or the gateway ends.
type keyLog struct {
	s      *Server
	cl     *kgo.Client
	ctx    context.Context
	cancel context.CancelCauseFunc
	loaded map[int32]int64 // ends of the partitions when it was opened

	mu    sync.Mutex
	index keyIndex
	swept time.Time
	next  map[int32]int64 // offsets up to which index has been told
	moved chan struct{}   // closed when next moves
}

// openKeyLog makes the topic if it is not there and begins to read it.
func openKeyLog(ctx context.Context, s *Server) (*keyLog, error) {
	if _, err := s.topics.get(ctx, KeyTopic); errors.Is(err, kerr.UnknownTopicOrPartition) {
		ms, hour := strconv.FormatInt((keyLifetime+keyMargin).Milliseconds(), 10), "3600000"
		policy := "delete"
		_, err := s.admin.CreateTopic(ctx, keyPartitions, -1, map[string]*string{"cleanup.policy": &policy, "retention.ms": &ms, "segment.ms": &hour}, KeyTopic)
		if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
			return nil, fmt.Errorf("make topic %s: %w", KeyTopic, err)
		}
		s.topics.forget(KeyTopic)
	}
	sp, first, err := s.bounds(ctx, KeyTopic, "")
	if err != nil {
		return nil, fmt.Errorf("read topic %s: %w", KeyTopic, err)
	}
	if len(sp.end) < keyPartitions {
		return nil, fmt.Errorf("topic %s has %d partitions, not %d: %w", KeyTopic, len(sp.end), keyPartitions, kerr.InvalidPartitions)
	}
	l := &keyLog{s: s, loaded: sp.end, index: keyIndex{}, swept: s.keys.now(), next: first, moved: make(chan struct{})}
	at := map[int32]kgo.Offset{}
	for p, o := range first {
		at[p] = kgo.NewOffset().At(o)
	}
	l.cl, err = kgo.NewClient(append([]kgo.Opt{kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{KeyTopic: at}), kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.KeepControlRecords(), kgo.MaxDecompressBatchBytes(maxExpansion)}, s.kafka...)...)
	if err != nil {
		return nil, fmt.Errorf("make Kafka client: %w", err)
	}
	l.ctx, l.cancel = context.WithCancelCause(s.keys.ctx)
	s.keys.runs.Go(l.run)
	return l, nil
}

func (l *keyLog) run() {
	defer l.cl.Close()
	for {
		poll, cancel := context.WithTimeout(l.ctx, keySweep)
		fetches := l.cl.PollRecords(poll, 1000)
		cancel()
		if l.ctx.Err() != nil {
			return
		}
		for _, e := range fetches.Errors() {
			if !errors.Is(e.Err, context.DeadlineExceeded) && !kerr.IsRetriable(e.Err) {
				l.s.log.Error("the topic of the idempotency keys can't be read; the next request begins anew", "topic", KeyTopic, "partition", e.Partition, "err", e.Err)
				l.cancel(fmt.Errorf("read topic %s: %w", KeyTopic, e.Err))
				return
			}
		}
		l.apply(fetches.Records())
		l.sweep()
	}
}

func (l *keyLog) apply(recs []*kgo.Record) {
	if len(recs) == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range recs {
		l.next[r.Partition] = r.Offset + 1
		var k keyRecord
		if r.Attrs.IsControl() || json.Unmarshal(r.Value, &k) != nil {
			continue // not of a gateway
		}
		l.index.apply(hashKey(string(r.Key)), r.Offset, &k)
	}
	close(l.moved)
	l.moved = make(chan struct{})
}

// sweep forgets expired keys from time to time.
func (l *keyLog) sweep() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sweepLocked(keySweep)
}

// sweepLocked is sweep if the last one was longer ago than every.
func (l *keyLog) sweepLocked(every time.Duration) {
	now := l.s.keys.now()
	if now.Sub(l.swept) <= every {
		return
	}
	l.swept = now
	for h, e := range l.index {
		if e.expired(now.UnixMilli()) {
			delete(l.index, h)
		}
	}
}

// lookup returns what is known of a key that has not expired.
func (l *keyLog) lookup(h keyHash) (keyEntry, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, ok := l.index[h]
	return e, ok && !e.expired(l.s.keys.now().UnixMilli())
}

// full tells whether there is no room for another key; expired ones give way.
func (l *keyLog) full(limit int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.index) >= limit {
		l.sweepLocked(keySweepFull)
	}
	return len(l.index) >= limit
}

// wait returns when the index has been told of all offsets in front of those of
// ends.
func (l *keyLog) wait(ctx context.Context, ends map[int32]int64) error {
	for {
		l.mu.Lock()
		behind := false
		for p, end := range ends {
			behind = behind || l.next[p] < end
		}
		moved := l.moved
		l.mu.Unlock()
		if !behind {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("wait for topic %s: %w", KeyTopic, ctx.Err())
		case <-l.ctx.Done():
			return fmt.Errorf("wait for topic %s: %w", KeyTopic, context.Cause(l.ctx))
		}
	}
}

// write stores a record durably and returns when the index knows it too.
func (l *keyLog) write(ctx context.Context, key string, r *keyRecord) (offset int64, err error) {
	v, err := json.Marshal(r)
	if err != nil {
		return 0, fmt.Errorf("encode key: %w", err)
	}
	p := hashKey(key).partition()
	rec := &kgo.Record{Topic: KeyTopic, Partition: p, Key: []byte(key), Value: v}
	if err := l.s.store(l.s.delivery.within(ctx), rec); err != nil {
		return 0, fmt.Errorf("store idempotency key: %w", err)
	}
	return rec.Offset, l.wait(ctx, map[int32]int64{p: rec.Offset + 1})
}

// read returns the record of a key at an offset.
func (l *keyLog) read(ctx context.Context, key string, offset int64) (*keyRecord, error) {
	t, err := l.s.topics.get(ctx, KeyTopic)
	if err != nil {
		return nil, err
	}
	cl, err := l.s.fetchers.get()
	if err != nil {
		return nil, err
	}
	defer l.s.fetchers.put(cl)
	p := hashKey(key).partition()
	for ctx.Err() == nil {
		chunks, err := fetch(ctx, cl, t, []int32{p}, map[int32]int64{p: offset}, bounds{answer: 1}, time.Second)
		if err != nil {
			return nil, err
		}
		for _, c := range chunks {
			if c.err != nil {
				return nil, fmt.Errorf("read topic %s: %w", KeyTopic, c.err)
			}
			for _, r := range c.records {
				k := new(keyRecord)
				if r.Offset != offset {
					continue
				}
				if err := json.Unmarshal(r.Value, k); err != nil || string(r.Key) != key {
					return nil, fmt.Errorf("read topic %s: the record at offset %d of partition %d is another one: %w", KeyTopic, offset, p, kerr.CorruptMessage)
				}
				return k, nil
			}
		}
	}
	return nil, ctx.Err()
}
