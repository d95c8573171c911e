package kafka

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memBroker is a Broker in memory whose partitions hold records.
type memBroker struct {
	*adminBroker
	auto  bool
	nodes []broker.Node
	logs  map[ids.TopicPartition]*memLog
	// leaders are the nodes that lead partitions; 0: this one.
	leaders map[ids.TopicPartition]int32
}

// Leader implements Topics.
func (b *memBroker) Leader(t *broker.Topic, p int32) (node, epoch int32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := b.leaders[ids.TopicPartition{Topic: t.ID, Partition: p}]; n != 0 {
		return n, 7
	}
	return b.adminBroker.Leader(t, p)
}

// lead makes a node lead a partition.
func (b *memBroker) lead(t *broker.Topic, p, node int32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.leaders[ids.TopicPartition{Topic: t.ID, Partition: p}] = node
}

func (b *memBroker) setNodes(nodes ...broker.Node) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.nodes = nodes
}

func (b *memBroker) elsewhere(id ids.TopicID, p int32) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.leaders[ids.TopicPartition{Topic: id, Partition: p}]
	return n != 0 && n != 1
}

// Follower gives a partition that another node leads, which is read up to its
// end and no further.
func (b *memBroker) Follower(id ids.TopicID, p int32) (Source, error) {
	if l := b.log(id, p); l != nil && b.elsewhere(id, p) {
		return memFollower{l}, nil
	}
	return nil, broker.ErrNotLeader
}

type memFollower struct{ *memLog }

func (f memFollower) Read(ctx context.Context, o broker.ReadOptions) broker.ReadResult {
	f.mu.Lock()
	end := f.next
	f.mu.Unlock()
	if o.Offset >= end {
		f.reads.Add(1)
		return broker.ReadResult{HighWatermark: end, LastStable: end, Err: broker.ErrNotLeader}
	}
	o.CurrentEpoch = -1
	return f.memLog.Read(ctx, o)
}

func newMemBroker(t *testing.T) *memBroker {
	return &memBroker{adminBroker: newAdminBroker(t), auto: true, logs: map[ids.TopicPartition]*memLog{}, leaders: map[ids.TopicPartition]int32{}}
}

func (b *memBroker) AutoCreate() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.auto
}

func (b *memBroker) setAutoCreate(on bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.auto = on
}

func (b *memBroker) Nodes() []broker.Node {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.nodes
}

func (b *memBroker) topic(name string, partitions int32) *broker.Topic {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.add(name, partitions)
}

func (b *memBroker) Topics() []*broker.Topic {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.adminBroker.Topics()
}

func (b *memBroker) Topic(name string) *broker.Topic {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.adminBroker.Topic(name)
}

func (b *memBroker) TopicByID(id ids.TopicID) *broker.Topic {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.adminBroker.TopicByID(id)
}

func (b *memBroker) CreateTopic(ctx context.Context, req metadata.CreateTopic) (*broker.Topic, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if req.Partitions > 100 {
		return nil, metadata.ErrInvalidPartitions
	}
	return b.adminBroker.CreateTopic(ctx, req)
}

func (b *memBroker) CreatePartitions(ctx context.Context, name string, total int32, validateOnly bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if total > 100 {
		return metadata.ErrInvalidPartitions
	}
	return b.adminBroker.CreatePartitions(ctx, name, total, validateOnly)
}

func (b *memBroker) DeleteTopic(ctx context.Context, id ids.TopicID) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.adminBroker.DeleteTopic(ctx, id)
}

func (b *memBroker) TopicConfigs(name string) ([]metadata.ConfigEntry, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.adminBroker.TopicConfigs(name)
}

func (b *memBroker) AlterTopicConfig(ctx context.Context, name string, ops []metadata.ConfigOp, validateOnly bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.adminBroker.AlterTopicConfig(ctx, name, ops, validateOnly)
}

func (b *memBroker) ReplaceTopicConfig(ctx context.Context, name string, configs map[string]*string, validateOnly bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.adminBroker.ReplaceTopicConfig(ctx, name, configs, validateOnly)
}

func (b *memBroker) Await(_ context.Context, id ids.TopicID, p int32) (Partition, error) {
	return b.Partition(id, p)
}

