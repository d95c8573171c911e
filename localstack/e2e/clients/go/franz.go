package main

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

func franzProduce(ctx context.Context, o produceOptions) error {
	codec, ok := map[string]kgo.CompressionCodec{"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(),
		"lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression()}[o.codec]
	if !ok {
		return errCodec
	}
	opts := []kgo.Opt{kgo.SeedBrokers(o.brokers), kgo.DefaultProduceTopic(o.topic), kgo.ProducerBatchCompression(codec)}
	if !o.idempotent {
		opts = append(opts, kgo.DisableIdempotentWrite())
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		return err
	}
	defer cl.Close()
	var first kgo.FirstErrPromise
	for i := o.first; i < o.first+o.count; i++ {
		m := makeRecord(i)
		r := &kgo.Record{Key: m.key, Value: m.value}
		for _, h := range m.headers {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: h.key, Value: h.value})
		}
		cl.Produce(ctx, r, first.Promise())
	}
	return first.Err()
}

func franzConsume(ctx context.Context, o consumeOptions, out *printer) error {
	opts := []kgo.Opt{kgo.SeedBrokers(o.brokers), kgo.ConsumerGroup(o.group), kgo.ConsumeTopics(o.topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.SessionTimeout(o.session), kgo.HeartbeatInterval(time.Second), kgo.DisableAutoCommit(), kgo.BlockRebalanceOnPoll()}
	if o.cooperative {
		opts = append(opts, kgo.Balancers(kgo.CooperativeStickyBalancer()))
	} else {
		opts = append(opts, kgo.Balancers(kgo.RangeBalancer()))
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		fetches := cl.PollRecords(ctx, 1000)
		if err := fetches.Err(); err != nil && ctx.Err() == nil {
			return err
		}
		var rs []read
		fetches.EachRecord(func(r *kgo.Record) {
			m := read{r.Partition, r.Offset, record{key: r.Key, value: r.Value}}
			for _, h := range r.Headers {
				m.headers = append(m.headers, header{h.Key, h.Value})
			}
			rs = append(rs, m)
		})
		if err := out.records(rs...); err != nil {
			return err
		}
		commit, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		err := cl.CommitRecords(commit, fetches.Records()...)
		cancel()
		if err != nil {
			return fmt.Errorf("commit: %w", err)
		}
		cl.AllowRebalance()
	}
	cl.CloseAllowingRebalance() // leaves the group
	return nil
}
