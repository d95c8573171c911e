package kafka

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/services/broker"
)

func TestProduceErrors(t *testing.T) {
	h := serve(t, Limits{})
	topic := h.b.topic("logs", 1)
	w := h.dial()
	good := batchOf(2, 10)
	change := func(at int, b byte, seal bool) []byte {
		out := append([]byte(nil), good...)
		out[at] = b
		if seal {
			sealed(out)
		}
		return out
	}
	for name, c := range map[string]struct {
		version, acks int16
		topic         string
		partition     int32
		records       []byte
		want          *kerr.Error
	}{
		"good":               {9, -1, "logs", 0, good, nil},
		"acks 2":             {9, 2, "logs", 0, good, kerr.InvalidRequiredAcks},
		"acks -2":            {9, -2, "logs", 0, good, kerr.InvalidRequiredAcks},
		"no topic":           {9, 1, "missing", 0, good, kerr.UnknownTopicOrPartition},
		"bad name":           {9, 1, "../x", 0, good, kerr.InvalidTopicException},
		"no partition":       {9, 1, "logs", 1, good, kerr.UnknownTopicOrPartition},
		"negative partition": {9, 1, "logs", -1, good, kerr.UnknownTopicOrPartition},
		"no topic id":        {13, 1, "missing", 0, good, kerr.UnknownTopicID},
		"no records":         {9, 1, "logs", 0, nil, kerr.InvalidRecord},
		"cut off":            {9, 1, "logs", 0, good[:len(good)-1], kerr.CorruptMessage},
		"flipped":            {9, 1, "logs", 0, change(len(good)-1, 9, false), kerr.CorruptMessage},
		"magic 1":            {9, 1, "logs", 0, change(16, 1, true), kerr.InvalidRecord},
		"magic 3":            {9, 1, "logs", 0, change(16, 3, true), kerr.CorruptMessage},
		"count lies":         {9, 1, "logs", 0, change(60, 3, true), kerr.InvalidRecord},
		"codec 5":            {9, 1, "logs", 0, change(22, 5, true), kerr.UnsupportedCompressionType},
		"zstd in v6":         {6, 1, "logs", 0, change(22, 4, true), kerr.UnsupportedCompressionType},
		"append time":        {9, 1, "logs", 0, change(22, 8, true), kerr.InvalidTimestamp},
		"append time in v3":  {3, 1, "logs", 0, change(22, 8, true), kerr.InvalidTimestamp},
		"two batches":        {9, 1, "logs", 0, append(good[:len(good):len(good)], good...), kerr.InvalidRecord},
		"v0":                 {0, 1, "logs", 0, good, kerr.UnsupportedVersion},
		"v2":                 {2, -1, "logs", 0, good, kerr.UnsupportedVersion},
	} {
		rt := &broker.Topic{Name: c.topic}
		if c.topic == "logs" {
			rt = topic
		}
		resp := ask[*kmsg.ProduceResponse](w, produceReq(c.version, c.acks, rt, c.partition, c.records))
		p := resp.Topics[0].Partitions[0]
		wantCode(t, name, p.ErrorCode, c.want)
		if p.Partition != c.partition || c.version < 13 && resp.Topics[0].Topic != c.topic {
			t.Errorf("%s: answered for %s-%d", name, resp.Topics[0].Topic, p.Partition)
		}
		if c.want != nil && (p.BaseOffset != -1 || c.version >= 8 && p.ErrorMessage == nil) {
			t.Errorf("%s: %+v", name, p)
		}
	}
	req := produceReq(9, -1, topic, 0, good)
	txn := "txn"
	req.TransactionID = &txn
	if p := ask[*kmsg.ProduceResponse](w, req).Topics[0].Partitions[0]; p.ErrorCode == 0 {
		t.Error("a transactional request was accepted")
	}
	if l := h.b.log(topic.ID, 0); l.next != 2 {
		t.Errorf("%d records are in the log, want those of the one good request", l.next)
	}
}