func (b *memBroker) Partition(id ids.TopicID, p int32) (Partition, error) {
	l := b.log(id, p)
	if l == nil {
		return nil, broker.ErrUnknownPartition
	}
	if b.elsewhere(id, p) {
		return nil, broker.ErrNotLeader
	}
	return l, nil
}

func (b *memBroker) log(id ids.TopicID, p int32) *memLog {
	b.mu.Lock()
	defer b.mu.Unlock()
	tp := ids.TopicPartition{Topic: id, Partition: p}
	if b.parts[tp] == nil {
		return nil
	}
	if b.logs[tp] == nil {
		b.logs[tp] = &memLog{adminPartition: b.parts[tp], watchers: map[broker.Watcher]bool{}}
	}
	return b.logs[tp]
}

// memLog is a Partition in memory.
type memLog struct {
	*adminPartition
	// ackAfter, when set, delays acknowledgements, from another goroutine.
	ackAfter func() <-chan time.Time
	// buffers, when set, is memory for reads: a place for each result.
	buffers chan struct{}
	// cold makes reads fail to find data unless they may wait, for so long.
	cold atomic.Int64
	// indexed is the end of what other agents could serve of that.
	indexed atomic.Int64
	// rooms, when set, is where rooms come from; placed counts the batches that lay
	// in theirs where it was said, at head of the last one.
	rooms        *storage.Log
	head, placed atomic.Int64

	mu       sync.Mutex
	batches  [][]byte
	next     int64
	start    int64
	watchers map[broker.Watcher]bool
	reads    atomic.Int64
	open     atomic.Int64 // results not yet released
	last     map[int64][2]int64
	wg       sync.WaitGroup
}

func (l *memLog) Room(size, head, n int) *broker.Room {
	if l.rooms == nil {
		return nil
	}
	l.head.Store(int64(head))
	return l.rooms.Room(size, head, n)
}

func (l *memLog) Produce(_ context.Context, records []byte, room *broker.Room, done func(broker.Produced)) {
	if room != nil && &records[0] == &room.B[l.head.Load()] {
		l.placed.Add(1)
	}
	h, err := batch.Validate(records)
	if err != nil {
		done(broker.Produced{BaseOffset: -1, LogAppendTime: -1, Err: err})
		return
	}
	l.mu.Lock()
	if seen, ok := l.last[h.ProducerID]; ok && h.HasProducer() && seen[0] == int64(h.BaseSequence) {
		l.mu.Unlock()
		done(broker.Produced{BaseOffset: seen[1], LogAppendTime: -1})
		return
	}
	base := l.next
	l.next += int64(h.LastOffsetDelta) + 1
	if h.HasProducer() {
		if l.last == nil {
			l.last = map[int64][2]int64{}
		}
		l.last[h.ProducerID] = [2]int64{int64(h.BaseSequence), base}
	}
	b := append([]byte(nil), records...)
	batch.Stamp(b, base, 5)
	l.batches = append(l.batches, b)
	for w := range l.watchers {
		w.Wake()
	}
	l.mu.Unlock()
	res := broker.Produced{BaseOffset: base, LogAppendTime: -1}
	if l.ackAfter == nil {
		done(res)
		return
	}
	after := l.ackAfter()
	l.wg.Add(1)
	go func() {
		defer l.wg.Done()
		<-after
		done(res)
	}()
}

func (l *memLog) Read(ctx context.Context, o broker.ReadOptions) broker.ReadResult {
	l.reads.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	res := broker.ReadResult{HighWatermark: l.next, LastStable: l.next, LogStart: l.start}
	if l.err != nil {
		res.Err = l.err
		return res
	}
	if o.CurrentEpoch >= 0 && o.CurrentEpoch != l.epoch {
		res.Err = broker.ErrFencedEpoch
		return res
	}
	if o.LastFetchedEpoch >= 0 && o.LastFetchedEpoch < l.epoch {
		res.Diverging = &broker.EpochEnd{Epoch: 3, EndOffset: 1}
		return res
	}
	if o.Offset < l.start || o.Offset > l.next {
		res.Err = broker.ErrOffsetOutOfRange
		return res
	}
	if wait := time.Duration(l.cold.Load()); wait > 0 {
		if o.CacheOnly {
			res.Tiered, res.Indexed = true, o.Offset < l.indexed.Load()
			return res
		}
		l.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		l.mu.Lock()
		if ctx.Err() != nil {
			return res
		}
	}
	size := 0
	for _, b := range l.batches {
		h, err := batch.Parse(b)
		if err != nil {
			res.Err = err
			return res
		}
		if h.LastOffset() < o.Offset {
			continue
		}
		if size+len(b) > o.MaxBytes && (size > 0 || !o.MinOneBatch) {
			break
		}
		res.Data = append(res.Data, b)
		size += len(b)
	}
	if size == 0 {
		return res
	}
	if l.buffers != nil {
		select {
		case l.buffers <- struct{}{}:
		case <-ctx.Done():
			res.Data = nil
			return res
		}
	}
	l.open.Add(1)
	res.Release = func() {
		l.open.Add(-1)
		if l.buffers != nil {
			<-l.buffers
		}
	}
	return res
}

