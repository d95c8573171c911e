package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	chaosTopic = "chaos"
	partitions = 100
	// outstanding bounds the records that a producer holds: more than those of the longest fault.
	outstanding = 60_000
)

// groupNames are the consumer groups, by library.
var groupNames = [libraries]string{"chaos-franz", "chaos-librdkafka"}

// common are the options of all clients of franz-go.
func common(addrs []string) []kgo.Opt {
	return []kgo.Opt{kgo.SeedBrokers(addrs...), kgo.RetryBackoffFn(func(n int) time.Duration { return min(time.Duration(n)*50*time.Millisecond, 500*time.Millisecond) }),
		kgo.MetadataMinAge(50 * time.Millisecond), kgo.MetadataMaxAge(2 * time.Second), kgo.DialTimeout(3 * time.Second), kgo.RequestTimeoutOverhead(5 * time.Second)}
}

// producer is an idempotent producer of franz-go that sends evenly to all partitions until it is stopped, and
// may go on as another client.
type producer struct {
	rec    *recorder
	addrs  []string
	rate   float64 // records per second
	filler []byte

	mu     sync.Mutex
	client uint32
	cl     *kgo.Client
	seqs   []uint32
	gone   *bool // of the present client

	stop chan struct{}
	done chan struct{}
}

func startProducer(rec *recorder, addrs []string, rate float64, seed uint64) (*producer, error) {
	p := &producer{rec: rec, addrs: addrs, rate: rate, filler: make([]byte, 1<<16), stop: make(chan struct{}), done: make(chan struct{})}
	r := rand.New(rand.NewPCG(seed, 3))
	for i := range p.filler {
		p.filler[i] = byte(r.Uint32())
	}
	if err := p.begin(); err != nil {
		return nil, err
	}
	go p.run()
	return p, nil
}

// begin makes a new client.
func (p *producer) begin() error {
	cl, err := kgo.NewClient(append(common(p.addrs), kgo.RequiredAcks(kgo.AllISRAcks()), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.StopProducerOnDataLossDetected(),
		kgo.MaxBufferedRecords(outstanding), kgo.UnknownTopicRetries(-1), kgo.ProducerLinger(5*time.Millisecond), kgo.ProduceRequestTimeout(8*time.Second),
		kgo.ProducerBatchCompression(kgo.SnappyCompression()))...)
	if err != nil {
		return err
	}
	p.client, p.cl, p.seqs, p.gone = p.rec.clients.Add(1), cl, make([]uint32, partitions), new(bool)
	return nil
}

func (p *producer) run() {
	defer close(p.done)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	due, sent, last := 0.0, 0, time.Now()
	for {
		select {
		case <-p.stop:
			return
		case now := <-tick.C:
			due = min(due+now.Sub(last).Seconds()*p.rate, p.rate) // at most what a second has
			last = now
		}
		for ; due >= 1 && p.send(sent); due-- {
			sent++
		}
	}
}

// send gives the client the next record; false when it holds too many.
func (p *producer) send(n int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cl.BufferedProduceRecords() >= outstanding-1 {
		return false
	}
	to := int32(n % partitions)
	rec := Record{p.client, p.seqs[to]}
	p.seqs[to]++
	at, gone := n*31&0x7fff, p.gone
	size := 40 + int(p.filler[n&0xffff])*2
	key, value := recordKey(p.client, to), recordValue(rec, to, p.filler[at:at+size])
	e := Event{Kind: Acked, Partition: to, Record: rec, Sum: Sum(key, value)}
	p.cl.Produce(context.Background(), &kgo.Record{Topic: chaosTopic, Partition: to, Key: key, Value: value}, func(r *kgo.Record, err error) {
		if err == nil {
			e.Offset = r.Offset
			p.rec.add(e)
			return
		}
		e.Kind, e.Sum = Unknown, 0
		p.rec.add(e)
		p.mu.Lock()
		meant := *gone
		p.mu.Unlock()
		if !meant {
			p.rec.wrong("franz-go producer %d: record %d of partition %d: %v", rec.Client, rec.Seq, to, err)
		}
	})
	return true
}

// recycle gives up what is outstanding, as a process does that crashes, and goes on as another client.
func (p *producer) recycle() error {
	p.mu.Lock()
	old := p.cl
	*p.gone = true
	err := p.begin()
	p.mu.Unlock()
	old.Close()
	return err
}

func (p *producer) current() uint32 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.client
}

// finish stops sending and waits for what is outstanding.
func (p *producer) finish(ctx context.Context) error {
	close(p.stop)
	<-p.done
	err := p.cl.Flush(ctx)
	p.mu.Lock()
	*p.gone = true
	p.mu.Unlock()
	p.cl.Close()
	return err
}

// consumer is a member of the group of franz-go; it commits what it has noted.
type consumer struct {
	rec  *recorder
	who  uint16
	cl   *kgo.Client
	stop context.CancelFunc
	done chan struct{}
}

func startConsumer(rec *recorder, addrs []string, who uint16) (*consumer, error) {
	c := &consumer{rec: rec, who: who, done: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	c.stop = cancel
	var err error
	c.cl, err = kgo.NewClient(append(common(addrs), kgo.ConsumerGroup(groupNames[Franz]), kgo.ConsumeTopics(chaosTopic), kgo.ConsumeResetOffset(kgo.NoResetOffset()), kgo.DisableAutoCommit(),
		kgo.BlockRebalanceOnPoll(), kgo.SessionTimeout(6*time.Second), kgo.HeartbeatInterval(time.Second), kgo.RebalanceTimeout(10*time.Second), kgo.FetchMaxWait(200*time.Millisecond),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, given map[string][]int32) {
			for _, p := range given[chaosTopic] {
				rec.add(Event{Kind: Assigned, Library: Franz, Who: who, Partition: p})
			}
		}),
		kgo.OnPartitionsRevoked(func(ctx context.Context, _ *kgo.Client, _ map[string][]int32) { c.commit(ctx) }),
		kgo.OnPartitionsLost(func(context.Context, *kgo.Client, map[string][]int32) {}))...)
	if err != nil {
		cancel()
		return nil, err
	}
	go c.run(ctx)
	return c, nil
}