// With acks=0 nothing is answered, good requests pass, and a bad one closes
// the connection.
func TestProduceAcksZero(t *testing.T) {
	h := serve(t, Limits{})
	topic := h.b.topic("logs", 1)
	w := h.dial()
	for range 10 {
		w.send(frameOf(produceReq(9, 0, topic, 0, batchOf(1, 10)), 1))
	}
	ask[*kmsg.MetadataResponse](w, kmsg.NewPtrMetadataRequest()) // answers 7, not 1
	if l := h.b.log(topic.ID, 0); l.next != 10 {
		t.Errorf("%d records arrived", l.next)
	}
	w.send(frameOf(produceReq(9, 0, topic, 3, batchOf(1, 10)), 1))
	w.wantClosed("acks=0 to a partition that is not there")
}

// One bad partition does not fail its neighbours; what a recycled call held
// before never shows.
func TestProduceManyPartitions(t *testing.T) {
	h := serve(t, Limits{})
	a, b := h.b.topic("a", 3), h.b.topic("b", 1)
	h.b.log(b.ID, 0).ackAfter = func() <-chan time.Time { return time.After(20 * time.Millisecond) }
	w := h.dial()
	for i := range int64(20) {
		req := produceReq(9, -1, a, 0, batchOf(1, 10))
		t0 := &req.Topics[0]
		for _, p := range []int32{9, 1} {
			rp := kmsg.NewProduceRequestTopicPartition()
			rp.Partition, rp.Records = p, batchOf(1, 10)
			t0.Partitions = append(t0.Partitions, rp)
		}
		req.Topics = append(req.Topics, produceReq(9, -1, b, 0, batchOf(1, 10)).Topics...)
		resp := ask[*kmsg.ProduceResponse](w, req)
		if len(resp.Topics) != 2 || len(resp.Topics[0].Partitions) != 3 || len(resp.Topics[1].Partitions) != 1 {
			t.Fatalf("%+v", resp.Topics)
		}
		for j, want := range []struct {
			p    int32
			code int16
			base int64
		}{{0, 0, i * 2}, {9, 3, -1}, {1, 0, i}} {
			p := resp.Topics[0].Partitions[j]
			if p.Partition != want.p || p.ErrorCode != want.code || p.BaseOffset != want.base || (p.ErrorMessage != nil) != (want.code != 0) {
				t.Fatalf("round %d: %+v, want %+v", i, p, want)
			}
		}
		one := ask[*kmsg.ProduceResponse](w, produceReq(7, 1, a, 0, batchOf(1, 10)))
		if len(one.Topics) != 1 || len(one.Topics[0].Partitions) != 1 || one.Topics[0].Partitions[0].ErrorCode != 0 || one.Topics[0].Partitions[0].BaseOffset != i*2+1 {
			t.Fatalf("round %d: %+v", i, one.Topics)
		}
	}
}

// The walker accepts what kmsg encodes, for every version, and nothing that is
// cut off.
func TestCheckProduce(t *testing.T) {
	topic := &broker.Topic{Name: "logs", ID: [16]byte{1}}
	for v := int16(0); v <= 13; v++ {
		req := produceReq(v, -1, topic, 0, batchOf(1, 10))
		req.Topics = append(req.Topics, req.Topics...)
		req.Topics[1].Partitions = append(req.Topics[1].Partitions, req.Topics[0].Partitions...)
		b := req.AppendTo(nil)
		if err := checkProduce(b, v); err != nil {
			t.Errorf("v%d: %v", v, err)
		}
		for n := range b {
			if checkProduce(b[:n], v) == nil {
				t.Errorf("v%d: %d of %d bytes are accepted", v, n, len(b))
			}
		}
	}
	many := binary.BigEndian.AppendUint32([]byte{0xff, 0xff, 0, 1, 0, 0, 0, 0}, maxProduceParts+1)
	many = append(many, make([]byte, 6*(maxProduceParts+1))...)
	if checkProduce(many, 3) == nil {
		t.Error("a request with too many topics is accepted")
	}
}
