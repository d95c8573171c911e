package e2e

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// A value of the kill tests: producer u32, partition u32, sequence u64, random
// bytes, CRC32C of all before it; big-endian.
const (
	stampHead = 16
	stampTail = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// stamp says who sent a record, and as the how manieth of its partition.
type stamp struct {
	producer, partition uint32
	seq                 uint64
}

func (s stamp) value(r *rand.Rand, payload int) []byte {
	b := make([]byte, stampHead, stampHead+payload+8+stampTail)
	binary.BigEndian.PutUint32(b, s.producer)
	binary.BigEndian.PutUint32(b[4:], s.partition)
	binary.BigEndian.PutUint64(b[8:], s.seq)
	for len(b) < stampHead+payload {
		b = binary.LittleEndian.AppendUint64(b, r.Uint64())
	}
	b = b[:stampHead+payload]
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func parseStamp(b []byte) (s stamp, sum uint32, err error) {
	if len(b) < stampHead+stampTail {
		return s, 0, fmt.Errorf("value of %d bytes", len(b))
	}
	body := b[:len(b)-stampTail]
	sum = binary.BigEndian.Uint32(b[len(body):])
	if crc32.Checksum(body, castagnoli) != sum {
		return s, 0, errors.New("value with a wrong checksum")
	}
	return stamp{binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint64(b[8:])}, sum, nil
}

// failures keeps the errors of a test's other goroutines.
type failures struct {
	t    *testing.T
	mu   sync.Mutex
	errs []error
}

// fail keeps an error; it may be called from any goroutine.
func (f *failures) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.errs) < 10 {
		f.errs = append(f.errs, err)
	}
}

// check fails the test if there was one.
func (f *failures) check() {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := errors.Join(f.errs...); err != nil {
		f.t.Fatal(err)
	}
}

// ledger has what was sent and what was acknowledged. It is safe for
// concurrent use.
type ledger struct {
	partitions int
	total      atomic.Int64 // records acknowledged
	calm       atomic.Bool  // producers send only now and then

	mu    sync.Mutex
	lanes [][]lane // by producer and partition
}

// lane is what one producer did in one partition.
type lane struct {
	sent  uint64  // records given to the client
	acked []int64 // offsets of the acknowledged ones, by sequence
}

func (l *ledger) newProducer() uint32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lanes = append(l.lanes, make([]lane, l.partitions))
	return uint32(len(l.lanes) - 1)
}

// next takes the next sequence of a lane.
func (l *ledger) next(producer uint32, partition int) stamp {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := &l.lanes[producer][partition]
	a.sent++
	return stamp{producer, uint32(partition), a.sent - 1}
}

// ack notes an acknowledgement; those of a lane come in order.
func (l *ledger) ack(s stamp, offset int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := &l.lanes[s.producer][s.partition]
	if s.seq != uint64(len(a.acked)) {
		return fmt.Errorf("producer %d, partition %d: acknowledged record %d after %d", s.producer, s.partition, s.seq, len(a.acked))
	}
	if n := len(a.acked); n > 0 && offset <= a.acked[n-1] {
		return fmt.Errorf("producer %d, partition %d: record %d was acknowledged at offset %d, the one before at %d", s.producer, s.partition, s.seq, offset, a.acked[n-1])
	}
	a.acked = append(a.acked, offset)
	l.total.Add(1)
	return nil
}

// audit is a reading of one partition from its first offset on, against the
// ledger. Every lane must be read as 0, 1, 2, …: nothing is missing between two
// of its records, and no record is there twice.
type audit struct {
	l         *ledger
	partition int
	must      []int // records per producer that were acknowledged when the audit began
	next      []uint64
	sums      []uint32 // of the values, by offset
}

func (l *ledger) audit(partition int) *audit {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := &audit{l: l, partition: partition}
	a.expectLocked()
	return a
}

// expect makes everything that is acknowledged now a duty of the reading to come.
func (a *audit) expect() {
	a.l.mu.Lock()
	defer a.l.mu.Unlock()
	a.expectLocked()
}

func (a *audit) expectLocked() {
	a.must = a.must[:0]
	for i := range a.l.lanes {
		a.must = append(a.must, len(a.l.lanes[i][a.partition].acked))
	}
	for len(a.next) < len(a.must) {
		a.next = append(a.next, 0)
	}
}

// add takes the record at the next offset.
func (a *audit) add(offset int64, value []byte) error {
	if want := int64(len(a.sums)); offset != want {
		return fmt.Errorf("partition %d: offset %d, want %d", a.partition, offset, want)
	}
	s, sum, err := parseStamp(value)
	if err != nil {
		return fmt.Errorf("partition %d, offset %d: %w", a.partition, offset, err)
	}
	a.sums = append(a.sums, sum)
	if int(s.partition) != a.partition || int(s.producer) >= len(a.next) {
		return fmt.Errorf("partition %d, offset %d: a record of producer %d to partition %d", a.partition, offset, s.producer, s.partition)
	}
	if want := a.next[s.producer]; s.seq != want {
		return fmt.Errorf("partition %d, offset %d: record %d of producer %d, want %d", a.partition, offset, s.seq, s.producer, want)
	}
	a.next[s.producer]++
	a.l.mu.Lock()
	defer a.l.mu.Unlock()
	lane := &a.l.lanes[s.producer][a.partition]
	if s.seq >= lane.sent {
		return fmt.Errorf("partition %d, offset %d: producer %d has sent %d records, this is %d", a.partition, offset, s.producer, lane.sent, s.seq)
	}
	if s.seq < uint64(len(lane.acked)) && lane.acked[s.seq] != offset {
		return fmt.Errorf("partition %d, offset %d: record %d of producer %d was acknowledged at offset %d", a.partition, offset, s.seq, s.producer, lane.acked[s.seq])
	}
	return nil
}

