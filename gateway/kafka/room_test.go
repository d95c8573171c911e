package kafka

import (
	"bytes"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/storage/vfs"
)

// roomLog is a log that gives two rooms at once.
func roomLog(t *testing.T) *storage.Log {
	t.Helper()
	mem := vfs.NewMem()
	if err := mem.MkdirAll("/data"); err != nil {
		t.Fatal(err)
	}
	s, err := storage.Open(storage.Options{FS: mem, Dir: "/data", WALSize: 8 << 20, TailBytes: 128 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	l, err := s.Create(ids.TopicPartition{Topic: ids.TopicID{1}}, storage.LogConfig{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// A large Produce request of any version is read into its room, and gives it back.
func TestLargeProduceGetsRoom(t *testing.T) {
	h := serve(t, Limits{})
	topic := h.b.topic("logs", 1)
	l := h.b.log(topic.ID, 0)
	l.rooms = roomLog(t)
	w := h.dial()
	records := batchOf(1, 400<<10)
	small := batchOf(1, 10<<10)
	want := int64(0)
	for range 2 {
		for v := int16(minProduceVersion); v <= maxProduceVersion; v++ {
			for _, b := range [][]byte{records, small} {
				resp := ask[*kmsg.ProduceResponse](w, produceReq(v, -1, topic, 0, b))
				if code := resp.Topics[0].Partitions[0].ErrorCode; code != 0 {
					t.Fatalf("version %d: error code %d", v, code)
				}
			}
			if want++; l.placed.Load() != want {
				t.Fatalf("version %d: %d batches in their rooms, want %d", v, l.placed.Load(), want)
			}
		}
	}
	// More partitions than one: the second one's name must outlive the first one's batch.
	two := produceReq(9, -1, topic, 0, records)
	two.Topics = append(two.Topics, two.Topics[0])
	ask[*kmsg.ProduceResponse](w, two)
	if l.placed.Load() != want {
		t.Error("a request with two topics was read into a room")
	}
	// A sender that goes away in the middle.
	cut := h.dial()
	cut.send(frameOf(produceReq(9, -1, topic, 0, records), 1)[:200<<10])
	time.Sleep(20 * time.Millisecond)
	cut.nc.Close()
	var rooms []*storage.Room
	for end := time.Now().Add(10 * time.Second); len(rooms) < 2 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		if r := l.rooms.Room(len(records)+100, 100, len(records)); r != nil {
			rooms = append(rooms, r)
		}
	}
	if len(rooms) != 2 {
		t.Errorf("%d rooms left of 2: some were not given back", len(rooms))
	}
	for _, r := range rooms {
		r.Release()
	}
}

// FuzzProduceHead: where the beginning of a request says that its records are, they are.
func FuzzProduceHead(f *testing.F) {
	frames := fuzzed()
	for _, frame := range captured(f) {
		frames = append(frames, frame)
	}
	for _, frame := range frames {
		if frame[4] == 0 && frame[5] == 0 {
			f.Add(frame[4:])
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 8 || b[0] != 0 || b[1] != 0 {
			return
		}
		p, ok := parseProduceHead(b[:min(len(b), headPeek)], len(b))
		if !ok {
			return
		}
		h, err := parseHeader(b)
		if err == nil && h.version >= 9 {
			h.body, err = skipTags(h.body)
		}
		if err != nil {
			t.Fatalf("a head without a header: %v", err)
		}
		req := kmsg.NewPtrProduceRequest()
		req.SetVersion(h.version)
		if checkProduce(h.body, h.version) != nil || req.ReadFrom(h.body) != nil {
			return // not a whole request
		}
		if len(req.Topics) != 1 || len(req.Topics[0].Partitions) != 1 {
			t.Fatalf("%d topics", len(req.Topics))
		}
		topic, part := req.Topics[0], req.Topics[0].Partitions[0]
		if topic.Topic != p.topic.Topic || topic.TopicID != p.topic.TopicID || part.Partition != p.partition || !bytes.Equal(part.Records, b[p.head:][:p.size]) {
			t.Fatalf("%+v is not what is in the request", p)
		}
	})
}
