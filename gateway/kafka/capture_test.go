package kafka

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// framesDir has the frames that real clients sent, each with its length in
// front: <client>-<api>-v<version>-<n>.bin. testdata/record/record.sh makes them.
const framesDir = "testdata/frames"

// recorder is a listener that keeps what the clients behind it send: of each
// API and version a few frames of unlike lengths, none of them large.
type recorder struct {
	net.Listener
	t      *testing.T
	client string
	apis   map[int16]*api

	mu   sync.Mutex
	kept map[string]map[int]bool // by API and version, the lengths
}

const maxCaptured = 2 << 10 // bytes of a frame

// captures is how many frames of an API and version are kept.
func captures(key int16) int {
	if k := kmsg.Key(key); k == kmsg.Produce || k == kmsg.Fetch || k == kmsg.ListOffsets {
		return 6
	}
	return 2
}

func (r *recorder) Accept() (net.Conn, error) {
	nc, err := r.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &recorded{Conn: nc, r: r}, nil
}

// recorded is a connection that shows its recorder the frames read from it.
type recorded struct {
	net.Conn
	r   *recorder
	buf []byte
}

func (c *recorded) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.buf = append(c.buf, b[:n]...)
	for len(c.buf) >= 4 {
		size := 4 + int(binary.BigEndian.Uint32(c.buf))
		if len(c.buf) < size {
			break
		}
		c.r.keep(c.buf[:size])
		c.buf = c.buf[size:]
	}
	return n, err
}

func (r *recorder) keep(frame []byte) {
	if len(frame) < 12 || len(frame) > maxCaptured {
		return
	}
	key, version := int16(binary.BigEndian.Uint16(frame[4:])), int16(binary.BigEndian.Uint16(frame[6:]))
	if a := r.apis[key]; a == nil || version < a.min || version > a.max {
		return // its answer is an error
	}
	name := fmt.Sprintf("%s-%s-v%d", r.client, kmsg.NameForKey(key), version)
	r.mu.Lock()
	defer r.mu.Unlock()
	lengths := r.kept[name]
	if lengths == nil {
		lengths = map[int]bool{}
		r.kept[name] = lengths
	}
	if lengths[len(frame)] || len(lengths) == captures(key) {
		return
	}
	lengths[len(frame)] = true
	path := filepath.Join(framesDir, fmt.Sprintf("%s-%d.bin", name, len(lengths)))
	if err := os.WriteFile(path, frame, 0o644); err != nil {
		r.t.Error(err)
	}
}

