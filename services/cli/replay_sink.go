package cli

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// replaySink is where replay writes to.
type replaySink interface {
	// write takes a record, which is valid during the call only.
	write(ctx context.Context, r *kgo.Record) error
	// flush returns when all that was written has arrived: for files on disk,
	// for topics acknowledged. size is the length of the file, 0 otherwise.
	flush(ctx context.Context) (size int64, err error)
	close() error
}

// streamSink prints records to stdout or a file.
type streamSink struct {
	format *kgo.RecordFormatter
	w      *bufio.Writer
	file   *os.File // nil: stdout
	size   int64
	line   []byte
}

func newStdoutSink(w io.Writer, format *kgo.RecordFormatter) *streamSink {
	return &streamSink{format: format, w: bufio.NewWriterSize(w, 256<<10)}
}

// newFileSink opens path and cuts it at size, where a checkpoint says that what
// is known to be written ends.
func newFileSink(path string, size int64, format *kgo.RecordFormatter) (*streamSink, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open output: %w", err)
	}
	fi, err := f.Stat()
	if err == nil && fi.Mode().IsRegular() {
		if fi.Size() < size {
			err = fmt.Errorf("%s has %d bytes, but the checkpoint says that %d were written: it is another file or was changed", path, fi.Size(), size)
		} else if err = f.Truncate(size); err == nil {
			_, err = f.Seek(size, io.SeekStart)
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("open output: %w", err)
	}
	return &streamSink{format: format, w: bufio.NewWriterSize(f, 1<<20), file: f, size: size}, nil
}

func (s *streamSink) write(_ context.Context, r *kgo.Record) error {
	s.line = s.format.AppendRecord(s.line[:0], r)
	n, err := s.w.Write(s.line)
	s.size += int64(n)
	if err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

func (s *streamSink) flush(context.Context) (int64, error) {
	if err := s.w.Flush(); err != nil {
		return 0, fmt.Errorf("write output: %w", err)
	}
	if s.file == nil {
		return 0, nil
	}
	if fi, err := s.file.Stat(); err != nil || !fi.Mode().IsRegular() {
		return s.size, err
	}
	if err := s.file.Sync(); err != nil {
		return 0, fmt.Errorf("sync output: %w", err)
	}
	return s.size, nil
}

func (s *streamSink) close() error {
	if s.file == nil {
		return nil
	}
	return s.file.Close()
}

// sinkTimeout is when --to-topic gives up on a record.
const sinkTimeout = 2 * time.Minute

// topicSink produces to another topic: partition n goes to partition n, modulo
// how many the target has, so that the order of a partition stays.
type topicSink struct {
	cl         *kgo.Client
	topic      string
	partitions int32
	out        outcome
}

func (a *app) newTopicSink(ctx context.Context, topic, codec string) (*topicSink, error) {
	c, err := parseCodec(codec)
	if err != nil {
		return nil, err
	}
	s := &topicSink{topic: topic}
	var limit int32
	err = a.withAdmin(ctx, func(ctx context.Context, adm *kadm.Client) error {
		d, err := oneTopic(ctx, adm, topic)
		if err != nil {
			return err
		}
		s.partitions = int32(len(d.Partitions))
		limit, err = maxBatch(ctx, adm, topic)
		return err
	})
	if err != nil {
		return nil, err
	}
	s.cl, err = a.client(ctx, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchCompression(c), kgo.ProducerBatchMaxBytes(limit),
		kgo.RecordDeliveryTimeout(sinkTimeout), giveUp())
	return s, err
}

// maxBatch is the largest batch a topic takes, in bytes.
func maxBatch(ctx context.Context, adm *kadm.Client, topic string) (int32, error) {
	configs, err := topicConfigs(ctx, adm, topic)
	if err != nil {
		return 0, err
	}
	for _, c := range configs {
		if n, err := strconv.ParseInt(c.MaybeValue(), 10, 32); c.Key == "max.message.bytes" && err == nil && n > 0 {
			return int32(min(n, 64<<20)), nil
		}
	}
	return 1_000_000, nil
}

func (s *topicSink) write(ctx context.Context, r *kgo.Record) error {
	if s.out.failed.Load() > 0 {
		return s.out.err()
	}
	c := &kgo.Record{Topic: s.topic, Partition: r.Partition % s.partitions, Timestamp: r.Timestamp, Key: bytes.Clone(r.Key), Value: bytes.Clone(r.Value)}
	for _, h := range r.Headers {
		c.Headers = append(c.Headers, kgo.RecordHeader{Key: h.Key, Value: bytes.Clone(h.Value)})
	}
	s.cl.Produce(ctx, c, s.out.done)
	return nil
}

func (s *topicSink) flush(ctx context.Context) (int64, error) {
	if err := s.cl.Flush(ctx); err != nil {
		return 0, fmt.Errorf("flush to topic %s: %w", s.topic, err)
	}
	return 0, s.out.err()
}

func (s *topicSink) close() error {
	s.cl.Close()
	return nil
}
