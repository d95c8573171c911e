// Package clients runs the Kafka clients that people use against a real node,
// and keeps the table of what they can do with it, docs/clients.md. The client
// libraries run in processes of their own, see README.md.
package clients

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cirrolog/cirrolog/localstack/e2e"
)

const (
	records    = 100_000 // of each client
	resumed    = 1000    // records after the members have left
	partitions = 6
	limit      = 2 * time.Minute // of each step: generous, the machine may be loaded
	atOnce     = 3               // clients
)

var codecs = [...]string{"zstd", "lz4", "snappy", "gzip", "none"}

// place is where a record is.
type place struct {
	partition int32
	offset    int64
}

// member is a consumer in a group.
type member struct {
	*process
	seen map[place]string // hash by place; under the run's lock
}

// run is one client at work.
type run struct {
	t     *testing.T
	n     *e2e.Node
	adm   *kadm.Client
	lib   library
	make  maker
	topic string
	group string
	row   row
	// of the members
	session     time.Duration
	cooperative bool

	mu         sync.Mutex
	seen       map[place]string
	floor      map[int32]int64 // committed when the member was killed; nil before
	duplicates int
	wrong      []string
}

// TestClients: each client sends 100,000 records with every codec it has while
// two of its kind consume them in a group; one is killed, the other takes over,
// and a third goes on where that one left. Nothing may be lost, and what was
// committed may not come again. An independent reading compares every record
// with what was sent. At last Kafka's own tool sees to all the groups.
func TestClients(t *testing.T) {
	n := e2e.NewNode(t, e2e.NodeOptions{Args: []string{"--offsets-topic-partitions", "5", "--group-initial-rebalance-delay", "0s"}})
	var mu sync.Mutex
	rows := map[string]row{}
	slots := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	all := libraries()
	slices.Reverse(all) // the slow ones first
	for _, lib := range all {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			t.Run(lib.id(), func(t *testing.T) {
				r := newRun(t, n, lib)
				r.versions()
				r.all()
				mu.Lock()
				defer mu.Unlock()
				rows[lib.name] = r.row
			})
		})
	}
	wg.Wait()
	n.MustRun()
	if t.Failed() || len(rows) == 0 {
		return
	}
	t.Run("kafka-consumer-groups", func(t *testing.T) { groupTool(t, n, rows) })
	if !t.Failed() {
		checkTable(t, rows)
	}
}

func newRun(t *testing.T, n *e2e.Node, lib library) *run {
	cl, err := kgo.NewClient(kgo.SeedBrokers(n.Kafka))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	r := &run{t: t, n: n, adm: kadm.NewClient(cl), lib: lib, make: lib.command(t), topic: lib.id(), group: "group-" + lib.id(),
		row: row{}, session: 6 * time.Second, seen: map[place]string{}}
	if resp, err := r.adm.CreateTopic(t.Context(), partitions, 1, nil, r.topic); errors.Join(err, resp.Err) != nil {
		t.Fatal(err, resp.Err)
	}
	return r
}

// versions asks the client for its version.
func (r *run) versions() {
	r.t.Helper()
	v, err := r.make.version()
	if err != nil {
		r.t.Fatalf("version: %v", err)
	}
	r.row["version"] = v
}

// all does everything that TestClients says, for one client.
func (r *run) all() {
	t, began := r.t, time.Now()
	a := r.join()
	b := r.join()
	r.stable(2)
	r.row["group of two"] = yes
	t.Logf("two members after %v", time.Since(began).Round(time.Millisecond))

	killed, sent := make(chan struct{}), make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { sent <- r.produce(ctx, killed) }()
	r.until("both members read", func() bool { return len(a.seen) > 0 && len(b.seen) >= records/10 }, a, b, sent)
	r.until("both members commit", func() bool { return r.sum() >= records/20 }, a, b, sent)
	b.kill()
	r.mu.Lock()
	mine := len(b.seen)
	r.mu.Unlock()
	floor := r.committed()
	r.mu.Lock()
	if r.duplicates > 0 {
		t.Errorf("%d records came twice before the kill", r.duplicates)
	}
	r.floor = floor
	r.mu.Unlock()
	t.Logf("one member killed after %v, it had read %d records", time.Since(began).Round(time.Millisecond), mine)
	close(killed)
	select {
	case err := <-sent:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(limit):
		t.Fatalf("not sent in %v", limit)
	}
	t.Logf("all sent after %v", time.Since(began).Round(time.Millisecond))
	r.until("the other member reads all", func() bool { return len(r.seen) >= records }, a, nil, nil)
	r.leave(a)
	r.row["one killed"] = yes
	r.mu.Lock()
	t.Logf("all read after %v, %d records twice", time.Since(began).Round(time.Millisecond), r.duplicates)
	r.mu.Unlock()
	r.resume()
	r.compare()
	t.Logf("done after %v", time.Since(began).Round(time.Millisecond))
}