func (l *memLog) Watch(w broker.Watcher) func() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.watchers[w] = true
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.watchers, w)
	}
}

func (l *memLog) Offset(_ context.Context, ts int64) (broker.OffsetAt, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if ts == broker.TimestampLatest {
		return broker.OffsetAt{Offset: l.next, Timestamp: -1, LeaderEpoch: l.epoch}, nil
	}
	return broker.OffsetAt{Offset: l.start, Timestamp: max(ts, -1), LeaderEpoch: l.epoch}, nil
}

// harness is a running server with its broker.
type harness struct {
	t    *testing.T
	b    *memBroker
	s    *Server
	addr string
	seen *counter
}

// counter is an Observer that counts.
type counter struct {
	mu         sync.Mutex
	codes      map[string]int
	bytes      map[string]int
	open, peak int
}

func (c *counter) Request(api string, _ int16, code int16, _ time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.codes[fmt.Sprint(api, " ", code)]++
}
func (c *counter) Produced(topic string, n int) { c.add("in "+topic, n) }
func (c *counter) Fetched(topic string, n int)  { c.add("out "+topic, n) }
func (c *counter) add(k string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bytes[k] += n
}
func (c *counter) Connections(open int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open, c.peak = open, max(c.peak, open)
}
func (c *counter) most() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.peak
}
func (c *counter) count(k string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.codes[k]
}

func serve(t *testing.T, limits Limits) *harness {
	t.Helper()
	return serveOn(t, limits, func(l net.Listener) net.Listener { return l })
}

// serveOn serves on a listener that wrap may change.
func serveOn(t *testing.T, limits Limits, wrap func(net.Listener) net.Listener) *harness {
	t.Helper()
	h := &harness{t: t, b: newMemBroker(t), seen: &counter{codes: map[string]int{}, bytes: map[string]int{}}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.addr = l.Addr().String()
	h.b.nodes = []broker.Node{{ID: 1, Host: "127.0.0.1", Port: int32(l.Addr().(*net.TCPAddr).Port), Rack: "r1"}}
	h.s = NewServer(Options{Broker: h.b, Limits: limits, Observer: h.seen})
	served := make(chan error, 1)
	go func() { served <- h.s.Serve(wrap(l)) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := h.s.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
		for tp, l := range h.b.logs {
			l.wg.Wait()
			if n := l.open.Load(); n != 0 {
				t.Errorf("%s: %d read results were not released", tp, n)
			}
		}
	})
	return h
}

// wire is a raw client connection.
type wire struct {
	t  *testing.T
	nc net.Conn
}

func (h *harness) dial() *wire {
	h.t.Helper()
	nc, err := net.Dial("tcp", h.addr)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
	return &wire{h.t, nc}
}

// frameOf encodes a request with its header.
func frameOf(req kmsg.Request, corr int32) []byte {
	return kmsg.NewRequestFormatter(kmsg.FormatterClientID("test")).AppendRequest(nil, req, corr)
}

func (w *wire) send(b []byte) {
	w.t.Helper()
	if _, err := w.nc.Write(b); err != nil {
		w.t.Fatalf("write: %v", err)
	}
}

// read returns the correlation id and the rest of the next response.
func (w *wire) read() (int32, []byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(w.nc, size[:]); err != nil {
		return 0, nil, err
	}
	b := make([]byte, binary.BigEndian.Uint32(size[:]))
	if _, err := io.ReadFull(w.nc, b); err != nil {
		return 0, nil, err
	}
	return int32(binary.BigEndian.Uint32(b)), b[4:], nil
}

