package metadata

import (
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// DeletedTopic is a topic id whose deletion is in the bucket: the proof by which
// its bytes may be deleted.
type DeletedTopic struct {
	ID         ids.TopicID
	Name       string
	Partitions int32
	At         int64 // ms since 1970, by the clock of the agent that deleted it
}

// DeletedTopics returns all topics that were ever deleted, from the bucket
// alone. Each object is read once in the life of a Store, as objects never change.
func (s *Store) DeletedTopics(ctx context.Context) ([]DeletedTopic, error) {
	if err := s.CheckOwner(ctx); err != nil {
		return nil, err
	}
	var keys []string
	err := s.list(ctx, topicPrefix, "", func(o objstore.ObjectInfo) error {
		keys = append(keys, o.Key)
		return nil
	})
	if err != nil {
		return nil, unavailable("list deleted topics", err)
	}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(16)
	for _, key := range keys {
		if _, known := s.deletion(key); known {
			continue
		}
		group.Go(func() error {
			r, err := s.readTopic(gctx, key)
			if err != nil {
				return err
			}
			s.noteDeletion(key, r)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, unavailable("read deleted topics", err)
	}
	var out []DeletedTopic
	for _, key := range keys {
		if d, _ := s.deletion(key); d != nil {
			out = append(out, *d)
		}
	}
	return out, nil
}

func (s *Store) deletion(key string) (d *DeletedTopic, known bool) {
	s.deletedMu.Lock()
	defer s.deletedMu.Unlock()
	d, known = s.deleted[key]
	return d, known
}

func (s *Store) noteDeletion(key string, r *topicRecord) {
	var d *DeletedTopic
	if !r.live() {
		id, _ := ids.ParseTopicID(r.ID) // checked when it was decoded
		d = &DeletedTopic{ID: id, Name: r.Name, Partitions: r.Partitions, At: r.AtMs}
	}
	s.deletedMu.Lock()
	defer s.deletedMu.Unlock()
	s.deleted[key] = d
	if d != nil {
		s.deadIDs[d.ID] = struct{}{}
	}
}

// noteDeleted remembers the ids that a change of a name ends for ever.
func (s *Store) noteDeleted(r *topicRecord, c Change) {
	s.deletedMu.Lock()
	defer s.deletedMu.Unlock()
	if id, err := ids.ParseTopicID(r.ID); err == nil && !r.live() {
		s.deadIDs[id] = struct{}{}
	}
	if c.Old != nil && (c.New == nil || c.New.ID != c.Old.ID) {
		s.deadIDs[c.Old.ID] = struct{}{}
	}
}

// Deleted says that the topic is known to be deleted for ever: there is proof in the bucket.
func (s *Store) Deleted(id ids.TopicID) bool { return s.isDeleted(id) }

// isDeleted says that the topic is known to be deleted for ever.
func (s *Store) isDeleted(id ids.TopicID) bool {
	s.deletedMu.Lock()
	defer s.deletedMu.Unlock()
	_, dead := s.deadIDs[id]
	return dead
}
