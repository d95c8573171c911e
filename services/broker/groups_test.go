package broker

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/services/group"
	"github.com/cirrolog/cirrolog/storage/batch"
)

// memoryLog is a partition in memory. A gate, if there is one, holds appends
// until it is closed.
type memoryLog struct {
	mu      sync.Mutex
	batches [][]byte
	end     int64
	max     int
	fail    error
	gate    chan struct{}
	loads   int // reads of the first offset
}

func (l *memoryLog) Bounds() (start, end int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return 0, l.end
}

func (l *memoryLog) MaxBytes() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.max
}

func (l *memoryLog) set(change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
}

func (l *memoryLog) Produce(_ context.Context, records []byte, _ *Room, done func(Produced)) {
	l.mu.Lock()
	gate, fail := l.gate, l.fail
	if fail == nil && len(records) > l.max {
		fail = ErrMessageTooLarge
	}
	if fail == nil {
		h, err := batch.Parse(records)
		if err != nil {
			fail = err
		} else {
			b := bytes.Clone(records)
			binary.BigEndian.PutUint64(b, uint64(l.end)) // the base offset
			l.batches, l.end = append(l.batches, b), l.end+int64(h.LastOffsetDelta)+1
		}
	}
	l.mu.Unlock()
	if gate != nil {
		<-gate
	}
	done(Produced{Err: fail})
}

func (l *memoryLog) Read(_ context.Context, o ReadOptions) ReadResult {
	l.mu.Lock()
	defer l.mu.Unlock()
	if o.Offset == 0 {
		l.loads++
	}
	for _, b := range l.batches {
		h, err := batch.Parse(b)
		if err != nil || h.LastOffset() >= o.Offset {
			return ReadResult{Data: [][]byte{b}, Err: err}
		}
	}
	return ReadResult{Err: ErrOffsetOutOfRange}
}

// servedPartition is a coordinator on a log in memory.
func servedPartition(t testing.TB, log *memoryLog) (p *groupPartition, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	o := GroupOptions{Config: group.Config{NewID: newMemberID}}
	o.setDefaults()
	p = newGroupPartition(ctx, &o, log, slog.New(slog.DiscardHandler), func(topic string) bool { return topic != "gone" })
	var wg sync.WaitGroup
	wg.Go(p.run)
	stop = func() {
		cancel()
		wg.Wait()
	}
	t.Cleanup(stop)
	if err := p.ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	return p, stop
}

// commitOffset commits an offset of partition 0 and returns what became of it.
func commitOffset(p *groupPartition, id, topic string, offset int64, note string) error {
	req := group.CommitRequest{Version: 9, GroupID: id, Generation: -1, Topics: []group.CommitTopic{{Name: topic,
		Partitions: []group.CommitPartition{{Offset: offset, LeaderEpoch: -1, Metadata: note}}}}}
	r, err := p.ask(context.Background(), context.Background(), func(c *group.Coordinator, t group.Ticket, now time.Time) group.Effects { return c.Commit(t, req, now) })
	if err != nil {
		return err
	}
	return r.(*group.CommitResponse).Topics[0].Partitions[0].Err
}

// offsetOf is what a group has committed of partition 0, -1 for none.
func offsetOf(t *testing.T, p *groupPartition, id, topic string) (offset int64) {
	t.Helper()
	if err := p.ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.with(func(c *group.Coordinator, _ time.Time) (fx group.Effects) {
		offset = c.FetchOffsets(group.FetchRequest{GroupID: id, Topics: []group.TopicPartitions{{Name: topic, Partitions: []int32{0}}}})[0].Partitions[0].Offset
		return fx
	}); err != nil {
		t.Fatal(err)
	}
	return offset
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not in 20 s", what)
		}
	}
}

// A write that fails is told, and the coordinator begins again from the log:
// it forgets the member whose assignment is not there.
func TestGroupWriteFails(t *testing.T) {
	log := &memoryLog{max: 1 << 20}
	p, _ := servedPartition(t, log)
	if err := commitOffset(p, "g", "a", 5, ""); err != nil {
		t.Fatal(err)
	}
	join := group.JoinRequest{Version: 3, GroupID: "g", SessionTimeout: time.Minute, RebalanceTimeout: time.Minute, ProtocolType: "consumer",
		Protocols: []group.Protocol{{Name: "range"}}}
	r, err := p.ask(t.Context(), t.Context(), func(c *group.Coordinator, tk group.Ticket, now time.Time) group.Effects { return c.Join(tk, join, now) })
	if err != nil || r.(*group.JoinResponse).Err != nil {
		t.Fatal(err, r)
	}
	log.set(func() { log.fail = errors.New("disk on fire") })
	member := r.(*group.JoinResponse)
	sync := group.SyncRequest{GroupID: "g", MemberID: member.MemberID, Generation: member.Generation}
	r, err = p.ask(t.Context(), t.Context(), func(c *group.Coordinator, tk group.Ticket, now time.Time) group.Effects { return c.Sync(tk, sync, now) })
	if err != nil || !errors.Is(r.(*group.SyncResponse).Err, group.ErrCoordinatorNotAvailable) {
		t.Errorf("sync: %+v, %v", r, err)
	}
	log.set(func() { log.fail = nil })
	eventually(t, "commits work again", func() bool { return commitOffset(p, "h", "a", 1, "") == nil })
	var d group.Description
	_ = p.with(func(c *group.Coordinator, _ time.Time) (fx group.Effects) {
		d, _ = c.Describe("g")
		return fx
	})
	if d.State != group.Empty || len(d.Members) != 0 || offsetOf(t, p, "g", "a") != 5 {
		t.Errorf("after the failure: %+v, offset %d", d, offsetOf(t, p, "g", "a"))
	}
}

