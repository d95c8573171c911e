package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// load is idempotent producers with acks=all that write to all partitions of a
// topic at a given speed, and the book of what was acknowledged. Every record
// says who wrote it and as which one, and its value follows from that: so a
// reader can tell a wrong byte, and the final check what is lost, there twice,
// out of order or invented.
type load struct {
	topic      string
	partitions int32
	blob       []byte // values are pieces of it
	acked      atomic.Int64

	mu    sync.Mutex
	books [][][]int64 // by partition and producer: the acked offsets by sequence, -1 for none
	err   error       // of a produce: there must be none
}

const (
	loadMinValue = 500
	loadMaxValue = 8 << 10
	loadBuffered = 2 << 20 // bytes that a producer has not acknowledged at most
)

func newLoad(topic string, partitions int32, producers int) *load {
	l := &load{topic: topic, partitions: partitions, blob: make([]byte, 1<<20)}
	_, _ = rand.NewChaCha8([32]byte{1}).Read(l.blob)
	l.books = make([][][]int64, partitions)
	for i := range l.books {
		l.books[i] = make([][]int64, producers)
	}
	return l
}

// value returns the value of a producer's record of a partition.
func (l *load) value(partition int32, producer, seq int) []byte {
	r := rand.NewPCG(uint64(partition)<<32|uint64(producer), uint64(seq))
	x := r.Uint64()
	n := loadMinValue + int(x>>32)%(loadMaxValue-loadMinValue)
	at := int(uint32(x)) % (len(l.blob) - n)
	return l.blob[at : at+n]
}

// produce writes at speed bytes per second until ctx ends, then waits for what
// is not acknowledged yet, at most flush.
func (l *load) produce(ctx context.Context, addr string, producer int, speed float64, flush time.Duration) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(addr), kgo.DefaultProduceTopic(l.topic), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.ProducerLinger(5*time.Millisecond))
	if err != nil {
		return err
	}
	defer cl.Close()
	began, sent := time.Now(), 0.0
	for seq := 0; ctx.Err() == nil; seq++ {
		if cl.BufferedProduceBytes() > loadBuffered { // Produce itself would wait beyond ctx
			time.Sleep(10 * time.Millisecond)
			seq--
			continue
		}
		for p := range l.partitions {
			value := l.value(p, producer, seq)
			key := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(nil, uint32(producer)), uint64(seq))
			// The record itself must not be given up with ctx.
			cl.Produce(context.Background(), &kgo.Record{Key: key, Value: value, Partition: p}, func(r *kgo.Record, err error) {
				l.note(r, producer, seq, err)
			})
			sent += float64(len(value))
		}
		ahead := time.Duration(sent/speed*float64(time.Second)) - time.Since(began)
		if ahead < -time.Second { // what was missed is not caught up
			began, sent, ahead = time.Now(), 0, 0
		}
		time.Sleep(max(ahead, 0))
	}
	fctx, cancel := context.WithTimeout(context.Background(), flush)
	defer cancel()
	if err := cl.Flush(fctx); err != nil {
		return fmt.Errorf("producer %d: %d records are still not acknowledged %v after the end: %w", producer, cl.BufferedProduceRecords(), flush, err)
	}
	return nil
}

func (l *load) note(r *kgo.Record, producer, seq int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		if l.err == nil {
			l.err = fmt.Errorf("producer %d, partition %d, record %d: %w", producer, r.Partition, seq, err)
		}
		return
	}
	book := &l.books[r.Partition][producer]
	for len(*book) <= seq {
		*book = append(*book, -1)
	}
	(*book)[seq] = r.Offset
	l.acked.Add(int64(len(r.Value)))
}

func (l *load) failure() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// records returns how many records of a partition are acknowledged; all that
// were sent, when the producers have ended.
func (l *load) records(partition int32) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, book := range l.books[partition] {
		n += len(book)
	}
	return n
}

// reading is one reader's way through a partition.
type reading struct {
	l         *load
	partition int32
	next      int64 // offset, -1 before the first record
	seqs      map[int]int
}

// add checks one record: the next offset, the next of its producer, its bytes.
func (r *reading) add(rec *kgo.Record) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%s-%d, offset %d: %s", r.l.topic, r.partition, rec.Offset, fmt.Sprintf(format, args...))
	}
	if r.next >= 0 && rec.Offset != r.next {
		return bad("want offset %d", r.next)
	}
	if len(rec.Key) != 12 {
		return bad("key %x", rec.Key)
	}
	producer, seq := int(binary.BigEndian.Uint32(rec.Key)), int(binary.BigEndian.Uint64(rec.Key[4:]))
	if want := r.l.value(r.partition, producer, seq); !bytes.Equal(rec.Value, want) {
		return bad("%d bytes that are not the %d of record %d of producer %d", len(rec.Value), len(want), seq, producer)
	}
	if last, ok := r.seqs[producer]; ok && seq != last+1 || !ok && rec.Offset == 0 && seq != 0 {
		return bad("record %d of producer %d after its %d", seq, producer, last)
	}
	r.next, r.seqs[producer] = rec.Offset+1, seq
	return nil
}

