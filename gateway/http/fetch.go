package httpgate

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	fetchBytes   = 1 << 20  // of one fetch; a larger first batch comes as a whole
	maxExpansion = 64 << 20 // bytes of a batch's records
	idleFetchers = 8        // that are kept
)

// fetchers lends clients for fetches of the past. Each is used by one reader at
// a time: a broker answers the requests of a connection one after the other,
// so a read that waits or comes from cold storage would hold up the others.
type fetchers struct {
	opts []kgo.Opt
	idle chan *kgo.Client
	mu   sync.Mutex
	shut bool
}

func (f *fetchers) get() (*kgo.Client, error) {
	select {
	case cl := <-f.idle:
		return cl, nil
	default:
	}
	cl, err := kgo.NewClient(f.opts...)
	if err != nil {
		return nil, fmt.Errorf("make Kafka client: %w", err)
	}
	return cl, nil
}

func (f *fetchers) put(cl *kgo.Client) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.shut {
		select {
		case f.idle <- cl:
			return
		default:
		}
	}
	cl.Close()
}

// close closes the clients; those that are lent are closed when they come back.
func (f *fetchers) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.shut = true
	for {
		select {
		case cl := <-f.idle:
			cl.Close()
		default:
			return
		}
	}
}

// chunk is what one partition gave.
type chunk struct {
	partition  int32
	records    []*kgo.Record // control records too
	next       int64         // the offset to go on from
	first, end int64         // of the partition
	err        error
}

// bounds of a fetch. A partition gives no more batches when it has so many
// records or bytes of them; zeros: all that came.
type bounds struct {
	answer  int64 // bytes that the brokers send; a larger first batch comes as a whole
	records int
	size    int64
}

// fetch reads once from each of the partitions of at (partition to offset),
// within b, and waits up to wait if there is nothing.
// What a broker says of a partition is in its chunk. Order names the
// partitions; those in front are read first.
func fetch(ctx context.Context, cl *kgo.Client, t kadm.TopicDetail, order []int32, at map[int32]int64, b bounds, wait time.Duration) ([]chunk, error) {
	byLeader := map[int32]*kmsg.FetchRequest{}
	var leaders []int32
	for _, p := range order {
		leader := t.Partitions[p].Leader
		if leader < 0 {
			return nil, kerr.LeaderNotAvailable
		}
		req := byLeader[leader]
		if req == nil {
			req = kmsg.NewPtrFetchRequest()
			req.MinBytes, req.MaxBytes, req.SessionEpoch = 1, int32(b.answer), -1
			topic := kmsg.NewFetchRequestTopic()
			topic.Topic, topic.TopicID = t.Topic, t.ID
			req.Topics = append(req.Topics, topic)
			byLeader[leader] = req
			leaders = append(leaders, leader)
		}
		part := kmsg.NewFetchRequestTopicPartition()
		part.Partition, part.FetchOffset, part.PartitionMaxBytes = p, at[p], int32(b.answer)
		req.Topics[0].Partitions = append(req.Topics[0].Partitions, part)
	}
	results := make([][]chunk, len(leaders))
	errs := make([]error, len(leaders))
	var wg sync.WaitGroup
	for i, leader := range leaders {
		req := byLeader[leader]
		req.MaxWaitMillis = int32(wait.Milliseconds())
		wg.Go(func() { results[i], errs[i] = fetchFrom(ctx, cl, leader, req, at, b) })
	}
	wg.Wait()
	var all []chunk
	for _, r := range results {
		all = append(all, r...)
	}
	return all, errors.Join(errs...)
}

// fetchFrom makes one request to one broker.
func fetchFrom(ctx context.Context, cl *kgo.Client, leader int32, req *kmsg.FetchRequest, at map[int32]int64, b bounds) ([]chunk, error) {
	resp, err := cl.Broker(int(leader)).RetriableRequest(ctx, req)
	if err != nil {
		return nil, err
	}
	f, ok := resp.(*kmsg.FetchResponse)
	if !ok {
		return nil, fmt.Errorf("fetch: answer is a %T", resp)
	}
	if err := kerr.ErrorForCode(f.ErrorCode); err != nil {
		return nil, err
	}
	unpack, ok := cl.OptValue(kgo.WithDecompressor).(kgo.Decompressor) // with the client's bound
	if !ok {
		unpack = kgo.DefaultDecompressor()
	}
	var out []chunk
	for i := range f.Topics {
		for j := range f.Topics[i].Partitions {
			p := &f.Topics[i].Partitions[j]
			o := kgo.ProcessFetchPartitionOpts{KeepControlRecords: true, Offset: at[p.Partition], Topic: req.Topics[0].Topic, Partition: p.Partition}
			out = append(out, b.decode(o, p, unpack))
		}
	}
	return out, nil
}

// decode takes a partition's batches one by one, because a page may need only
// the first of them. An error behind others is left to the next fetch.
func (b bounds) decode(o kgo.ProcessFetchPartitionOpts, p *kmsg.FetchResponseTopicPartition, unpack kgo.Decompressor) chunk {
	c := chunk{partition: p.Partition, next: o.Offset, first: p.LogStartOffset, end: p.HighWatermark}
	one, rest, from, size := *p, p.RecordBatches, o.Offset, int64(0)
	for {
		n := batchEnd(rest)
		one.RecordBatches, rest = rest[:n], rest[n:]
		got, next := kgo.ProcessFetchPartition(o, &one, unpack, nil)
		if got.Err != nil {
			if c.next == from {
				c.err = got.Err
			}
			return c
		}
		c.records, c.next, o.Offset = append(c.records, got.Records...), next, next
		for _, rec := range got.Records {
			size += recordSize(rec)
		}
		if len(rest) == 0 || b.records > 0 && len(c.records) >= b.records || b.size > 0 && size >= b.size {
			return c
		}
	}
}

// batchEnd returns the length of the first batch, or of all if it is cut.
func batchEnd(batches []byte) int {
	const head = 12 // offset and length in front of the bytes that are counted
	if len(batches) < head {
		return len(batches)
	}
	if n := int64(binary.BigEndian.Uint32(batches[8:])) + head; n < int64(len(batches)) {
		return int(n)
	}
	return len(batches)
}

// recordSize is what a record counts of max_bytes.
func recordSize(r *kgo.Record) int64 { return int64(len(r.Key) + len(r.Value) + 64) }
