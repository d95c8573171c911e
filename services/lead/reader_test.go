package lead

import (
	"errors"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// opener returns what makes agents of one cluster, registered, that do nothing by themselves.
func opener(t *testing.T) func(reader bool) (*metadata.Store, *Manager) {
	store, bucket := kv.NewMem(kv.MemOptions{}), objstore.NewMem()
	t.Cleanup(func() { store.Close() })
	return func(reader bool) (*metadata.Store, *Manager) {
		var m *Manager
		inc := ids.NewIncarnation()
		meta, err := metadata.Open(t.Context(), metadata.Options{KV: store, Bucket: bucket, Incarnation: inc, Reader: reader, Logger: slog.New(slog.DiscardHandler),
			Place: func(id ids.TopicID, from, to int32) []metadata.Agent { return m.Place(id, from, to) }})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { meta.Close() })
		m = New(Options{Meta: meta, Incarnation: inc, Reader: reader})
		if err := meta.Register(t.Context(), "127.0.0.1", 9092, "r"); err != nil {
			t.Fatal(err)
		}
		if err := meta.WatchCluster(t.Context(), m.Kick); err != nil {
			t.Fatal(err)
		}
		return meta, m
	}
}

// A reader is known to the others, and is given nothing: not as an heir, nor new
// partitions, even when there is nobody else.
func TestReaderIsNoCandidate(t *testing.T) {
	open := opener(t)
	reader, m := open(true)
	if a := reader.Agents(); len(a) != 1 || !a[0].Reader {
		t.Errorf("agents are %+v", a)
	}
	if c := m.candidates(nil); len(c) != 0 {
		t.Errorf("candidates are %+v", c)
	}
	req := metadata.CreateTopic{Name: "a", Partitions: 4, ReplicationFactor: -1}
	if _, err := reader.CreateTopic(t.Context(), req); !errors.Is(err, metadata.ErrUnavailable) {
		t.Errorf("a topic without anyone to lead it: %v", err)
	}
	leader, m := open(false)
	if a := leader.Agents(); len(a) != 2 {
		t.Errorf("agents are %+v", a)
	}
	if c := m.candidates(nil); len(c) != 1 || c[0].Node != leader.NodeID() {
		t.Errorf("candidates are %+v", c)
	}
	topic, err := leader.CreateTopic(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if len(topic.Owners) != 1 || topic.Owners[0].Node != leader.NodeID() {
		t.Errorf("owners are %+v", topic.Owners)
	}
}

// An agent that is drained is given nothing, unless all are; it is so until it says otherwise or starts again.
func TestDrainedIsNoCandidate(t *testing.T) {
	open := opener(t)
	one, m := open(false)
	soon := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal(what)
			}
		}
	}
	is := func(want ...int32) func() bool {
		return func() bool {
			var nodes []int32
			for _, c := range m.candidates(nil) {
				nodes = append(nodes, c.Node)
			}
			return slices.Equal(nodes, want)
		}
	}
	two, _ := open(false)
	soon("two agents", is(1, 2))
	if _, err := two.SetDrained(t.Context(), 99, true); !errors.Is(err, metadata.ErrUnknownNode) {
		t.Errorf("an agent that there is not is drained: %v", err)
	}
	if a, err := two.SetDrained(t.Context(), 1, true); err != nil || !a.Drained || a.Incarnation != m.o.Incarnation {
		t.Errorf("%+v, %v", a, err)
	}
	soon("the drained one is none", is(2))
	if err := one.Register(t.Context(), "127.0.0.1", 9093, "r"); err != nil { // its row is written anew
		t.Fatal(err)
	}
	soon("the new address", func() bool { return one.Agents()[0].Port == 9093 })
	soon("a new address does not end it", is(2))
	if _, err := one.SetDrained(t.Context(), 2, true); err != nil {
		t.Fatal(err)
	}
	soon("better they than nobody", is(1, 2))
	if _, err := one.SetDrained(t.Context(), 1, false); err != nil {
		t.Fatal(err)
	}
	soon("the drained one is none", is(1))
}

// An agent that the others have taken for dead answers nothing more from the moment at which it can know, whatever it is
// busy with and however well it renews its lease.
func TestSealedIsNotLive(t *testing.T) {
	open := opener(t)
	_, m := open(false)
	other, _ := open(false)
	m.work.Lock() // a release, say, which waits for a bucket that is away
	defer m.work.Unlock()
	if err := m.renew(t.Context()); err != nil || !m.Live() {
		t.Fatalf("live: %v, %v", m.Live(), err)
	}
	if err := other.PublishSealed(t.Context(), m.o.Incarnation, 7); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); m.Live(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it goes on")
		}
		if err := m.renew(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