// A record that the log does not take fails alone: its neighbours are written
// and nothing is loaded again.
func TestGroupRecordTooLarge(t *testing.T) {
	log := &memoryLog{max: 1 << 20}
	p, stop := servedPartition(t, log)
	if err := commitOffset(p, "g", "a", 1, ""); err != nil {
		t.Fatal(err)
	}
	gate := make(chan struct{})
	open := sync.OnceFunc(func() { close(gate) })
	t.Cleanup(open)
	log.set(func() { log.max, log.gate = 600, gate })
	var wg sync.WaitGroup
	var small, large atomic.Int32
	wg.Go(func() { // holds the log, so that the others are queued
		if err := commitOffset(p, "first", "a", 1, ""); err != nil {
			t.Error(err)
		}
	})
	eventually(t, "the first to be on its way", func() bool { _, end := log.Bounds(); return end == 2 })
	for i := range 20 {
		wg.Go(func() {
			if err := commitOffset(p, fmt.Sprint("g", i), "a", int64(i), ""); err != nil {
				t.Error(err)
			}
			small.Add(1)
		})
		wg.Go(func() {
			if err := commitOffset(p, fmt.Sprint("l", i), "a", int64(i), strings.Repeat("x", 1000)); !errors.Is(err, group.ErrInvalidCommitOffsetSize) {
				t.Errorf("a record that is too large: %v", err)
			}
			large.Add(1)
		})
	}
	eventually(t, "all to be queued", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.queue) == 40
	})
	open()
	wg.Wait()
	if small.Load() != 20 || large.Load() != 20 || log.loads > 1 {
		t.Errorf("%d and %d answers, %d loads", small.Load(), large.Load(), log.loads)
	}
	if n := len(log.batches); n < 5 || n > 12 { // of 600 bytes at most
		t.Errorf("%d batches", n)
	}
	stop()
	log.set(func() { log.gate = nil })
	p, _ = servedPartition(t, log)
	for i := range 20 {
		if got := offsetOf(t, p, fmt.Sprint("g", i), "a"); got != int64(i) || offsetOf(t, p, fmt.Sprint("l", i), "a") != -1 {
			t.Errorf("group %d: offset %d after another load", i, got)
		}
	}
}

// Requests that wait are answered when the partition is given up, and what was
// under way in the log is seen by the next load.
func TestGroupPartitionGivenUp(t *testing.T) {
	gate := make(chan struct{})
	log := &memoryLog{max: 1 << 20, gate: gate}
	p, stop := servedPartition(t, log)
	answered := make(chan error, 1)
	go func() { answered <- commitOffset(p, "g", "a", 5, "") }()
	eventually(t, "the commit is on its way", func() bool { _, end := log.Bounds(); return end == 1 })
	time.AfterFunc(20*time.Millisecond, func() { close(gate) })
	stop()
	if err := <-answered; err != nil && !errors.Is(err, group.ErrNotCoordinator) {
		t.Errorf("the commit that waited: %v", err)
	}
	if err := commitOffset(p, "g", "a", 6, ""); !errors.Is(err, group.ErrNotCoordinator) {
		t.Errorf("a commit afterwards: %v", err)
	}
	if err := p.ready(t.Context()); !errors.Is(err, group.ErrNotCoordinator) {
		t.Errorf("ready afterwards: %v", err)
	}
	log.set(func() { log.gate = nil })
	p, _ = servedPartition(t, log)
	if got := offsetOf(t, p, "g", "a"); got != 5 {
		t.Errorf("offset %d after the next load", got)
	}
}

// Offsets of topics that were deleted while the partition was not loaded go.
func TestGroupOrphans(t *testing.T) {
	log := &memoryLog{max: 1 << 20}
	p, stop := servedPartition(t, log)
	for _, topic := range []string{"a", "gone"} {
		if err := commitOffset(p, "g", topic, 5, ""); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	p, _ = servedPartition(t, log)
	eventually(t, "the orphan is gone", func() bool { return offsetOf(t, p, "g", "gone") == -1 })
	if got := offsetOf(t, p, "g", "a"); got != 5 {
		t.Errorf("the other topic has offset %d", got)
	}
}

// BenchmarkGroupLoad loads 100,000 committed offsets of 100 groups.
func BenchmarkGroupLoad(b *testing.B) {
	log := &memoryLog{max: 1 << 20}
	p, stop := servedPartition(b, log)
	for i := range 100 {
		req := group.CommitRequest{Version: 9, GroupID: fmt.Sprint("group-", i), Generation: -1, Topics: []group.CommitTopic{{Name: "orders"}}}
		for n := range int32(1000) {
			req.Topics[0].Partitions = append(req.Topics[0].Partitions, group.CommitPartition{Partition: n, Offset: 7, LeaderEpoch: 1})
		}
		if _, err := p.ask(b.Context(), b.Context(), func(c *group.Coordinator, t group.Ticket, now time.Time) group.Effects { return c.Commit(t, req, now) }); err != nil {
			b.Fatal(err)
		}
	}
	stop()
	p.ctx = b.Context()
	b.ReportAllocs()
	for b.Loop() {
		p.c, p.loaded = nil, make(chan struct{})
		if err := p.load(); err != nil {
			b.Fatal(err)
		}
	}
	if s := p.c.Stats(); s.Offsets != 100_000 {
		b.Fatalf("%+v", s)
	}
}
