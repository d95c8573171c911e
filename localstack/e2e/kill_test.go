package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cirrolog/cirrolog/storage/segment"
	"github.com/cirrolog/cirrolog/tiering"
)

const (
	crashTopic      = "crash"
	crashPartitions = 4
	crashLoaders    = 4
	crashWriters    = 2 // over HTTP
	crashMembers    = 2 // of a consumer group
	acksPerKill     = 5_000
	loadLimit       = 90 * time.Second // to get so many acknowledgements, on a busy machine
)

// crash is a node under random load that is ended and started again and again,
// on the same data directory and bucket.
type crash struct {
	failures
	n       *Node
	bucket  string // directory
	rand    *rand.Rand
	l       *ledger
	loaders []*loader
	writers []*httpWriter
	members *members
	watch   *watcher
	audits  []*audit // how far each partition was compared

	rolled   int // closed segments at the last end
	moments  int // ends with a segment closed and not in the bucket, or on its way there
	killedUp int // kills during a start
}

func newCrash(t *testing.T, args ...string) *crash {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("CRASH_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("CRASH_SEED=%d", seed)
	c := &crash{failures: failures{t: t}, bucket: filepath.Join(t.TempDir(), "bucket"), rand: rand.New(rand.NewPCG(seed, 1)), l: &ledger{partitions: crashPartitions}}
	c.n = NewNode(t, NodeOptions{Args: append([]string{"--bucket", "dir://" + c.bucket, "--wal-size", "16MiB", "--retention-interval", "200ms"}, args...)})
	createTopic(t, c.n, crashTopic, crashPartitions, map[string]string{"segment.bytes": "1048576", "local.retention.bytes": "524288", "retention.ms": "-1"})
	var err error
	if c.watch, err = startWatcher(c.n.Kafka, c.fail); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, p := range c.loaders {
			p.abandon()
		}
		c.watch.stop()
	})
	for range crashLoaders {
		c.addLoader()
	}
	for range crashWriters {
		c.writers = append(c.writers, c.l.startHTTPWriter(c.n.HTTP, crashTopic, rand.New(rand.NewPCG(c.rand.Uint64(), 3)), c.fail))
	}
	c.members = startMembers(c.n.Kafka, c.fail)
	t.Cleanup(func() {
		for _, w := range c.writers {
			w.abandon()
		}
		c.members.stop()
	})
	for p := range crashPartitions {
		c.audits = append(c.audits, c.l.audit(p))
	}
	return c
}

func (c *crash) addLoader() {
	p, err := c.l.startLoader(c.n.Kafka, crashTopic, rand.New(rand.NewPCG(c.rand.Uint64(), 2)), c.fail)
	if err != nil {
		c.t.Fatal(err)
	}
	c.loaders = append(c.loaders, p)
}

// load waits until acksPerKill records more are acknowledged and then, if it
// comes soon, for a moment in which a segment is on its way to the bucket.
func (c *crash) load() {
	c.t.Helper()
	c.l.calm.Store(false)
	want := c.l.total.Load() + acksPerKill + c.rand.Int64N(5000)
	for end := time.Now().Add(loadLimit); c.l.total.Load() < want; time.Sleep(time.Millisecond) {
		c.check()
		c.n.MustRun()
		if time.Now().After(end) {
			c.t.Fatalf("%d of %d records are acknowledged in %v", c.l.total.Load(), want, loadLimit)
		}
	}
	before := c.uploading()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Microsecond) {
		for name := range c.uploading() {
			if !before[name] {
				return
			}
		}
	}
}

// uploading returns the names of the files that the bucket is writing or was
// when its process was killed.
func (c *crash) uploading() map[string]bool {
	entries, err := os.ReadDir(filepath.Join(c.bucket, "tmp"))
	if err != nil {
		c.t.Fatal(err)
	}
	names := map[string]bool{}
	for _, e := range entries {
		names[e.Name()] = true
	}
	return names
}

// disk is what is in the data directory and the bucket of a node that does not
// run.
type disk struct {
	closed   int // segments, local or in the bucket
	untiered int // of them, those that are not in the bucket
	rolling  int // full segments whose index was not yet written
}

