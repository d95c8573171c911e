package cli

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// bucketSource reads a topic from the bucket alone; every agent may be stopped.
// It sees what has been tiered.
type bucketSource struct {
	bucket objstore.Bucket
	topic  *metadata.Topic
	index  *tiering.BucketIndex
	reader *tiering.Reader
	starts map[ids.TopicPartition]int64
}

func newBucketSource(ctx context.Context, url, topic string) (*bucketSource, error) {
	b, err := openBucket(ctx, url)
	if err != nil {
		return nil, err
	}
	s := &bucketSource{bucket: b, index: tiering.NewBucketIndex(b)}
	if err = s.open(ctx, topic); err != nil {
		return nil, errors.Join(err, objstore.Close(b))
	}
	return s, nil
}

func (s *bucketSource) open(ctx context.Context, topic string) (err error) {
	if s.topic, err = metadata.TopicInBucket(ctx, s.bucket, topic); err != nil {
		return err
	}
	if s.starts, err = metadata.LogStartsInBucket(ctx, s.bucket); err != nil {
		return err
	}
	s.reader, err = tiering.NewReader(tiering.ReaderOptions{Bucket: s.bucket, Index: s.index})
	return err
}

func (s *bucketSource) id() string { return s.topic.ID.String() }

func (s *bucketSource) close() error { return errors.Join(s.reader.Close(), objstore.Close(s.bucket)) }

func (s *bucketSource) tp(p int32) ids.TopicPartition {
	return ids.TopicPartition{Topic: s.topic.ID, Partition: p}
}

// rows are the segments of a partition from its log start on, in order.
func (s *bucketSource) rows(ctx context.Context, p int32) ([]tiering.Segment, error) {
	return s.index.Segments(ctx, s.tp(p), s.starts[s.tp(p)], math.MaxInt32)
}

func (s *bucketSource) bounds(ctx context.Context) ([]partRange, error) {
	var out []partRange
	for p := range s.topic.Partitions {
		rows, err := s.rows(ctx, p)
		if err != nil {
			return nil, err
		}
		r := partRange{Partition: p, From: s.starts[s.tp(p)]}
		r.To = r.From
		for i, row := range rows {
			if i == 0 {
				r.From = max(r.From, row.Base)
			}
			r.To = max(r.To, row.Last+1)
		}
		out = append(out, r)
	}
	return out, nil
}

func (s *bucketSource) offsetAt(ctx context.Context, r partRange, ms int64) (int64, error) {
	found, ok, err := s.reader.OffsetForTimestamp(ctx, s.tp(r.Partition), ms, r.From)
	if err != nil {
		return 0, fmt.Errorf("find the offset at %d: %w", ms, err)
	}
	if !ok {
		return r.To, nil
	}
	return min(max(found.Offset, r.From), r.To), nil
}

const bucketRead = 4 << 20 // bytes asked for at once

// read fails with errMissing, after all records there are, when some are not in
// the bucket though the topic is not compacted.
func (s *bucketSource) read(ctx context.Context, r partRange, emit func(*kgo.Record) error) error {
	var missing error
	for at := r.From; at < r.To; {
		res, err := s.reader.Read(ctx, s.tp(r.Partition), at, bucketRead, true)
		if errors.Is(err, tiering.ErrNoSegment) {
			return errors.Join(missing, s.gap(r.Partition, at, r.To))
		}
		if err != nil {
			return fmt.Errorf("read partition %d at %d: %w", r.Partition, at, err)
		}
		next := at
		for _, data := range res.Data {
			for len(data) > 0 && err == nil {
				var h batch.Header
				if h, err = batch.Check(data); err != nil {
					break
				}
				if h.BaseOffset > next {
					missing = errors.Join(missing, s.gap(r.Partition, next, min(h.BaseOffset, r.To)))
				}
				next = h.LastOffset() + 1
				err = s.emitBatch(r, data[:h.Size()], h, emit)
				data = data[h.Size():]
			}
		}
		to := res.NextOffset
		res.Release()
		if err != nil {
			return err
		}
		if to <= at {
			return fmt.Errorf("read partition %d at %d: the reader does not move on", r.Partition, at)
		}
		at = to
	}
	return missing
}

func (s *bucketSource) gap(p int32, from, to int64) error {
	if s.topic.Config.CleanupPolicy.Compact || from >= to {
		return nil
	}
	return fmt.Errorf("%w: partition %d, offsets %d to %d are not in the bucket", errMissing, p, from, to-1)
}

func (s *bucketSource) emitBatch(r partRange, b []byte, h batch.Header, emit func(*kgo.Record) error) error {
	if h.Control() {
		return nil
	}
	for rec, err := range batch.Records(b, batch.Limits{}) {
		if err != nil {
			return fmt.Errorf("read partition %d, batch at %d: %w", r.Partition, h.BaseOffset, err)
		}
		offset := h.BaseOffset + int64(rec.OffsetDelta)
		if offset < r.From || offset >= r.To {
			continue
		}
		k := kgo.Record{Topic: s.topic.Name, Partition: r.Partition, Offset: offset, LeaderEpoch: h.LeaderEpoch, ProducerID: h.ProducerID,
			ProducerEpoch: h.ProducerEpoch, Timestamp: time.UnixMilli(rec.Timestamp), Key: rec.Key, Value: rec.Value}
		for _, x := range rec.Headers {
			k.Headers = append(k.Headers, kgo.RecordHeader{Key: x.Key, Value: x.Value})
		}
		if err := emit(&k); err != nil {
			return err
		}
	}
	return nil
}

// segments reads footers, one GET each, and leaves out what another segment
// holds as well.
func (s *bucketSource) segments(ctx context.Context, ranges []partRange) ([]planSegment, error) {
	var out []planSegment
	for _, r := range ranges {
		rows, err := s.rows(ctx, r.Partition)
		if err != nil {
			return nil, err
		}
		covered := int64(-1)
		for _, row := range rows {
			if row.Last <= covered {
				continue
			}
			covered = row.Last
			p := planSegment{Partition: r.Partition, Tier: "bucket", Base: row.Base, Last: row.Last, Size: row.Size, Key: row.Key()}
			if p.clip(r); p.Bytes > 0 {
				p.price(2) // footer and trailer
				out = append(out, p)
			}
		}
	}
	return out, nil
}