// join starts a member.
func (r *run) join() *member {
	m := &member{seen: map[place]string{}}
	cmd, parse := r.make.consume(membership{broker: r.n.Kafka, topic: r.topic, group: r.group, session: r.session, cooperative: r.cooperative})
	m.process = start(r.t, "a consumer", cmd, func(out io.Reader) error {
		return parse(out, func(partition int32, offset int64, hash string) {
			r.mu.Lock()
			defer r.mu.Unlock()
			p := place{partition, offset}
			m.seen[p] = hash
			if first, again := r.seen[p]; again {
				r.duplicates++
				if first != hash {
					r.wrong = append(r.wrong, fmt.Sprintf("%v was read with two contents", p))
				}
				if floor, after := r.floor[partition]; after && offset < floor {
					r.wrong = append(r.wrong, fmt.Sprintf("%v came again, %d was committed before the kill", p, floor))
				}
			}
			r.seen[p] = hash
		})
	})
	return m
}

// describe describes the group.
func (r *run) describe() kadm.DescribedGroup {
	r.t.Helper()
	groups, err := r.adm.DescribeGroups(r.t.Context(), r.group)
	if err != nil {
		r.t.Fatal(err)
	}
	return groups[r.group]
}

// stable waits until the group has so many members, each with partitions, all
// of them together, and returns them by client id and member.
func (r *run) stable(members int) {
	r.t.Helper()
	last := "nothing"
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		g := r.describe()
		owned, busy := map[int32]bool{}, 0
		for _, m := range g.Members {
			if c, ok := m.Assigned.AsConsumer(); ok {
				n := 0
				for _, topic := range c.Topics {
					n += len(topic.Partitions)
					for _, p := range topic.Partitions {
						owned[p] = true
					}
				}
				if n > 0 {
					busy++
				}
			}
		}
		last = fmt.Sprintf("%s, %d members, %d of them with partitions, together %d", g.State, len(g.Members), busy, len(owned))
		if g.State == "Stable" && len(g.Members) == members && busy == members && len(owned) == partitions {
			return
		}
	}
	r.t.Fatalf("no stable group of %d in %v: %s", members, limit, last)
}

