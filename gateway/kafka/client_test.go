package kafka

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/internal/testenv"
)

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func (h *harness) client(opts ...kgo.Opt) *kgo.Client {
	h.t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(h.addr), kgo.AllowAutoTopicCreation()}, opts...)...)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(cl.Close)
	return cl
}

// consume returns the values of n records of a topic, by partition in order.
func (h *harness) consume(topic string, n int, opts ...kgo.Opt) []string {
	h.t.Helper()
	cl := h.client(append(opts, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(200*time.Millisecond))...)
	ctx := deadline(h.t)
	var got []string
	for len(got) < n {
		f := cl.PollFetches(ctx)
		if err := f.Err(); err != nil {
			h.t.Fatalf("fetch after %d of %d records: %v", len(got), n, err)
		}
		f.EachRecord(func(r *kgo.Record) { got = append(got, string(r.Value)) })
	}
	return got
}

// Every codec, every acks, with and without idempotence: what franz-go sends
// comes back equal, in order, and compressed batches pass untouched.
func TestFranzGo(t *testing.T) {
	codecs := map[string]kgo.CompressionCodec{"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(),
		"snappy": kgo.SnappyCompression(), "lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression()}
	acks := map[string]kgo.Acks{"0": kgo.NoAck(), "1": kgo.LeaderAck(), "all": kgo.AllISRAcks()}
	h := serve(t, Limits{})
	for codec, c := range codecs {
		for ackName, a := range acks {
			for _, idempotent := range []bool{true, false} {
				if idempotent && ackName != "all" {
					continue
				}
				name := fmt.Sprintf("%s-%s-%v", codec, ackName, idempotent)
				t.Run(name, func(t *testing.T) {
					opts := []kgo.Opt{kgo.ProducerBatchCompression(c), kgo.RequiredAcks(a), kgo.DefaultProduceTopic(name), kgo.ProducerBatchMaxBytes(16 << 10)}
					if !idempotent {
						opts = append(opts, kgo.DisableIdempotentWrite())
					}
					testRoundTrip(t, h, name, opts)
				})
			}
		}
	}
}

func testRoundTrip(t *testing.T, h *harness, topic string, opts []kgo.Opt) {
	cl := h.client(opts...)
	var want []string
	for i := range 500 {
		v := fmt.Sprintf("%s %d %s", topic, i, strings.Repeat("x", i))
		want = append(want, v)
		cl.Produce(t.Context(), &kgo.Record{Value: []byte(v), Partition: 0, Key: []byte("same")}, func(_ *kgo.Record, err error) {
			if err != nil {
				t.Errorf("produce: %v", err)
			}
		})
	}
	if err := cl.Flush(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if got := h.consume(topic, len(want)); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("%d records came back unequal", len(got))
	}
}

// An old client's versions (kafkajs stops at Produce 7, Fetch 11, Metadata 6).
func TestFranzGoVersions(t *testing.T) {
	h := serve(t, Limits{})
	for produce := int16(3); produce <= 13; produce++ {
		topic := h.b.topic(fmt.Sprintf("v%d", produce), 1)
		w := h.dial()
		resp := ask[*kmsg.ProduceResponse](w, produceReq(produce, -1, topic, 0, batchOf(3, 10)))
		p := resp.Topics[0].Partitions[0]
		wantCode(t, fmt.Sprintf("produce v%d", produce), p.ErrorCode, nil)
		if p.BaseOffset != 0 || resp.Topics[0].Topic != topic.Name && produce < 13 || produce == 13 && resp.Topics[0].TopicID != topic.ID {
			t.Errorf("produce v%d: %+v", produce, resp.Topics)
		}
		for fetch := int16(4); fetch <= 18; fetch++ {
			resp := ask[*kmsg.FetchResponse](w, fetchReq(fetch, time.Second, want(topic, 0, 0)))
			if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions[0].RecordBatches) != len(batchOf(3, 10)) {
				t.Errorf("fetch v%d: %+v", fetch, resp.Topics)
			}
		}
	}
}

func TestKcat(t *testing.T) {
	kcat := testenv.Need(t, "kcat")
	h := serve(t, Limits{})
	var in bytes.Buffer
	for i := range 2000 {
		fmt.Fprintf(&in, "line %d %s\n", i, strings.Repeat("y", i%300))
	}
	for _, codec := range []string{"none", "gzip", "snappy", "lz4", "zstd"} {
		for _, acks := range []string{"0", "1", "-1"} {
			topic := "kcat" + codec + acks
			h.b.topic(topic, 1)
			run(t, in.Bytes(), kcat, "-P", "-b", h.addr, "-t", topic, "-p", "0", "-X", "compression.codec="+codec, "-X", "acks="+acks,
				"-X", fmt.Sprintf("enable.idempotence=%v", acks == "-1"))
			out := run(t, nil, kcat, "-C", "-e", "-q", "-b", h.addr, "-t", topic, "-o", "beginning")
			if !bytes.Equal(out, in.Bytes()) {
				t.Errorf("codec %s, acks %s: %d bytes came back of %d", codec, acks, len(out), in.Len())
			}
		}
	}
	if out := run(t, nil, kcat, "-L", "-b", h.addr); !bytes.Contains(out, []byte(`topic "kcatnone0" with 1 partitions`)) {
		t.Errorf("metadata: %s", out)
	}
}

