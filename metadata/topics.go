package metadata

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// CreateTopic asks for a new topic.
type CreateTopic struct {
	Name              string
	Partitions        int32 // -1: the default
	ReplicationFactor int16 // -1, or 1 to the number of agents; all mean the same
	Configs           map[string]*string
	ValidateOnly      bool
}

// CreateTopic creates a topic and returns it; with ValidateOnly it returns what
// it would create, with a zero id. Of concurrent creators, on any agents, one
// succeeds and the others get ErrTopicExists. Further errors: ErrInvalidTopic,
// ErrInvalidPartitions, ErrInvalidReplication, ErrInvalidConfig, ErrPolicy, and
// ErrUnavailable, after which the topic may or may not come to be.
func (s *Store) CreateTopic(ctx context.Context, req CreateTopic) (*Topic, error) {
	if err := ValidateTopicName(req.Name); err != nil {
		return nil, err
	}
	n, err := checkPartitions(req.Partitions, s.opts.DefaultPartitions)
	if err != nil {
		return nil, err
	}
	if err := checkReplication(req.ReplicationFactor, max(s.opts.Agents(), 1)); err != nil {
		return nil, err
	}
	configs, err := plainConfigs(req.Configs)
	if err != nil {
		return nil, err
	}
	config, err := s.opts.Defaults.Parse(configs)
	if err != nil {
		return nil, err
	}
	r, err := s.change(ctx, req.Name, req.ValidateOnly, func(cur *topicRecord) (*topicRecord, error) {
		if cur.live() {
			return nil, fmt.Errorf("%w: topic '%s' already exists", ErrTopicExists, req.Name)
		}
		if other := s.collision(req.Name); other != "" {
			return nil, fmt.Errorf("%w: topic '%s' collides with existing topic: %s", ErrInvalidTopic, req.Name, other)
		}
		if err := s.checkTotal(int(n)); err != nil {
			return nil, err
		}
		id := ids.NewTopicID()
		owners, err := s.firstOwners(nil, id, 0, n)
		if err != nil {
			return nil, err
		}
		return &topicRecord{Op: opCreate, ID: id.String(), Partitions: n, Configs: configs, Durability: config.Durability, CreatedMs: s.nowMs(), Owners: owners}, nil
	})
	if err != nil {
		return nil, unavailable(fmt.Sprintf("create topic '%s'", req.Name), err)
	}
	t := s.topic(r)
	if req.ValidateOnly {
		t.ID = ids.TopicID{}
	}
	return t, nil
}

// collision returns a live topic other than name whose name differs only in '.' and '_'.
func (s *Store) collision(name string) string {
	key := collisionKey(name)
	for _, t := range s.Snapshot().Topics() {
		if t.Name != name && len(t.Name) == len(name) && collisionKey(t.Name) == key {
			return t.Name
		}
	}
	return ""
}

func (s *Store) checkTotal(more int) error {
	if have := s.Snapshot().Partitions(); have+more > s.opts.MaxTotalPartitions {
		return fmt.Errorf("%w: %d partitions and %d more exceed the limit of %d in total", ErrPolicy, have, more, s.opts.MaxTotalPartitions)
	}
	return nil
}

// AddPartitions raises the number of partitions of a topic to total.
func (s *Store) AddPartitions(ctx context.Context, name string, total int32, validateOnly bool) error {
	_, err := s.change(ctx, name, validateOnly, func(cur *topicRecord) (*topicRecord, error) {
		if !cur.live() {
			return nil, unknownTopic(name)
		}
		switch {
		case total == cur.Partitions:
			return nil, fmt.Errorf("%w: topic already has %d partition(s)", ErrInvalidPartitions, cur.Partitions)
		case total < cur.Partitions:
			return nil, fmt.Errorf("%w: the topic %s currently has %d partition(s); %d would not be an increase", ErrInvalidPartitions, name, cur.Partitions, total)
		}
		if _, err := checkPartitions(total, 0); err != nil {
			return nil, err
		}
		if err := s.checkTotal(int(total - cur.Partitions)); err != nil {
			return nil, err
		}
		id, err := ids.ParseTopicID(cur.ID)
		if err != nil {
			return nil, fmt.Errorf("topic '%s': %w: %w", name, ErrDamaged, err)
		}
		next := *cur
		next.Op, next.Partitions = opPartitions, total
		if next.Owners, err = s.firstOwners(cur.Owners, id, cur.Partitions, total); err != nil {
			return nil, err
		}
		return &next, nil
	})
	return unavailable(fmt.Sprintf("add partitions to '%s'", name), err)
}