// produce sends all records, with one codec after the other. The last run waits
// until a member was killed, so that there is something to take over.
func (r *run) produce(ctx context.Context, killed <-chan struct{}) error {
	at := 0
	for i, codec := range codecs {
		if i == len(codecs)-1 {
			select {
			case <-killed:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		count := (records - at) / (len(codecs) - i)
		err := r.make.produce(r.t, r.n.Kafka, r.topic, codec, at, count)
		switch {
		case errors.Is(err, errNoCodec):
			r.row[codec] = "has none"
			continue
		case err != nil:
			return fmt.Errorf("%s: %w", codec, err)
		}
		at += count
	}
	if at != records {
		return fmt.Errorf("sent %d records, want %d", at, records)
	}
	return nil
}

// sum is how many records are committed.
func (r *run) sum() (n int64) {
	for _, at := range r.committed() {
		n += at
	}
	return n
}

// until waits for ok, which is called under the lock, while members go on.
func (r *run) until(what string, ok func() bool, a, b *member, sent chan error) {
	r.t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
		r.mu.Lock()
		done, n := ok(), len(r.seen)
		r.mu.Unlock()
		if done {
			return
		}
		for _, m := range []*member{a, b} {
			if m == nil {
				continue
			}
			select {
			case <-m.done:
				r.t.Fatalf("a member ended: %v", m.failure())
			default:
			}
		}
		select {
		case err := <-sent: // never ready when nil
			r.t.Fatalf("produce ended: %v", err)
		default:
		}
		if time.Now().After(end) {
			r.mu.Lock()
			for i, m := range []*member{a, b} {
				if m != nil {
					r.t.Logf("member %d read %d records", i, len(m.seen))
				}
			}
			r.mu.Unlock()
			g := r.describe()
			r.t.Logf("the group is %s, its members %+v, its offsets %v", g.State, g.Members, r.committed())
			r.t.Fatalf("not in %v: %s; %d records were read", limit, what, n)
		}
	}
}

// leave stops a member as a person would; then all it has read is committed.
func (r *run) leave(m *member) {
	r.t.Helper()
	if err := m.stop(limit); err != nil {
		r.t.Fatal(err)
	}
	ends, err := r.adm.ListEndOffsets(r.t.Context(), r.topic)
	if err != nil {
		r.t.Fatal(err)
	}
	committed := r.committed()
	for p, end := range ends[r.topic] {
		if committed[p] != end.Offset {
			r.t.Errorf("partition %d: %d is committed, its end is %d", p, committed[p], end.Offset)
		}
	}
}

// committed asks for the group's offsets.
func (r *run) committed() map[int32]int64 {
	r.t.Helper()
	offsets, err := r.adm.FetchOffsets(r.t.Context(), r.group)
	if err != nil {
		r.t.Fatal(err)
	}
	out := map[int32]int64{}
	for p, o := range offsets[r.topic] {
		out[p] = o.At
	}
	return out
}

// resume: a new member gets what came after the others, and only that.
func (r *run) resume() {
	r.t.Helper()
	if err := r.make.produce(r.t, r.n.Kafka, r.topic, "none", records, resumed); err != nil {
		r.t.Fatal(err)
	}
	before := r.duplicates
	c := r.join()
	r.until("the third member reads what is new", func() bool { return len(c.seen) >= resumed && len(r.seen) >= records+resumed }, c, nil, nil)
	r.leave(c)
	r.mu.Lock()
	defer r.mu.Unlock()
	if again := r.duplicates - before; again > 0 {
		r.t.Errorf("the third member read %d records again that were committed", again)
	}
	r.row["offsets resume"] = yes
}

// compare reads all with franz-go: each record is what was sent and what the
// members have read, is there once, and compressed as it was to be.
func (r *run) compare() {
	t := r.t
	cl, err := kgo.NewClient(kgo.SeedBrokers(r.n.Kafka), kgo.ConsumeTopics(r.topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	const all = records + resumed
	times := make([]int, all)
	found := tally{codecs: map[string]int{}}
	for read := 0; read < all; {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("read %d of %d records: %v", read, all, err)
		}
		fetches.EachRecord(func(rec *kgo.Record) {
			read++
			i, err := index(rec)
			if err != nil || i < 0 || i >= all {
				t.Errorf("partition %d, offset %d: no record of ours: %v", rec.Partition, rec.Offset, err)
				return
			}
			times[i]++
			want := r.lib.want(i)
			if d := want.differs(rec); d != "" {
				r.note("record %d: %s", i, d)
			}
			found.add(rec)
			m := made{rec.Key, rec.Value, rec.Headers}
			if r.lib.reads != nil {
				r.lib.reads(&m)
			}
			got := hash(rec.Partition, rec.Offset, m)
			if p := (place{rec.Partition, rec.Offset}); r.seen[p] != got {
				r.note("%v: the group has read %q, it is %q", p, r.seen[p], got)
			}
		})
	}
	for i, n := range times {
		if n != 1 {
			r.note("record %d is there %d times", i, n)
		}
	}
	if len(r.seen) != all {
		r.note("the group has read %d records, there are %d", len(r.seen), all)
	}
	if len(r.wrong) > 0 {
		t.Fatalf("%d faults, the first: %q", len(r.wrong), r.wrong[:min(3, len(r.wrong))])
	}
	r.features(found)
}

func (r *run) note(format string, args ...any) {
	r.wrong = append(r.wrong, fmt.Sprintf(format, args...))
}

// tally counts what was found in the records.
type tally struct {
	codecs                                         map[string]int
	idempotent, plain, nullKeys, deletes, big, all int
	headers, nullHeaders                           int
}

func (f *tally) add(r *kgo.Record) {
	f.all++
	f.codecs[[...]string{"none", "gzip", "snappy", "lz4", "zstd"}[r.Attrs.CompressionType()]]++
	if r.ProducerID >= 0 {
		f.idempotent++
	} else {
		f.plain++
	}
	if r.Key == nil {
		f.nullKeys++
	}
	if r.Value == nil {
		f.deletes++
	}
	if len(r.Value) > bigValue {
		f.big++
	}
	f.headers += min(1, len(r.Headers))
	f.nullHeaders += len(slices.DeleteFunc(slices.Clone(r.Headers), func(h kgo.RecordHeader) bool { return h.Value != nil }))
}

// features fills the rest of the row from what was found.
func (r *run) features(f tally) {
	t := r.t
	t.Logf("found %+v", f)
	for codec := range maps.Keys(f.codecs) {
		if f.codecs[codec] < records/len(codecs)/2 { // franz-go leaves batches that don't shrink as they are
			t.Errorf("%d records are compressed with %s", f.codecs[codec], codec)
		}
		r.row[codec] = yes
	}
	for _, codec := range codecs {
		if r.row[codec] == "" {
			t.Errorf("no record is compressed with %s", codec)
		}
	}
	switch {
	case r.lib.idempotent && f.plain == 0:
		r.row["idempotence"] = yes
	case !r.lib.idempotent && f.idempotent == 0:
		r.row["idempotence"] = "has none"
	default:
		t.Errorf("%d records are of idempotent producers, %d are not", f.idempotent, f.plain)
	}
	if f.nullKeys == 0 || f.deletes == 0 || f.headers == 0 || f.nullHeaders == 0 && r.lib.headers == "" || f.big < records/bigEvery {
		t.Errorf("found only %+v", f)
	}
	r.row["null keys and values"], r.row["headers"], r.row["900 KB values"] = yes, yes, yes
	if r.lib.headers != "" {
		r.row["headers"] = r.lib.headers
	}
}
