package kafka

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// instantBroker has one topic whose partitions acknowledge without storing and
// serve one batch for ever: what is measured is the server.
type instantBroker struct {
	*memBroker
	topic *broker.Topic
	log   instantLog
}

type instantLog struct {
	*memLog
	data [][]byte
}

func (b *instantBroker) Topic(string) *broker.Topic { return b.topic }
func (b *instantBroker) Await(_ context.Context, id ids.TopicID, p int32) (Partition, error) {
	return b.Partition(id, p)
}

func (b *instantBroker) Partition(ids.TopicID, int32) (Partition, error) { return &b.log, nil }

func (l *instantLog) Produce(_ context.Context, _ []byte, _ *broker.Room, done func(broker.Produced)) {
	done(broker.Produced{LogAppendTime: -1})
}

func (l *instantLog) Room(int, int, int) *broker.Room { return nil }

func (l *instantLog) Read(context.Context, broker.ReadOptions) broker.ReadResult {
	return broker.ReadResult{HighWatermark: 1 << 40, LastStable: 1 << 40, Data: l.data}
}

// repeat sends frame b.N times with some in flight and takes the answers.
func repeat(b *testing.B, frame []byte, size int) {
	h := newAdminBroker(&testing.T{})
	ib := &instantBroker{memBroker: &memBroker{adminBroker: h}, topic: &broker.Topic{Name: "logs", ID: [16]byte{1}, Partitions: 1}}
	ib.log.data = [][]byte{batchOf(1, size)}
	s := NewServer(Options{Broker: ib})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go s.Serve(l)
	defer s.Shutdown(context.Background())
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer nc.Close()
	slots := make(chan struct{}, 64)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	b.ResetTimer()
	go func() {
		for range b.N {
			slots <- struct{}{}
			if _, err := nc.Write(frame); err != nil {
				return
			}
		}
	}()
	head, body := make([]byte, 4), make([]byte, 2<<20)
	for range b.N {
		if _, err := io.ReadFull(nc, head); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(nc, body[:binary.BigEndian.Uint32(head)]); err != nil {
			b.Fatal(err)
		}
		<-slots
	}
	b.StopTimer()
}

func BenchmarkProduce(b *testing.B) {
	topic := &broker.Topic{Name: "logs", ID: [16]byte{1}}
	for name, size := range map[string]int{"1KiB": 1 << 10, "64KiB": 64 << 10, "1MiB": 1 << 20} {
		b.Run(name, func(b *testing.B) { repeat(b, frameOf(produceReq(9, -1, topic, 0, batchOf(1, size)), 1), size) })
	}
}

func BenchmarkFetch(b *testing.B) {
	topic := &broker.Topic{Name: "logs", ID: [16]byte{1}}
	for name, size := range map[string]int{"1KiB": 1 << 10, "64KiB": 64 << 10, "1MiB": 1 << 20} {
		b.Run(name, func(b *testing.B) { repeat(b, frameOf(fetchReq(12, time.Second, want(topic, 0, 0)), 1), size) })
	}
}

// A produce request costs few allocations (the goal is fewer than 15).
func TestProduceAllocations(t *testing.T) {
	if underRace {
		t.Skip("the race detector drops what is pooled, so requests allocate more")
	}
	topic := &broker.Topic{Name: "logs", ID: [16]byte{1}}
	r := testing.Benchmark(func(b *testing.B) { repeat(b, frameOf(produceReq(9, -1, topic, 0, batchOf(1, 1000)), 1), 1000) })
	if n := r.AllocsPerOp(); n > 6 {
		t.Errorf("%d allocations per produce request", n)
	}
}

// So does a fetch request, whose records are not copied.
func TestFetchAllocations(t *testing.T) {
	if underRace {
		t.Skip("the race detector drops what is pooled, so requests allocate more")
	}
	topic := &broker.Topic{Name: "logs", ID: [16]byte{1}}
	r := testing.Benchmark(func(b *testing.B) { repeat(b, frameOf(fetchReq(12, time.Second, want(topic, 0, 0)), 1), 64<<10) })
	if n := r.AllocsPerOp(); n > 25 {
		t.Errorf("%d allocations per fetch request", n)
	}
	if n := r.AllocedBytesPerOp(); n > 4<<10 {
		t.Errorf("%d bytes are allocated per fetch of 64 KiB: are the records copied?", n)
	}
}