// answer reads the next response into resp.
func (w *wire) answer(resp kmsg.Response) int32 {
	w.t.Helper()
	corr, b, err := w.read()
	if err != nil {
		w.t.Fatalf("read response: %v", err)
	}
	if resp.IsFlexible() && resp.Key() != kmsg.ApiVersions.Int16() {
		if b[0] != 0 {
			w.t.Fatalf("response header has tags: %x", b[0])
		}
		b = b[1:]
	}
	if err := resp.ReadFrom(b); err != nil {
		w.t.Fatalf("decode %s v%d: %v", kmsg.NameForKey(resp.Key()), resp.GetVersion(), err)
	}
	return corr
}

// ask sends a request and returns its response.
func ask[R kmsg.Response](w *wire, req kmsg.Request) R {
	w.t.Helper()
	w.send(frameOf(req, 7))
	resp := req.ResponseKind()
	if corr := w.answer(resp); corr != 7 {
		w.t.Fatalf("answer to %d, want 7", corr)
	}
	return resp.(R)
}

// wantClosed fails unless the server closes the connection soon, without an answer.
func (w *wire) wantClosed(what string) {
	w.t.Helper()
	_ = w.nc.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, b, err := w.read()
	var ne net.Error
	if err == nil {
		w.t.Fatalf("%s: answered with %x, want the connection closed", what, b)
	}
	if errors.As(err, &ne) && ne.Timeout() {
		w.t.Fatalf("%s: connection still open", what)
	}
}

// batchOf makes a valid batch of n records of size bytes each, uncompressed.
func batchOf(n, size int) []byte {
	var records []byte
	for i := range n {
		r := kmsg.Record{OffsetDelta: int32(i), Value: make([]byte, size)}
		body := r.AppendTo(nil)[1:] // without the length, which was 0
		records = binary.AppendVarint(records, int64(len(body)))
		records = append(records, body...)
	}
	rb := kmsg.RecordBatch{PartitionLeaderEpoch: -1, Magic: 2, LastOffsetDelta: int32(n - 1), FirstTimestamp: 1, MaxTimestamp: 1,
		ProducerID: -1, ProducerEpoch: -1, FirstSequence: -1, NumRecords: int32(n), Records: records}
	return sealed(rb.AppendTo(nil))
}

// sealed sets length and CRC of a batch.
func sealed(b []byte) []byte {
	binary.BigEndian.PutUint32(b[8:], uint32(len(b)-12))
	binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[21:], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func produceReq(version, acks int16, topic *broker.Topic, partition int32, records []byte) *kmsg.ProduceRequest {
	req := kmsg.NewPtrProduceRequest()
	req.Version, req.Acks, req.TimeoutMillis = version, acks, 1000
	rt := kmsg.NewProduceRequestTopic()
	rt.Topic, rt.TopicID = topic.Name, topic.ID
	rp := kmsg.NewProduceRequestTopicPartition()
	rp.Partition, rp.Records = partition, records
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	return req
}

func fetchReq(version int16, wait time.Duration, parts ...*fetchPart) *kmsg.FetchRequest {
	req := kmsg.NewPtrFetchRequest()
	req.Version, req.MaxWaitMillis, req.MinBytes, req.MaxBytes = version, int32(wait.Milliseconds()), 1, 50<<20
	req.SessionEpoch = -1
	for _, p := range parts {
		rt := kmsg.NewFetchRequestTopic()
		rt.Topic, rt.TopicID = p.name, p.id
		rp := kmsg.NewFetchRequestTopicPartition()
		rp.Partition, rp.FetchOffset, rp.PartitionMaxBytes, rp.CurrentLeaderEpoch, rp.LastFetchedEpoch = p.partition, p.offset, p.maxBytes, p.epoch, p.lastEpoch
		rt.Partitions = append(rt.Partitions, rp)
		req.Topics = append(req.Topics, rt)
	}
	return req
}

func want(t *broker.Topic, partition int32, offset int64) *fetchPart {
	return &fetchPart{name: t.Name, id: t.ID, partition: partition, offset: offset, maxBytes: 1 << 20, epoch: -1, lastEpoch: -1}
}