func (c *consumer) run(ctx context.Context) {
	defer close(c.done)
	last := time.Now()
	for ctx.Err() == nil {
		pctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		fetched := c.cl.PollFetches(pctx)
		cancel()
		fetched.EachPartition(c.take)
		if time.Since(last) > 500*time.Millisecond {
			c.commit(ctx)
			last = time.Now()
		}
		c.cl.AllowRebalance()
	}
	stopping, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c.commit(stopping)
	c.cl.CloseAllowingRebalance()
}

func (c *consumer) take(f kgo.FetchTopicPartition) {
	var lost *kgo.ErrDataLoss
	switch err := f.Err; {
	case err == nil || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled):
	case errors.As(err, &lost), errors.Is(err, kerr.OffsetOutOfRange):
		c.rec.wrong("franz-go consumer %d, partition %d: %v", c.who, f.Partition, err)
	default:
		c.rec.say("franz-go consumer %d, partition %d: %v", c.who, f.Partition, err)
	}
	for _, r := range f.Records {
		c.rec.add(readEvent(Franz, c.who, r, f.HighWatermark))
	}
}

// readEvent is a record that a consumer of franz-go saw below a high watermark.
func readEvent(lib uint8, who uint16, r *kgo.Record, high int64) Event {
	rec, err := parseRecord(r.Partition, r.Key, r.Value)
	e := Event{Kind: Read, Library: lib, Who: who, Partition: r.Partition, Offset: r.Offset, Record: rec, Sum: Sum(r.Key, r.Value)}
	switch {
	case err != nil:
		e.Kind = Garbled
	case r.Offset >= high:
		e.Kind = Above
	}
	return e
}

// commit commits what was taken. Who gets no answer does not know.
func (c *consumer) commit(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	offsets := c.cl.UncommittedOffsets()
	if len(offsets) == 0 {
		return
	}
	c.cl.CommitOffsetsSync(ctx, offsets, func(_ *kgo.Client, req *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) {
		if err != nil {
			c.rec.say("franz-go consumer %d: commit: %v", c.who, err)
			return
		}
		at := map[int32]int64{}
		for _, t := range req.Topics {
			for _, p := range t.Partitions {
				at[p.Partition] = p.Offset
			}
		}
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				if err := kerr.ErrorForCode(p.ErrorCode); err == nil {
					c.rec.add(Event{Kind: Committed, Who: uint16(Franz), Partition: p.Partition, Offset: at[p.Partition]})
				} else {
					c.rec.say("franz-go consumer %d: commit of partition %d: %v", c.who, p.Partition, err)
				}
			}
		}
	})
}

func (c *consumer) finish() {
	c.stop()
	<-c.done
}

// ask asks for the committed offsets of a library's group.
func ask(ctx context.Context, rec *recorder, adm *kadm.Client, lib uint8) error {
	id := Record{Seq: rec.question.Add(1)}
	rec.add(Event{Kind: Asked, Who: uint16(lib), Record: id})
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	told, err := adm.FetchOffsets(ctx, groupNames[lib])
	if err != nil {
		return err
	}
	var errs []error
	for p := range int32(partitions) {
		o, ok := told.Lookup(chaosTopic, p)
		switch {
		case !ok || o.Err == nil && o.At < 0:
			rec.add(Event{Kind: Told, Who: uint16(lib), Partition: p, Record: id, Offset: 0})
		case o.Err != nil:
			errs = append(errs, o.Err)
		default:
			rec.add(Event{Kind: Told, Who: uint16(lib), Partition: p, Record: id, Offset: o.At})
		}
	}
	return errors.Join(errs...)
}

// readAll reads the whole log, one partition's records in order, and notes it as what is there when all is over.
func readAll(ctx context.Context, rec *recorder, addrs []string, ends []int64) error {
	at := map[int32]kgo.Offset{}
	left := 0
	for p, end := range ends {
		rec.add(Event{Kind: End, Partition: int32(p), Offset: end})
		if end > 0 {
			at[int32(p)] = kgo.NewOffset().At(0)
			left++
		}
	}
	cl, err := kgo.NewClient(append(common(addrs), kgo.FetchMaxPartitionBytes(4<<20), kgo.ConsumeResetOffset(kgo.NoResetOffset()), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{chaosTopic: at}))...)
	if err != nil {
		return err
	}
	defer cl.Close()
	next := make([]int64, len(ends))
	for left > 0 {
		fetched := cl.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("read the log: %d partitions are left: %w", left, err)
		}
		for _, e := range fetched.Errors() {
			rec.say("read the log, partition %d: %v", e.Partition, e.Err)
		}
		fetched.EachRecord(func(r *kgo.Record) {
			p := r.Partition
			if r.Offset >= ends[p] || next[p] >= ends[p] {
				return
			}
			e := readEvent(Franz, 0, r, ends[p])
			if e.Kind != Garbled {
				e.Kind = Final
			}
			rec.add(e)
			if next[p] = r.Offset + 1; next[p] >= ends[p] {
				left--
			}
		})
	}
	return nil
}

func seeds(addrs []string) string { return strings.Join(addrs, ",") }
