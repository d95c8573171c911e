package metadata

import (
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"

	"github.com/cirrolog/cirrolog/storage/ids"
)

// Topic is an immutable description of a live topic.
type Topic struct {
	Name       string
	ID         ids.TopicID
	Partitions int32
	Configs    map[string]string // as set for the topic; not to be changed
	Config     TopicConfig       // the effective one
	Version    int64             // of the newest object; grows with each change, also over deletion
	Created    int64             // ms since 1970
	Owners     []FirstOwner      // who was given the partitions when they came to be
}

// Object is the key of the newest object that says what the topic is.
func (t *Topic) Object() string { return topicObject(t.Name, t.Version) }

// IsTopicObject tells whether a key of the bucket is that of a topic object.
func IsTopicObject(key string) bool { return strings.HasPrefix(key, topicPrefix) }

// FirstOwner is the agent that a topic object gives partitions From to To-1.
type FirstOwner struct {
	From        int32           `json:"from"`
	To          int32           `json:"to"`
	Node        int32           `json:"node"`
	Incarnation ids.Incarnation `json:"incarnation"`
}

// What a version of a topic did.
const (
	opCreate     = "create"
	opPartitions = "partitions"
	opConfig     = "config"
	opDelete     = "delete"
)

// topicRecord is meta/topics/<name>/<version> and the row topic/<name>: the
// whole state after the change, so that the newest one is enough.
type topicRecord struct {
	Format     int               `json:"format"`
	Version    int64             `json:"version"`
	Op         string            `json:"op"`
	Name       string            `json:"name"`
	ID         string            `json:"id"`
	Partitions int32             `json:"partitions"`
	Configs    map[string]string `json:"configs,omitempty"`
	// Durability is the class of the topic for ever. Objects made before there was a
	// choice have none, whatever their configs say: it is the cluster's built-in one.
	Durability Durability      `json:"durability,omitempty"`
	CreatedMs  int64           `json:"created_ms"`
	Owners     []FirstOwner    `json:"owners,omitempty"`
	AtMs       int64           `json:"at_ms"`
	By         ids.Incarnation `json:"by"`
	Nonce      string          `json:"nonce"`
}

func (r *topicRecord) live() bool { return r != nil && r.Op != opDelete }

func topicObjects(name string) string               { return topicPrefix + name + "/" }
func topicObject(name string, version int64) string { return numbered(topicObjects(name), version) }
func topicRow(name string) string                   { return "topic/" + name }

// parseTopicObject is the name and version in a key under meta/topics/.
func parseTopicObject(key string) (name string, version int64, err error) {
	name, _, ok := strings.Cut(strings.TrimPrefix(key, topicPrefix), "/")
	if !ok || !strings.HasPrefix(key, topicPrefix) || ValidateTopicName(name) != nil {
		return "", 0, fmt.Errorf("%w: object %s: want %s<name>/<version>", ErrDamaged, key, topicPrefix)
	}
	version, err = parseNumbered(topicObjects(name), key)
	return name, version, err
}

// decodeTopic parses and checks a record.
func decodeTopic(where string, b []byte) (*topicRecord, error) {
	var r topicRecord
	if err := decode(where, b, &r); err != nil {
		return nil, err
	}
	_, err := ids.ParseTopicID(r.ID)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w: %w", where, ErrDamaged, err)
	case ValidateTopicName(r.Name) != nil:
		return nil, fmt.Errorf("%s: %w: bad topic name", where, ErrDamaged)
	case r.Partitions < 1 || r.Partitions > MaxPartitions:
		return nil, fmt.Errorf("%s: %w: %d partitions", where, ErrDamaged, r.Partitions)
	case r.Version < 1:
		return nil, fmt.Errorf("%s: %w: version %d", where, ErrDamaged, r.Version)
	case !slices.Contains([]Durability{"", DurabilityLocal, DurabilityObject}, r.Durability):
		return nil, fmt.Errorf("%s: %w: unknown durability %q", where, ErrVersion, r.Durability)
	case !slices.Contains([]string{opCreate, opPartitions, opConfig, opDelete}, r.Op):
		return nil, fmt.Errorf("%s: %w: unknown op %q", where, ErrDamaged, r.Op)
	}
	return &r, nil
}

