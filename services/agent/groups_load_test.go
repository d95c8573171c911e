package agent

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/cirrolog/cirrolog/internal/testenv"
	"github.com/cirrolog/cirrolog/services/broker"
	"github.com/cirrolog/cirrolog/services/group"
	"github.com/cirrolog/cirrolog/storage/batch"
)

// produceGroupRecords appends records to the partition of a group, behind the
// back of its coordinator.
func produceGroupRecords(t *testing.T, b *broker.Broker, id string, records ...batch.Record) {
	t.Helper()
	topic := b.Topic(broker.OffsetsTopic)
	p, err := b.Partition(topic.ID, group.PartitionFor(id, topic.Partitions))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := batch.Encode(records, batch.EncodeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan broker.Produced, 1)
	p.Produce(t.Context(), raw, nil, func(r broker.Produced) { done <- r })
	if r := <-done; r.Err != nil {
		t.Fatal(r.Err)
	}
}

// A damaged record costs itself: it is left out with an error in the log, and
// what stands before and behind it is loaded. Records of other kinds of groups
// are no error.
func TestGroupsDamagedRecord(t *testing.T) {
	dir := t.TempDir()
	g, b, stop := startGroups(t, dir)
	topic := newTopic(t, b, "logs", 3)
	if err := commit(t, g, "g", topic, 1, 5, "note"); err != nil {
		t.Fatal(err)
	}
	produceGroupRecords(t, b, "g",
		batch.Record{Key: []byte{0}, Value: []byte("x")},                                               // no version
		batch.Record{Key: []byte{0, 1, 0, 9, 'g'}, Value: []byte("x")},                                 // a cut offset key
		batch.Record{Key: []byte{0, 2, 0, 1, 'g'}, Value: []byte{0, 3, 0, 8, 'c'}},                     // a cut group
		batch.Record{Key: []byte{0, 2, 0, 1, 'g'}, Value: append([]byte{0, 3}, make([]byte, 9000)...)}, // one with bytes behind it
		batch.Record{Key: []byte{0, 3, 0, 1, 'g'}, Value: []byte("of another protocol")})
	if err := commit(t, g, "g", topic, 2, 6, ""); err != nil {
		t.Fatal(err)
	}
	stop()
	var log testenv.Output
	a, _ := groupAgent(t, dir, nil, &log)
	if got := committedOffsets(t, a.broker.Groups(), "g"); len(got) != 2 || got[0] != 6 || got[1] != 6 {
		t.Errorf("offsets %v", got)
	}
	var offsets []string
	for l := range strings.Lines(log.String()) {
		if strings.Contains(l, "level=ERROR") && strings.Contains(l, "damaged record of a consumer group is left out") {
			_, at, _ := strings.Cut(l, " offset=")
			offsets = append(offsets, at[:1])
		}
	}
	if !slices.Equal(offsets, []string{"1", "2", "3", "4"}) {
		t.Errorf("told of the damage at offsets %v:\n%s", offsets, log.String())
	}
}

// Offsets that nobody uses go when the retention has passed, and the group with
// them, also from the log; a group with members keeps its own.
func TestGroupsOffsetsExpire(t *testing.T) {
	dir := t.TempDir()
	quick := func(c *Config) {
		c.Groups.Config.OffsetRetention, c.Groups.ExpireInterval = 500*time.Millisecond, 50*time.Millisecond
	}
	a, stop := groupAgent(t, dir, quick, nil)
	g := a.broker.Groups()
	topic := newTopic(t, a.broker, "logs", 3)
	p, err := newPeer(a.KafkaAddr(), "used", "")
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	p.metadata = []byte{0, 0, 0, 0, 0, 1, 0, 4, 'l', 'o', 'g', 's', 0, 0, 0, 0} // a consumer of logs
	if err := p.settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.commit("logs", 7); err != nil {
		t.Fatal(err)
	}
	if err := commit(t, g, "unused", topic, 3, 5, ""); err != nil {
		t.Fatal(err)
	}
	if got := committedOffsets(t, g, "unused"); len(got) != 3 {
		t.Fatalf("committed %v", got)
	}
	until(t, "the unused group is gone", func() bool {
		list, err := g.List(t.Context(), nil, nil)
		return err == nil && len(list) == 1
	})
	if got := committedOffsets(t, g, "used"); got[0] != 7 {
		t.Errorf("the group with a member has %v", got)
	}
	stop()
	g, _, _ = startGroups(t, dir)
	if got := committedOffsets(t, g, "unused"); len(got) != 0 {
		t.Errorf("after the restart: %v", got)
	}
	if got := committedOffsets(t, g, "used"); got[0] != 7 {
		t.Errorf("after the restart the group with a member has %v", got)
	}
}

// A static member of a real client that comes back in time takes its place
// without a rebalance; a second one of the same name drives the first out.
func TestGroupsStaticClient(t *testing.T) {
	a, _ := groupAgent(t, t.TempDir(), nil, nil)
	newTopic(t, a.broker, "logs", 6)
	member := func(name string, more ...kgo.Opt) *kgo.Client {
		cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(a.KafkaAddr()), kgo.ConsumerGroup("g"), kgo.ConsumeTopics("logs"), kgo.InstanceID(name),
			kgo.Balancers(kgo.RangeBalancer()), kgo.HeartbeatInterval(200 * time.Millisecond)}, more...)...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(cl.Close)
		return cl
	}
	stable := func(members int) (d group.Description) {
		until(t, "the group is stable", func() bool {
			d, _ = a.broker.Groups().Describe(t.Context(), "g")
			return d.State == group.Stable && len(d.Members) == members
		})
		return d
	}
	first, second := member("one"), member("two")
	before := stable(2)
	assigned := map[string]string{}
	for _, m := range before.Members {
		assigned[m.InstanceID] = string(m.Assignment)
	}
	for _, cl := range []*kgo.Client{first, second} {
		until(t, "the member knows its generation", func() bool { _, gen := cl.GroupMetadata(); return gen == before.Generation })
	}
	id, _ := second.GroupMetadata()
	second.Close() // a static member does not leave
	second = member("two")
	until(t, "the second is back", func() bool {
		back, gen := second.GroupMetadata()
		return back != "" && back != id && gen == before.Generation
	})
	after := stable(2)
	for _, m := range after.Members {
		if assigned[m.InstanceID] != string(m.Assignment) || len(m.Assignment) == 0 {
			t.Errorf("%s was assigned %q before and %q afterwards", m.InstanceID, assigned[m.InstanceID], m.Assignment)
		}
	}
	if after.Generation != before.Generation {
		t.Errorf("generation %d after %d", after.Generation, before.Generation)
	}

	member("one") // a twin
	ctx := t.Context()
	until(t, "the first is told that it is fenced", func() bool {
		fenced := false
		for _, e := range first.PollFetches(ctx).Errors() {
			fenced = fenced || errors.Is(e.Err, kerr.FencedInstanceID)
		}
		return fenced
	})
	if d := stable(2); d.Generation != before.Generation {
		t.Errorf("generation %d after the twin, %d before", d.Generation, before.Generation)
	}
}