func (l *load) reading(partition int32) *reading {
	return &reading{l: l, partition: partition, next: -1, seqs: map[int]int{}}
}

// poll fetches from an offset on and gives each record to fn, until fn tells
// that it is enough or ctx ends, whose end is no error. Errors of a fetch are
// counted in errs and the fetch repeated, or returned when errs is nil.
func (l *load) poll(ctx context.Context, addr string, from []kgo.Offset, pause time.Duration, errs *atomic.Int64, fn func(*kgo.Record) (enough bool, err error)) error {
	at := map[int32]kgo.Offset{}
	for p, o := range from {
		at[int32(p)] = o
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(addr), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{l.topic: at}), kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchMaxWait(500*time.Millisecond), kgo.FetchMaxPartitionBytes(512<<10), kgo.FetchMaxBytes(2<<20), kgo.KeepRetryableFetchErrors())
	if err != nil {
		return err
	}
	defer cl.Close()
	for {
		f := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil
		}
		for _, e := range f.Errors() {
			if errs == nil {
				return e.Err
			}
			errs.Add(1)
		}
		for _, r := range f.Records() {
			if enough, err := fn(r); enough || err != nil {
				return err
			}
		}
		time.Sleep(pause)
	}
}

// readTail follows the partitions from their present ends on.
func (l *load) readTail(ctx context.Context, addr string, n, errs *atomic.Int64) error {
	var from []kgo.Offset
	var reads []*reading
	for p := range l.partitions {
		from, reads = append(from, kgo.NewOffset().AtEnd()), append(reads, l.reading(p))
	}
	return l.poll(ctx, addr, from, 20*time.Millisecond, errs, func(r *kgo.Record) (bool, error) {
		n.Add(1)
		return false, reads[r.Partition].add(r)
	})
}

// readHistory reads the partitions from their beginning on, to what was
// acknowledged when it began, and begins again.
func (l *load) readHistory(ctx context.Context, addr string, n, passes, errs *atomic.Int64) error {
	for ctx.Err() == nil {
		var from []kgo.Offset
		var reads []*reading
		var ends []int64
		left := 0
		for p := range l.partitions {
			from, reads, ends = append(from, kgo.NewOffset().At(0)), append(reads, l.reading(p)), append(ends, int64(l.records(p)))
			if ends[p] > 0 {
				left++
			}
		}
		if left == 0 {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		err := l.poll(ctx, addr, from, 20*time.Millisecond, errs, func(r *kgo.Record) (bool, error) {
			n.Add(1)
			if r.Offset == ends[r.Partition]-1 {
				left--
			}
			return left == 0, reads[r.Partition].add(r)
		})
		if err != nil {
			return err
		}
		if left == 0 {
			passes.Add(1)
		}
	}
	return nil
}

// check reads everything from offset 0 on and compares it with the books: every
// acknowledged record is there once, at its offset, in order, and no other. The
// producers have ended.
func (l *load) check(t *testing.T, addr string, limit time.Duration) {
	t.Helper()
	if err := l.failure(); err != nil {
		t.Errorf("a record was given up: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var from []kgo.Offset
	var reads []*reading
	left, total := 0, 0
	for p := range l.partitions {
		from, reads = append(from, kgo.NewOffset().At(0)), append(reads, l.reading(p))
		left += l.records(p)
	}
	total = left
	err := l.poll(ctx, addr, from, 0, nil, func(r *kgo.Record) (bool, error) {
		if err := reads[r.Partition].add(r); err != nil {
			return false, err
		}
		producer, seq := int(binary.BigEndian.Uint32(r.Key)), int(binary.BigEndian.Uint64(r.Key[4:]))
		if book := l.books[r.Partition][producer]; seq >= len(book) || book[seq] != r.Offset {
			return false, fmt.Errorf("%s-%d: record %d of producer %d at offset %d was not acknowledged there", l.topic, r.Partition, seq, producer, r.Offset)
		}
		left--
		return left == 0, nil
	})
	if err == nil && left > 0 {
		err = errors.New("time is over")
	}
	if err != nil {
		t.Errorf("final read from offset 0: %d of %d records missing: %v", left, total, err)
	}
}