// runFranz uses franz-go as it was when Kafka had these versions.
func runFranz(t *testing.T, h *harness, v *kversion.Versions) {
	for i, codec := range []kgo.CompressionCodec{kgo.NoCompression(), kgo.GzipCompression(), kgo.SnappyCompression(), kgo.Lz4Compression(), kgo.ZstdCompression()} {
		opts := []kgo.Opt{kgo.MaxVersions(v), kgo.ProducerBatchCompression(codec), kgo.DefaultProduceTopic("logs"), kgo.RecordPartitioner(kgo.ManualPartitioner())}
		if i%2 == 1 {
			opts = append(opts, kgo.DisableIdempotentWrite(), kgo.RequiredAcks([]kgo.Acks{kgo.LeaderAck(), kgo.NoAck()}[i/2]))
		}
		cl := h.client(opts...)
		for j := range i + 1 {
			r := &kgo.Record{Value: fmt.Appendf(nil, "value %d", j), Headers: []kgo.RecordHeader{{Key: "h", Value: []byte{1}}}[:j%2], Partition: int32(j % 3)}
			if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
				t.Errorf("produce: %v", err)
			}
		}
	}
	h.consume("logs", 10, kgo.MaxVersions(v))
	adm := kadm.NewClient(h.client(kgo.MaxVersions(v)))
	name := fmt.Sprintf("franz-%d", len(h.b.Topics()))
	later := regexp.MustCompile("request key is unknown|broker is too old") // Kafka had it later
	try := func(what string, err error) {
		if err != nil && !later.MatchString(err.Error()) {
			t.Errorf("%s: %v", what, err)
		}
	}
	one := func(_ any, err error) error { return err }
	ctx := t.Context()
	_, err := adm.CreateTopic(ctx, 2, 1, map[string]*string{"retention.ms": kadm.StringPtr("1000")}, name)
	try("create topic", err)
	_, err = adm.CreatePartitions(ctx, 1, name)
	try("create partitions", err)
	try("metadata", one(adm.Metadata(ctx, name, "logs")))
	try("list topics", one(adm.ListTopics(ctx)))
	try("describe configs", one(adm.DescribeTopicConfigs(ctx, name)))
	try("alter configs", one(adm.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Name: "retention.ms"}}, name)))
	try("alter configs", one(adm.AlterTopicConfigsState(ctx, []kadm.AlterConfig{{Name: "retention.ms", Value: kadm.StringPtr("5")}}, name)))
	try("list offsets", one(adm.ListStartOffsets(ctx, "logs")))
	try("list offsets", one(adm.ListOffsetsAfterMilli(ctx, 1000, "logs", "other")))
	var epochs kadm.OffsetForLeaderEpochRequest
	epochs.Add("logs", 0, 5)
	try("leader epochs", one(adm.OffsetForLeaderEpoch(ctx, epochs)))
	try("log dirs", one(adm.DescribeAllLogDirs(ctx, nil)))
	try("delete records", one(adm.DeleteRecords(ctx, kadm.Offsets{"logs": {0: {Topic: "logs"}}})))
	_, err = adm.DeleteTopic(ctx, name)
	try("delete topic", err)
}

// captureTopics makes the topics that the recorded clients used.
func captureTopics(b *memBroker) {
	logs := b.topic("logs", 3)
	b.topic("other", 1)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dirs = []broker.LogDir{{Path: "/ssd", Total: 100, Usable: 50, Partitions: map[ids.TopicPartition]int64{{Topic: logs.ID}: 7}}, {Path: "bucket", Total: -1, Usable: -1}}
}

// TestCapture records a client and is no test: CAPTURE_CLIENT names it,
// CAPTURE_CMD is the shell command that runs it, with the address in BOOTSTRAP.
// Its older frames are replaced.
func TestCapture(t *testing.T) {
	client, script := os.Getenv("CAPTURE_CLIENT"), os.Getenv("CAPTURE_CMD")
	if client == "" {
		t.Skip("records clients, see testdata/record/record.sh")
	}
	old, err := filepath.Glob(filepath.Join(framesDir, client+"-[A-Z]*.bin"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range old {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	h := serveOn(t, Limits{}, func(l net.Listener) net.Listener {
		return &recorder{Listener: l, t: t, client: client, apis: NewServer(Options{}).apis, kept: map[string]map[int]bool{}}
	})
	captureTopics(h.b)
	if client == "franz-go" {
		for _, v := range []*kversion.Versions{kversion.V0_11_0(), kversion.V1_0_0(), kversion.V1_1_0(), kversion.V2_0_0(), kversion.V2_1_0(), kversion.V2_2_0(),
			kversion.V2_3_0(), kversion.V2_4_0(), kversion.V2_5_0(), kversion.V2_7_0(), kversion.V2_8_0(), kversion.V3_1_0(), kversion.V3_5_0(), kversion.V3_7_0(),
			kversion.V3_9_0(), kversion.V4_0_0(), kversion.V4_1_0(), kversion.V4_3_0()} {
			runFranz(t, h, v)
		}
		return
	}
	cmd := exec.CommandContext(t.Context(), "bash", "-c", script)
	cmd.Env = append(os.Environ(), "BOOTSTRAP="+h.addr)
	out, err := cmd.CombinedOutput()
	t.Logf("%s\n%s", script, strings.TrimSpace(string(out)))
	if err != nil {
		t.Errorf("the client failed: %v", err)
	}
}