// firstOwners appends who gets the partitions from to to-1 of a topic.
func (s *Store) firstOwners(owners []FirstOwner, id ids.TopicID, from, to int32) ([]FirstOwner, error) {
	if s.opts.Place == nil {
		return addOwner(owners, FirstOwner{From: from, To: to, Node: s.nodeID, Incarnation: s.opts.Incarnation}), nil
	}
	placed := s.opts.Place(id, from, to)
	if len(placed) != int(to-from) {
		return nil, fmt.Errorf("%w: no agent can lead new partitions: start one that is no reader", ErrUnavailable)
	}
	for i, o := range placed {
		owners = addOwner(owners, FirstOwner{From: from + int32(i), To: from + int32(i) + 1, Node: o.Node, Incarnation: o.Incarnation})
	}
	return owners, nil
}

// addOwner appends o, joined with the last one when both are the same agent.
func addOwner(owners []FirstOwner, o FirstOwner) []FirstOwner {
	out := slices.Clone(owners)
	if n := len(out); n > 0 && out[n-1].Incarnation == o.Incarnation && out[n-1].To == o.From {
		out[n-1].To = o.To
		return out
	}
	return append(out, o)
}

func unknownTopic(name string) error {
	return fmt.Errorf("%w: this server has no topic '%.249s'", ErrUnknownTopic, name)
}

// AlterConfig applies ops to the configs of a topic. Nothing is written when
// they change nothing.
func (s *Store) AlterConfig(ctx context.Context, name string, ops []ConfigOp, validateOnly bool) error {
	return s.alter(ctx, name, validateOnly, func(cur map[string]string) (map[string]string, error) {
		return s.opts.Defaults.Apply(cur, ops)
	})
}

// ReplaceConfig makes configs all that the topic sets.
func (s *Store) ReplaceConfig(ctx context.Context, name string, configs map[string]*string, validateOnly bool) error {
	return s.alter(ctx, name, validateOnly, func(cur map[string]string) (map[string]string, error) {
		return s.opts.Defaults.Replace(cur, configs)
	})
}

func (s *Store) alter(ctx context.Context, name string, validateOnly bool, f func(map[string]string) (map[string]string, error)) error {
	_, err := s.change(ctx, name, validateOnly, func(cur *topicRecord) (*topicRecord, error) {
		if !cur.live() {
			return nil, unknownTopic(name)
		}
		configs, err := f(s.configsOf(cur))
		if err != nil || maps.Equal(configs, cur.Configs) {
			return nil, err
		}
		next := *cur
		next.Op, next.Configs, next.Durability = opConfig, configs, s.classOf(cur)
		return &next, nil
	})
	return unavailable(fmt.Sprintf("alter configs of '%s'", name), err)
}

// DeleteTopic deletes the topic with this id: it is gone at once, its bytes go
// later, by way of DeletedTopics.
func (s *Store) DeleteTopic(ctx context.Context, id ids.TopicID) error {
	t := s.Snapshot().TopicByID(id)
	if t == nil {
		return fmt.Errorf("%w: this server has no topic with id %s", ErrUnknownTopic, id)
	}
	_, err := s.change(ctx, t.Name, false, func(cur *topicRecord) (*topicRecord, error) {
		if !cur.live() || cur.ID != id.String() {
			return nil, unknownTopic(t.Name)
		}
		return &topicRecord{Op: opDelete, ID: cur.ID, Partitions: cur.Partitions, CreatedMs: cur.CreatedMs}, nil
	})
	return unavailable(fmt.Sprintf("delete topic '%s'", t.Name), err)
}

// change makes the next version of a name from its newest one in the bucket:
// bucket first, then row, then snapshot. next returns nil to leave it as it is;
// it is called again when another agent was faster. The record returned is the
// newest one, or with dry what next made of it.
func (s *Store) change(ctx context.Context, name string, dry bool, next func(cur *topicRecord) (*topicRecord, error)) (*topicRecord, error) {
	if err := ValidateTopicName(name); err != nil {
		return nil, unknownTopic(name)
	}
	unlock, err := s.names.lock(ctx, collisionKey(name))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := s.CheckOwner(ctx); err != nil {
		return nil, err
	}
	for range 100 {
		cur, err := s.newest(ctx, name)
		if err != nil {
			return nil, err
		}
		if cur != nil && cur.Version > s.known(name) {
			if err := s.publish(ctx, cur); err != nil { // another agent's, or our own before a crash or outage
				return nil, err
			}
		}
		r, err := next(cur)
		if err != nil {
			return nil, err
		}
		if r == nil {
			return cur, nil
		}
		r.Format, r.Name, r.AtMs, r.By, r.Nonce, r.Version = formatVersion, name, s.nowMs(), s.opts.Incarnation, string(ids.NewIncarnation()), 1
		if cur != nil {
			r.Version = cur.Version + 1
		}
		body, err := encode(r)
		if err != nil {
			return nil, err
		}
		if len(body) > kv.MaxValueBytes {
			return nil, fmt.Errorf("%w: topic '%s' with its configs has %d bytes, at most %d", ErrInvalidConfig, name, len(body), kv.MaxValueBytes)
		}
		if dry {
			return r, nil
		}
		won, _, err := s.create(ctx, topicObject(name, r.Version), body)
		if err != nil {
			return nil, err
		}
		if won {
			return r, s.publish(ctx, r)
		}
	}
	return nil, fmt.Errorf("%w: other agents keep changing topic '%s'", ErrUnavailable, name)
}