// topic turns a live record into what readers get.
func (s *Store) topic(r *topicRecord) *Topic {
	id, _ := ids.ParseTopicID(r.ID) // checked by decodeTopic, or fresh
	configs := s.configsOf(r)
	config, ignored := s.opts.Defaults.ParseStored(configs)
	if len(ignored) > 0 {
		s.opts.Logger.Warn("topic has configs that this version does not understand; they are left out", "topic", r.Name, "configs", ignored)
	}
	return &Topic{
		Name: r.Name, ID: id, Partitions: r.Partitions, Configs: configs, Config: config,
		Version: r.Version, Created: r.CreatedMs, Owners: r.Owners,
	}
}

// classOf is the durability of a topic.
func (s *Store) classOf(r *topicRecord) Durability {
	if r.Durability == "" {
		return s.opts.Defaults.builtInClass()
	}
	return r.Durability
}

// configsOf are the configs that a topic sets, with its durability where this agent's
// defaults say another one.
func (s *Store) configsOf(r *topicRecord) map[string]string {
	class := string(s.classOf(r))
	if s.opts.Defaults.value(durabilityConfig, r.Configs) == class {
		return r.Configs
	}
	out := maps.Clone(r.Configs)
	if out == nil {
		out = map[string]string{}
	}
	out[durabilityConfig] = class
	return out
}

// Snapshot is an immutable set of all live topics.
type Snapshot struct {
	byName     map[string]*Topic
	byID       map[ids.TopicID]*Topic
	sorted     []*Topic // by name
	partitions int      // of all topics
}

// Topics returns all topics by name; the slice is not to be changed.
func (s *Snapshot) Topics() []*Topic { return s.sorted }

// Topic returns a topic by name; nil if there is none.
func (s *Snapshot) Topic(name string) *Topic { return s.byName[name] }

// TopicByID returns a topic by id; nil if there is none.
func (s *Snapshot) TopicByID(id ids.TopicID) *Topic { return s.byID[id] }

// Partitions is the number of partitions of all topics.
func (s *Snapshot) Partitions() int { return s.partitions }

// with returns a snapshot in which name is t, or gone when t is nil.
func (s *Snapshot) with(name string, t *Topic) *Snapshot {
	n := &Snapshot{byName: maps.Clone(s.byName), byID: maps.Clone(s.byID), partitions: s.partitions}
	if n.byName == nil {
		n.byName, n.byID = map[string]*Topic{}, map[ids.TopicID]*Topic{}
	}
	at := sort.Search(len(s.sorted), func(i int) bool { return s.sorted[i].Name >= name })
	n.sorted = append(make([]*Topic, 0, len(s.sorted)+1), s.sorted...)
	if old := n.byName[name]; old != nil {
		n.partitions -= int(old.Partitions)
		delete(n.byName, name)
		delete(n.byID, old.ID)
		n.sorted = slices.Delete(n.sorted, at, at+1)
	}
	if t != nil {
		n.partitions += int(t.Partitions)
		n.byName[name], n.byID[t.ID] = t, t
		n.sorted = slices.Insert(n.sorted, at, t)
	}
	return n
}

// Snapshot returns the live topics as they are now.
func (s *Store) Snapshot() *Snapshot { return s.snap.Load() }

// Change is what happened to the topic of one name: Old is nil for a new topic,
// New for a deleted one. With different ids the topic was deleted and created again.
type Change struct{ Old, New *Topic }

// Subscribe calls f for each topic there is (as a Change without Old), and then
// for each change, in order, one at a time, after the snapshot has it and
// before the call that made it returns. f must not block, nor call methods that
// change topics.
func (s *Store) Subscribe(f func(Change)) (cancel func()) {
	s.applyMu.Lock()
	defer s.applyMu.Unlock()
	for _, t := range s.Snapshot().Topics() {
		f(Change{New: t})
	}
	id := s.nextSub
	s.nextSub++
	s.subs[id] = f
	return func() {
		s.applyMu.Lock()
		defer s.applyMu.Unlock()
		delete(s.subs, id)
	}
}

// apply brings a record into the snapshot unless a newer one is there.
func (s *Store) apply(r *topicRecord) {
	s.applyMu.Lock()
	defer s.applyMu.Unlock()
	if r.Version <= s.versions[r.Name] {
		return
	}
	s.versions[r.Name] = r.Version
	before := s.Snapshot()
	c := Change{Old: before.Topic(r.Name)}
	if r.live() {
		c.New = s.topic(r)
	}
	s.noteDeleted(r, c)
	s.snap.Store(before.with(r.Name, c.New))
	if c.Old == nil && c.New == nil {
		return
	}
	for _, f := range s.subs {
		f(c)
	}
}

// known is the newest version of a name that was applied; 0: none.
func (s *Store) known(name string) int64 {
	s.applyMu.Lock()
	defer s.applyMu.Unlock()
	return s.versions[name]
}
