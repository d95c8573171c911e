package lead

import (
	"errors"
	"log/slog"
	"testing"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// A reader is known to the others, and is given nothing: not as an heir, nor new
// partitions, even when there is nobody else.
func TestReaderIsNoCandidate(t *testing.T) {
	store, bucket := kv.NewMem(kv.MemOptions{}), objstore.NewMem()
	t.Cleanup(func() { store.Close() })
	open := func(reader bool) (*metadata.Store, *Manager) {
		var m *Manager
		meta, err := metadata.Open(t.Context(), metadata.Options{KV: store, Bucket: bucket, Incarnation: ids.NewIncarnation(), Reader: reader, Logger: slog.New(slog.DiscardHandler),
			Place: func(id ids.TopicID, from, to int32) []metadata.Agent { return m.Place(id, from, to) }})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { meta.Close() })
		m = New(Options{Meta: meta, Reader: reader})
		if err := meta.Register(t.Context(), "127.0.0.1", 9092, "r"); err != nil {
			t.Fatal(err)
		}
		if err := meta.WatchCluster(t.Context(), m.Kick); err != nil {
			t.Fatal(err)
		}
		return meta, m
	}
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