// newest reads the newest version of a name from the bucket; nil: there is none.
func (s *Store) newest(ctx context.Context, name string) (*topicRecord, error) {
	after := ""
	if v := s.known(name); v > 0 {
		after = topicObject(name, v-1)
	}
	key, err := s.last(ctx, topicObjects(name), after)
	if err != nil {
		return nil, err
	}
	if key == "" {
		if after != "" {
			return nil, fmt.Errorf("%w: version %d of topic '%s' is gone from the bucket: restore the bucket", ErrForeignBucket, s.known(name), name)
		}
		return nil, nil
	}
	return s.readTopic(ctx, key)
}

func (s *Store) readTopic(ctx context.Context, key string) (*topicRecord, error) {
	name, version, err := parseTopicObject(key)
	if err != nil {
		return nil, err
	}
	body, err := s.get(ctx, key)
	if err != nil {
		return nil, err
	}
	r, err := decodeTopic(key, body)
	if err != nil {
		return nil, err
	}
	if r.Name != name || r.Version != version {
		return nil, fmt.Errorf("%s: %w: it is for version %d of '%s'", key, ErrDamaged, r.Version, r.Name)
	}
	return r, nil
}

// publish raises the row of a topic to a record that the bucket has, then the snapshot.
func (s *Store) publish(ctx context.Context, r *topicRecord) error {
	v, err := encode(r)
	if err != nil {
		return err
	}
	key := topicRow(r.Name)
	err = s.update(ctx, func() ([]kv.Op, []kv.Precondition, error) {
		it, err := s.row(ctx, key)
		if err != nil {
			return nil, nil, err
		}
		if it.Revision != 0 {
			row, err := decodeTopic("row "+key, it.Value)
			if err != nil {
				return nil, nil, err
			}
			if row.Version >= r.Version {
				return nil, nil, nil
			}
		}
		return []kv.Op{{Key: key, Value: v}}, []kv.Precondition{{Key: key, Revision: it.Revision}}, nil
	})
	if err != nil {
		return err
	}
	s.apply(r)
	return nil
}

// completeTopics loads all topics: the rows first, then the bucket's list, so
// that the bucket is never behind; what the rows lack is read and published.
func (s *Store) completeTopics(ctx context.Context) error {
	rows := map[string]*topicRecord{}
	if err := s.rows(ctx, topicRow(""), func(it kv.Item) error {
		r, err := decodeTopic("row "+it.Key, it.Value)
		if err == nil {
			rows[r.Name] = r
		}
		return err
	}); err != nil {
		return err
	}
	newest := map[string]int64{}
	if err := s.list(ctx, topicPrefix, "", func(o objstore.ObjectInfo) error {
		name, version, err := parseTopicObject(o.Key)
		newest[name] = max(newest[name], version)
		return err
	}); err != nil {
		return err
	}
	for name, r := range rows {
		if r.Version > newest[name] {
			return fmt.Errorf("%w: the metadata store knows version %d of topic '%s', the bucket only %d: check the bucket's name, or restore it", ErrForeignBucket, r.Version, name, newest[name])
		}
	}
	var mu sync.Mutex
	read := map[string]*topicRecord{} // from the bucket
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(16)
	for name, version := range newest {
		if r := rows[name]; r != nil && r.Version == version {
			s.apply(r)
			continue
		}
		group.Go(func() error {
			r, err := s.readTopic(gctx, topicObject(name, version))
			if err != nil {
				return err
			}
			s.opts.Logger.Info("completing the metadata store from the bucket", "topic", name, "version", version)
			mu.Lock()
			defer mu.Unlock()
			read[name] = r
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, r := range read {
		if err := s.publish(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// Refresh completes the topics from the bucket, as Open does. It finds what an
// outage of the key-value store kept from it.
func (s *Store) Refresh(ctx context.Context) error {
	return unavailable("refresh topics", s.completeTopics(ctx))
}

// applyTopicRow brings another agent's change into the snapshot.
func (s *Store) applyTopicRow(it kv.Item) error {
	if it.Value == nil {
		return nil // rows of topics are never deleted, only by hand
	}
	r, err := decodeTopic("row "+it.Key, it.Value)
	if err == nil {
		s.apply(r)
	}
	return err
}
