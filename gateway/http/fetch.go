package httpgate

import (
	"context"
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

// fetch reads once from each of the partitions of at (partition to offset),
// size bytes in all or one batch, and waits up to wait if there is nothing.
// What a broker says of a partition is in its chunk. Order names the
// partitions; those in front are read first.
func fetch(ctx context.Context, cl *kgo.Client, t kadm.TopicDetail, order []int32, at map[int32]int64, size int64, wait time.Duration) ([]chunk, error) {
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
			req.MinBytes, req.MaxBytes, req.SessionEpoch = 1, int32(size), -1
			topic := kmsg.NewFetchRequestTopic()
			topic.Topic, topic.TopicID = t.Topic, t.ID
			req.Topics = append(req.Topics, topic)
			byLeader[leader] = req
			leaders = append(leaders, leader)
		}
		part := kmsg.NewFetchRequestTopicPartition()
		part.Partition, part.FetchOffset, part.PartitionMaxBytes = p, at[p], int32(size)
		req.Topics[0].Partitions = append(req.Topics[0].Partitions, part)
	}
	results := make([][]chunk, len(leaders))
	errs := make([]error, len(leaders))
	var wg sync.WaitGroup
	for i, leader := range leaders {
		req := byLeader[leader]
		req.MaxWaitMillis = int32(wait.Milliseconds())
		wg.Go(func() { results[i], errs[i] = fetchFrom(ctx, cl, leader, req, t.Topic, at) })
	}
	wg.Wait()
	var all []chunk
	for _, r := range results {
		all = append(all, r...)
	}
	return all, errors.Join(errs...)
}

// fetchFrom makes one request to one broker.
func fetchFrom(ctx context.Context, cl *kgo.Client, leader int32, req *kmsg.FetchRequest, topic string, at map[int32]int64) ([]chunk, error) {
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
			o := kgo.ProcessFetchPartitionOpts{KeepControlRecords: true, Offset: at[p.Partition], Topic: topic, Partition: p.Partition}
			got, next := kgo.ProcessFetchPartition(o, p, unpack, nil)
			out = append(out, chunk{p.Partition, got.Records, next, p.LogStartOffset, p.HighWatermark, got.Err})
		}
	}
	return out, nil
}