// end tells whether everything that had to be there was read.
func (a *audit) end() error {
	for p, must := range a.must {
		if a.next[p] < uint64(must) {
			return fmt.Errorf("partition %d: producer %d has %d acknowledged records, %d are there", a.partition, p, must, a.next[p])
		}
	}
	return nil
}

// loader is one idempotent producer with acks=all that sends at random until
// it is stopped. Its client retries for ever, over any restart of the node.
type loader struct {
	id    uint32
	l     *ledger
	topic string
	cl    *kgo.Client
	rand  *rand.Rand
	fail  func(error)

	stop chan struct{}
	done chan struct{}
	gone atomic.Bool // its outstanding records may fail
}

// startLoader starts a producer; fail may be called from any goroutine.
func (l *ledger) startLoader(addr, topic string, r *rand.Rand, fail func(error)) (*loader, error) {
	codecs := []kgo.CompressionCodec{kgo.NoCompression(), kgo.Lz4Compression(), kgo.SnappyCompression(), kgo.ZstdCompression()}
	cl, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(addr, ",")...), kgo.RequiredAcks(kgo.AllISRAcks()), kgo.StopProducerOnDataLossDetected(),
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.MaxBufferedRecords(2000), kgo.UnknownTopicRetries(-1),
		kgo.ProducerBatchCompression(codecs[r.IntN(len(codecs))]), kgo.ProducerLinger(time.Duration(r.IntN(6))*time.Millisecond),
		kgo.RetryBackoffFn(func(int) time.Duration { return 50 * time.Millisecond }), kgo.MetadataMinAge(50*time.Millisecond),
		kgo.ProduceRequestTimeout(20*time.Second), kgo.DialTimeout(5*time.Second))
	if err != nil {
		return nil, err
	}
	p := &loader{id: l.newProducer(), l: l, topic: topic, cl: cl, rand: r, fail: fail, stop: make(chan struct{}), done: make(chan struct{})}
	go p.run()
	return p, nil
}

func (p *loader) run() {
	defer close(p.done)
	for {
		largest, burst := 1<<p.rand.IntN(14), 1+p.rand.IntN(300) // sizes differ from burst to burst
		pause := time.Duration(p.rand.IntN(10)) * time.Millisecond
		if p.l.calm.Load() {
			burst, pause = 1, pause+10*time.Millisecond
		}
		for range burst {
			select {
			case <-p.stop:
				return
			default:
			}
			p.send(p.rand.IntN(largest))
		}
		select {
		case <-p.stop:
			return
		case <-time.After(pause):
		}
	}
}

func (p *loader) send(payload int) {
	switch p.rand.IntN(3000) {
	case 0: // large enough to be written to its segment at once
		payload = p.rand.IntN(900 << 10)
	case 1, 2, 3, 4, 5, 6:
		payload = p.rand.IntN(100 << 10)
	}
	s := p.l.next(p.id, p.rand.IntN(p.l.partitions))
	r := &kgo.Record{Topic: p.topic, Partition: int32(s.partition), Value: s.value(p.rand, payload)}
	p.cl.Produce(context.Background(), r, func(r *kgo.Record, err error) {
		if err == nil {
			err = p.l.ack(s, r.Offset)
		} else if p.gone.Load() {
			return
		}
		if err != nil {
			p.fail(fmt.Errorf("producer %d: %w", p.id, err))
		}
	})
}

// finish stops sending and waits until everything sent is acknowledged.
func (p *loader) finish(ctx context.Context) error {
	close(p.stop)
	defer p.cl.Close()
	select {
	case <-p.done:
		if err := p.cl.Flush(ctx); err != nil {
			return fmt.Errorf("flush producer %d: %w", p.id, err)
		}
		return nil
	case <-ctx.Done():
		p.gone.Store(true)
		p.cl.Close()
		<-p.done
		return fmt.Errorf("finish producer %d: %w", p.id, ctx.Err())
	}
}

// abandon ends the producer as if it had crashed: what is not acknowledged may
// be in the log or not.
func (p *loader) abandon() {
	p.gone.Store(true)
	close(p.stop)
	p.cl.Close()
	<-p.done
}

// eachRecord reads the records of a partition from offset at, below offset end.
func eachRecord(addr, topic string, partition int32, at, end int64, f func(*kgo.Record) error) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(addr, ",")...), kgo.FetchMaxPartitionBytes(8<<20), kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {partition: kgo.NewOffset().At(at)}}))
	if err != nil {
		return err
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), fetchLimit+time.Duration(end-at)*100*time.Microsecond)
	defer cancel()
	for at < end {
		fetched := cl.PollFetches(ctx)
		if err := fetched.Err(); err != nil {
			return fmt.Errorf("read %s-%d, at offset %d of %d: %w", topic, partition, at, end, err)
		}
		for _, r := range fetched.Records() {
			if at = r.Offset + 1; r.Offset < end {
				if err := f(r); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
