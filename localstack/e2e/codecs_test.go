package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cirrolog/cirrolog/internal/testenv"
	"github.com/cirrolog/cirrolog/storage/batch"
)

// sent is a record as every client can say it; nil is null.
type sent struct {
	Key, Value *string
	Headers    []string // NAME=VALUE, or NAME for a null value
}

func str(s string) *string { return &s }

func (s sent) String() string {
	b, _ := json.Marshal(s) // strings always marshal
	return string(b[:min(len(b), 200)])
}

func (s sent) equal(o sent) bool {
	same := func(a, b *string) bool { return a == b || a != nil && b != nil && *a == *b }
	return same(s.Key, o.Key) && same(s.Value, o.Value) && slices.Equal(s.Headers, o.Headers)
}

// samples are the records of one run; they shrink well, so that no client
// leaves its batch uncompressed. kcat can't send an empty string that is not null.
func samples(what string, forKcat bool) (out []sent) {
	text := strings.Repeat("a stream of records, "+what+"; ", 20)
	out = []sent{
		{Key: str("plain"), Value: str(text)},
		{Value: str("without key; " + text)},
		{Key: str("tombstone")},
		{},
		{Key: str("utf8 ключ"), Value: str("значение " + text)},
	}
	for i := range 20 {
		out = append(out, sent{Key: str("k" + strconv.Itoa(i)), Value: str(text[:10*i+1])})
	}
	headers := []string{"trace=" + what, "twice=1", "twice=2", "empty=", "null"}
	for i := range out {
		out[i].Headers = headers
	}
	if forKcat {
		return out
	}
	out[0].Headers = nil
	binary := make([]byte, 4096)
	for i := range binary {
		binary[i] = byte(i)
	}
	return append(out, sent{Key: str(""), Value: str("")}, sent{Key: str("\x00\xff"), Value: str(string(binary)), Headers: []string{"\xfe=\xff"}})
}

func (s sent) record(topic string) *kgo.Record {
	r := &kgo.Record{Topic: topic}
	if s.Key != nil {
		r.Key = []byte(*s.Key)
	}
	if s.Value != nil {
		r.Value = []byte(*s.Value)
	}
	for _, h := range s.Headers {
		name, value, ok := strings.Cut(h, "=")
		header := kgo.RecordHeader{Key: name}
		if ok {
			header.Value = []byte(value)
		}
		r.Headers = append(r.Headers, header)
	}
	return r
}

func fromRecord(r *kgo.Record) (s sent) {
	if r.Key != nil {
		s.Key = str(string(r.Key))
	}
	if r.Value != nil {
		s.Value = str(string(r.Value))
	}
	for _, h := range r.Headers {
		if h.Value == nil {
			s.Headers = append(s.Headers, h.Key)
		} else {
			s.Headers = append(s.Headers, h.Key+"="+string(h.Value))
		}
	}
	return s
}

// setting is how a producer is set up.
type setting struct {
	codec      batch.Codec
	acks       string
	idempotent bool // legal with acks=all alone
}

func (s setting) String() string {
	return fmt.Sprintf("%v acks=%s idempotent=%t", s.codec, s.acks, s.idempotent)
}

func settings(codec batch.Codec) []setting {
	return []setting{{codec, "0", false}, {codec, "1", false}, {codec, "all", false}, {codec, "all", true}}
}

// produceFranz sends records with franz-go.
func produceFranz(t *testing.T, n *Node, topic string, s setting, records []sent) {
	t.Helper()
	codec := map[batch.Codec]kgo.CompressionCodec{batch.CodecNone: kgo.NoCompression(), batch.CodecGzip: kgo.GzipCompression(),
		batch.CodecSnappy: kgo.SnappyCompression(), batch.CodecLZ4: kgo.Lz4Compression(), batch.CodecZstd: kgo.ZstdCompression()}[s.codec]
	acks := map[string]kgo.Acks{"0": kgo.NoAck(), "1": kgo.LeaderAck(), "all": kgo.AllISRAcks()}[s.acks]
	opts := []kgo.Opt{kgo.ProducerBatchCompression(codec), kgo.RequiredAcks(acks), kgo.ProducerLinger(50 * time.Millisecond)}
	if !s.idempotent {
		opts = append(opts, kgo.DisableIdempotentWrite())
	}
	cl := newClient(t, n.Kafka, opts...)
	defer cl.Close()
	var all []*kgo.Record
	for _, r := range records {
		all = append(all, r.record(topic))
	}
	ctx, cancel := context.WithTimeout(context.Background(), fetchLimit)
	defer cancel()
	if err := cl.ProduceSync(ctx, all...).FirstErr(); err != nil {
		t.Fatalf("franz-go, %v: %v", s, err)
	}
}

// produceKcat sends records with kcat; they all have the headers of the first.
func produceKcat(t *testing.T, kcat string, n *Node, topic string, s setting, records []sent) {
	t.Helper()
	args := []string{"-P", "-b", n.Kafka, "-t", topic, "-p", "0", "-Z", "-K", `\x1f`, "-D", `\x1e`, "-z", s.codec.String(), "-X", "linger.ms=50",
		"-X", "acks=" + s.acks, "-X", "enable.idempotence=" + strconv.FormatBool(s.idempotent)}
	for _, h := range records[0].Headers {
		args = append(args, "-H", h)
	}
	var in bytes.Buffer
	for _, r := range records {
		in.WriteString(orEmpty(r.Key) + "\x1f" + orEmpty(r.Value) + "\x1e")
	}
	cmd := exec.Command(kcat, args...)
	cmd.Stdin = &in
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("kcat, %v: %v\n%s", s, err, out)
	}
}