func (c *crash) disk() (d disk) {
	c.t.Helper()
	tiered := c.objects()
	closed := map[string]bool{}
	for key := range tiered {
		closed[key] = true
	}
	active := map[string]int{}
	for _, path := range localLogs(c.t, c.n) {
		partition := filepath.Base(filepath.Dir(path))
		partition = partition[strings.LastIndexByte(partition, '-')+1:]
		base, _, err := segment.ParseName(filepath.Base(path))
		if err != nil {
			c.t.Fatal(err)
		}
		if _, err := os.Stat(strings.TrimSuffix(path, ".log") + ".idx"); err != nil {
			active[partition]++
			continue
		}
		key := fmt.Sprintf("%s/%d", partition, base)
		closed[key] = true
		if !tiered[key] {
			d.untiered++
		}
	}
	for _, n := range active {
		d.rolling += n - 1
	}
	d.closed = len(closed)
	return d
}

// objects returns PARTITION/BASE of the segments in the bucket.
func (c *crash) objects() map[string]bool {
	c.t.Helper()
	out := map[string]bool{}
	root := filepath.Join(c.bucket, "objects")
	err := filepath.WalkDir(root, func(path string, e os.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) || err == nil && e.IsDir() {
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if k, err := tiering.ParseSegmentKey(strings.ReplaceAll(filepath.ToSlash(rel), "+/", "/")); err == nil {
			out[fmt.Sprintf("%d/%d", k.TP.Partition, k.Base)] = true
		}
		return nil
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

// note looks at what the end left behind and counts what it interrupted.
func (c *crash) note(i int, before map[string]bool) {
	c.t.Helper()
	uploads := 0
	for name := range c.uploading() {
		if !before[name] {
			uploads++
		}
	}
	d := c.disk()
	c.t.Logf("kill %d: %d acknowledged, %d segments closed since the last, %d rolling, %d not in the bucket, %d uploads cut",
		i, c.l.total.Load(), d.closed-c.rolled, d.rolling, d.untiered, uploads)
	if d.closed <= c.rolled {
		c.t.Errorf("no segment was closed before kill %d", i)
	}
	if d.untiered+uploads > 0 {
		c.moments++
	}
	c.rolled = d.closed
}

// restart starts the node, now and then killing it on its way up, and replaces
// some of the producers, whose outstanding records nobody sends again.
func (c *crash) restart() {
	c.t.Helper()
	for c.rand.IntN(2) == 0 {
		if err := c.n.launch(); err != nil {
			c.t.Fatal(err)
		}
		time.Sleep(time.Duration(c.rand.IntN(120)) * time.Millisecond)
		c.n.Kill()
		c.killedUp++
	}
	if c.rand.IntN(2) == 0 {
		i := c.rand.IntN(len(c.loaders))
		c.loaders[i].abandon()
		c.loaders = append(c.loaders[:i], c.loaders[i+1:]...)
		c.addLoader()
	}
	c.n.Start()
}

// verify reads every partition from where the last call ended, or with all from
// its first offset, to its end and compares; and looks at the committed offsets.
// The producers, which go on, are slowed down, so that the log does not outgrow
// the reader.
func (c *crash) verify(all bool) {
	c.t.Helper()
	c.l.calm.Store(true)
	for p := range crashPartitions {
		if all {
			c.audits[p] = c.l.audit(p)
		}
		a := c.audits[p]
		a.expect()
		s := c.n.Storage(crashTopic)[p]
		if s.LogStart != 0 {
			c.t.Fatalf("partition %d begins at offset %d", p, s.LogStart)
		}
		err := eachRecord(c.n.Kafka, crashTopic, int32(p), int64(len(a.sums)), s.HighWatermark, func(r *kgo.Record) error { return a.add(r.Offset, r.Value) })
		if err = errors.Join(err, a.end(), c.watch.compare(p, a.sums)); err != nil {
			c.t.Fatal(err)
		}
	}
	if err := c.members.check(); err != nil {
		c.t.Fatal(err)
	}
	c.check()
}

// finish lets every producer have its acknowledgements, and reads all again:
// from the node, and from the bucket alone.
func (c *crash) finish() {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), loadLimit)
	defer cancel()
	for _, p := range c.loaders {
		if err := p.finish(ctx); err != nil {
			c.t.Fatal(err)
		}
	}
	c.loaders = nil
	for _, w := range c.writers {
		if err := w.finish(ctx); err != nil {
			c.t.Fatal(err)
		}
	}
	c.check()
	c.verify(true)
	eventually(c.t, time.Minute, "the group has read all", func() bool { return c.members.at(c.n.Storage(crashTopic)) })
	c.members.stop()
	c.n.API(http.MethodPost, "/v1/topics/"+crashTopic+"/roll", nil)
	eventually(c.t, time.Minute, "everything in the bucket", func() bool {
		for _, s := range c.n.Storage(crashTopic) {
			if s.TieredEnd != s.HighWatermark {
				return false
			}
		}
		return true
	})
	c.verify(true)
	eventually(c.t, time.Minute, "local copies given up", func() bool {
		for _, s := range c.n.Storage(crashTopic) {
			if s.LocalStart > 0 {
				return true
			}
		}
		return false
	})
	c.watch.stop()
	c.n.Stop()
	for p := range crashPartitions {
		if err := c.replay(p); err != nil {
			c.t.Fatalf("replay partition %d from the bucket: %v", p, err)
		}
	}
}

// replay reads one partition with `cirrolog replay --bucket`.
func (c *crash) replay(partition int) error {
	a := c.l.audit(partition)
	r, w := io.Pipe()
	var g group
	g.Go(func() error {
		err := c.n.CLI(w, "replay", crashTopic, "--bucket", "dir://"+c.bucket, "-p", strconv.Itoa(partition), "-f", `%o %V{ascii} %v`)
		w.CloseWithError(err)
		return err
	})
	g.Go(func() error {
		err := func() error {
			in := bufio.NewReaderSize(r, 1<<20)
			for {
				var offset int64
				var size int
				if _, err := fmt.Fscanf(in, "%d %d ", &offset, &size); err != nil {
					if errors.Is(err, io.EOF) {
						return a.end()
					}
					return err
				}
				value := make([]byte, size)
				if _, err := io.ReadFull(in, value); err != nil {
					return err
				}
				if err := a.add(offset, value); err != nil {
					return err
				}
			}
		}()
		r.CloseWithError(err)
		return err
	})
	return g.Wait()
}

func (c *crash) overHTTP() (n int) {
	for _, w := range c.writers {
		n += w.stored
	}
	return n
}

func (c *crash) sentAgain() (n int) {
	for _, w := range c.writers {
		n += w.again
	}
	return n
}

// TestKill kills a node under load CRASH_KILLS times: idempotent Kafka producers,
// HTTP clients that repeat a request with its Idempotency-Key until it is
// answered, and a consumer group that commits. Every acknowledged record
// must be there afterwards, once and in order, at the offset that was
// acknowledged; what was sent without an answer may be there, once and in
// order; what a consumer saw must stay; and a group's offsets are never behind
// what was committed nor ahead of what is there.
func TestKill(t *testing.T) {
	kills := 3
	if s := os.Getenv("CRASH_KILLS"); s != "" {
		var err error
		if kills, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	c := newCrash(t)
	for i := range kills {
		before := c.uploading()
		c.load()
		c.n.Kill()
		c.note(i+1, before)
		c.restart()
		c.verify(false)
	}
	if c.moments == 0 {
		t.Error("no kill met a segment that was closed and not in the bucket")
	}
	c.finish()
	t.Logf("%d kills under load, %d during a start; %d with a closed segment not in the bucket; %d records acknowledged, %d of them over HTTP (%d sent again); %d commits, %d records read again by the group", kills, c.killedUp, c.moments,
		c.l.total.Load(), c.overHTTP(), c.sentAgain(), c.members.commits.Load(), c.members.again.Load())
}

// TestKillGently ends a node under load with SIGTERM: it must end within its
// limit with exit code 0, having uploaded what was closed, and lose nothing.
func TestKillGently(t *testing.T) {
	const limit = 20 * time.Second
	c := newCrash(t, "--shutdown-timeout", limit.String())
	c.load()
	began := time.Now()
	c.n.Stop()
	took := time.Since(began)
	if took > limit+5*time.Second {
		t.Errorf("the node took %v to end, with --shutdown-timeout %v", took, limit)
	}
	d := c.disk()
	if d.untiered+d.rolling > 0 {
		t.Errorf("after a stop %d closed segments are not in the bucket, %d have no index", d.untiered, d.rolling)
	}
	t.Logf("ended in %.2f s, %d segments", took.Seconds(), d.closed)
	c.n.Start()
	c.verify(true)
	c.finish()
}