func run(t *testing.T, stdin []byte, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(deadline(t), name, args...)
	cmd.Stdin = bytes.NewReader(stdin)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, errs.String())
	}
	return out
}

func TestMetadataAutoCreate(t *testing.T) {
	h := serve(t, Limits{})
	name := func(names ...string) *kmsg.MetadataRequest {
		req := kmsg.NewPtrMetadataRequest()
		req.AllowAutoTopicCreation = true
		for _, n := range names {
			rt := kmsg.NewMetadataRequestTopic()
			rt.Topic = &n
			req.Topics = append(req.Topics, rt)
		}
		return req
	}
	w := h.dial()
	for v := int16(0); v <= 13; v++ {
		good, bad := fmt.Sprintf("good%d", v), "../x"
		req := name(good, bad)
		req.Version = v
		resp := ask[*kmsg.MetadataResponse](w, req)
		if len(resp.Topics) != 2 || resp.Topics[0].ErrorCode != 0 || len(resp.Topics[0].Partitions) != 3 {
			t.Fatalf("v%d: %+v", v, resp.Topics)
		}
		wantCode(t, "bad name", resp.Topics[1].ErrorCode, kerr.InvalidTopicException)
		if b := resp.Brokers; len(b) != 1 || b[0].Host != "127.0.0.1" || v >= 1 && text(b[0].Rack) != "r1" {
			t.Errorf("v%d: brokers %+v", v, b)
		}
		if v >= 4 {
			req.Topics, req.AllowAutoTopicCreation = name("never").Topics, false
			wantCode(t, "not allowed", ask[*kmsg.MetadataResponse](w, req).Topics[0].ErrorCode, kerr.UnknownTopicOrPartition)
		}
	}
	if h.b.Topic("never") != nil || h.b.Topic("../x") != nil {
		t.Error("created a topic that must not be")
	}
	h.b.setAutoCreate(false)
	req := name("off")
	req.Version = 12
	wantCode(t, "auto-create off", ask[*kmsg.MetadataResponse](w, req).Topics[0].ErrorCode, kerr.UnknownTopicOrPartition)
}

func TestMetadataAllNoneAndIDs(t *testing.T) {
	h := serve(t, Limits{})
	logs := h.b.topic("logs", 2)
	w := h.dial()
	for v := int16(0); v <= 13; v++ {
		req := kmsg.NewPtrMetadataRequest()
		req.Version = v
		if got := ask[*kmsg.MetadataResponse](w, req); len(got.Topics) != 1 || v >= 10 && got.Topics[0].TopicID != logs.ID {
			t.Errorf("v%d, all: %+v", v, got.Topics)
		}
		req.Topics = []kmsg.MetadataRequestTopic{}
		if got := ask[*kmsg.MetadataResponse](w, req); v > 0 && len(got.Topics) != 0 || v == 0 && len(got.Topics) != 1 {
			t.Errorf("v%d, none: %+v", v, got.Topics)
		}
		if v < 10 {
			continue
		}
		if v < 12 { // has ids, but they are not to be used yet
			rt := kmsg.NewMetadataRequestTopic()
			rt.Topic, rt.TopicID = kmsg.StringPtr("logs"), logs.ID
			req.Topics = []kmsg.MetadataRequestTopic{rt}
			wantCode(t, fmt.Sprintf("v%d, id", v), ask[*kmsg.MetadataResponse](w, req).Topics[0].ErrorCode, kerr.InvalidRequest)
			continue
		}
		for _, id := range [][16]byte{logs.ID, {15: 99}} {
			rt := kmsg.NewMetadataRequestTopic()
			rt.TopicID = id
			req.Topics = []kmsg.MetadataRequestTopic{rt}
			got := ask[*kmsg.MetadataResponse](w, req).Topics[0]
			if id == logs.ID && (got.ErrorCode != 0 || text(got.Topic) != "logs") || id != logs.ID && (got.ErrorCode != kerr.UnknownTopicID.Code || got.Topic != nil || got.TopicID != id) {
				t.Errorf("v%d, id %v: %+v", v, id, got)
			}
		}
	}
}

func TestObserver(t *testing.T) {
	h := serve(t, Limits{})
	if err := h.client().Ping(deadline(t)); err != nil {
		t.Fatal(err)
	}
	topic := h.b.topic("logs", 1)
	w := h.dial()
	ask[*kmsg.ProduceResponse](w, produceReq(9, 1, topic, 0, batchOf(1, 10)))
	ask[*kmsg.ProduceResponse](w, produceReq(9, 1, topic, 5, batchOf(1, 10)))
	ask[*kmsg.FetchResponse](w, fetchReq(12, 0, want(topic, 0, 0)))
	ask[*kmsg.FetchResponse](w, fetchReq(12, 0, want(topic, 0, 9)))
	for _, k := range []string{"ApiVersions 35" /* franz-go begins with v5 */, "Metadata 0", "Produce 0", "Produce 3", "Fetch 0", "Fetch 1"} {
		if h.seen.count(k) == 0 {
			t.Errorf("observer saw no %q but %v", k, h.seen.codes)
		}
	}
	h.seen.mu.Lock()
	defer h.seen.mu.Unlock()
	if n := len(batchOf(1, 10)); h.seen.bytes["in logs"] != n || h.seen.bytes["out logs"] != n {
		t.Errorf("observer saw bytes %v, want %d", h.seen.bytes, n)
	}
}