func orEmpty(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// readKcat reads a whole topic with kcat.
func readKcat(t *testing.T, kcat string, n *Node, topic string) (out []sent) {
	t.Helper()
	cmd := exec.Command(kcat, "-C", "-q", "-e", "-b", n.Kafka, "-t", topic, "-p", "0", "-o", "beginning", "-f", `%K %S %h\n%k%s\n`)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	b, err := cmd.Output()
	if err != nil {
		t.Fatalf("kcat -C: %v\n%s", err, stderr.Bytes())
	}
	for len(b) > 0 {
		line, rest, _ := bytes.Cut(b, []byte{'\n'})
		f := strings.SplitN(string(line), " ", 3)
		var s sent
		for i, into := range []**string{&s.Key, &s.Value} {
			size, err := strconv.Atoi(f[i])
			if err != nil || size > len(rest) {
				t.Fatalf("kcat -C printed %q", line)
			}
			if size >= 0 {
				*into, rest = str(string(rest[:size])), rest[size:]
			}
		}
		if f[2] != "" {
			for h := range strings.SplitSeq(f[2], ",") {
				s.Headers = append(s.Headers, strings.TrimSuffix(h, "=NULL"))
			}
		}
		out, b = append(out, s), rest[1:]
	}
	return out
}

// matchAll compares what came back with what was sent.
func matchAll(t *testing.T, what string, got, want []sent) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: %d records, want %d", what, len(got), len(want))
	}
	for i := range min(len(got), len(want)) {
		if !got[i].equal(want[i]) {
			t.Errorf("%s: record %d is %v, want %v", what, i, got[i], want[i])
			return
		}
	}
}

var codecs = [...]batch.Codec{batch.CodecNone, batch.CodecGzip, batch.CodecSnappy, batch.CodecLZ4, batch.CodecZstd}

// TestCodecs produces with two clients, every codec and every kind of
// acknowledgement, and reads with both: from memory and disk, and once more
// when the records are only in the bucket. Batches stay as they were sent.
func TestCodecs(t *testing.T) {
	kcat := testenv.Need(t, "kcat")
	n := NewNode(t, NodeOptions{Args: []string{"--bucket", "dir://" + filepath.Join(t.TempDir(), "bucket"), "--retention-interval", "100ms"}})
	for _, codec := range codecs {
		for _, client := range []string{"franz-go", "kcat"} {
			t.Run(client+"/"+codec.String(), func(t *testing.T) {
				testCodec(t, kcat, n, client, codec)
			})
		}
		t.Run("untouched/"+codec.String(), func(t *testing.T) { testUntouched(t, n, codec) })
	}
	n.Stop()
}

func testCodec(t *testing.T, kcat string, n *Node, client string, codec batch.Codec) {
	topic := client + "-" + codec.String()
	createTopic(t, n, topic, 1, map[string]string{"local.retention.bytes": "0"})
	var want []sent
	for _, s := range settings(codec) {
		records := samples(s.String(), client == "kcat")
		if client == "kcat" {
			produceKcat(t, kcat, n, topic, s, records)
		} else {
			produceFranz(t, n, topic, s, records)
		}
		want = append(want, records...)
		// Without acknowledgements the producer knows nothing.
		eventually(t, fetchLimit, fmt.Sprintf("%d records with %v", len(want), s), func() bool {
			return n.Storage(topic)[0].HighWatermark >= int64(len(want))
		})
	}
	w := wire{t, n}
	read := func(where string) {
		t.Helper()
		recs, err := fetchAll(n.Kafka, topic, 0, len(want))
		if err != nil {
			t.Fatal(err)
		}
		var got []sent
		for _, r := range recs {
			got = append(got, fromRecord(r))
		}
		matchAll(t, "franz-go, "+where, got, want)
		matchAll(t, "kcat, "+where, readKcat(t, kcat, n, topic), want)
		for _, b := range w.fetch(topic, int64(len(want))) {
			if h := header(t, b); h.Codec() != codec {
				t.Errorf("%s: the batch at offset %d is compressed with %v", where, h.BaseOffset, h.Codec())
			}
		}
	}
	read("from this node")
	tier(t, n, topic)
	read("from the bucket")
}

// testUntouched sends batches by hand and wants their very bytes back, except
// for base offset and leader epoch.
func testUntouched(t *testing.T, n *Node, codec batch.Codec) {
	topic := "untouched-" + codec.String()
	createTopic(t, n, topic, 1, nil)
	w := wire{t, n}
	var want [][]byte
	end := int64(0)
	for _, xerial := range []bool{false, true}[:1+btoi(codec == batch.CodecSnappy)] {
		b := encode(t, codec, xerial, 50, time.Now().UnixMilli(), nil)
		base, _, err := w.produce(topic, b)
		if err != nil || base != end {
			t.Fatalf("produce: offset %d, %v; want %d", base, err, end)
		}
		want, end = append(want, b), end+50
	}
	got := w.fetch(topic, end)
	if len(got) != len(want) {
		t.Fatalf("%d batches, want %d", len(got), len(want))
	}
	for i := range got {
		if !bytes.Equal(got[i][8:12], want[i][8:12]) || !bytes.Equal(got[i][16:], want[i][16:]) {
			t.Errorf("batch %d came back with other bytes", i)
		}
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}
