package metadata

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// startsObject is meta/log-start/<n>: the log starts above 0 of all topics
// not deleted, never lower than in the object before it.
type startsObject struct {
	Format int                        `json:"format"`
	N      int64                      `json:"n"`
	AtMs   int64                      `json:"at_ms"`
	By     ids.Incarnation            `json:"by"`
	Nonce  string                     `json:"nonce"`
	Starts map[string]map[int32]int64 `json:"starts"` // topic id -> partition -> offset
}

type logStarts struct {
	n      int64 // of the object; 0: there is none
	atMs   int64 // when it was written, by the writer's clock
	starts map[ids.TopicPartition]int64
}

// keptStarts is how many of the newest objects stay, so that a reader that has
// listed the newest still finds it after the next was written.
const keptStarts = 3

// newestLogStarts reads the newest object; n is 0 if there is none.
func (s *Store) newestLogStarts(ctx context.Context) (logStarts, error) {
	var lastErr error
	for range 5 { // the object listed may be replaced and deleted before it is read
		key, err := s.last(ctx, startsPrefix, "")
		if err != nil || key == "" {
			return logStarts{}, err
		}
		body, err := s.get(ctx, key)
		if errors.Is(err, objstore.ErrNotFound) {
			lastErr = err
			continue
		}
		if err != nil {
			return logStarts{}, err
		}
		return decodeLogStarts(key, body)
	}
	return logStarts{}, fmt.Errorf("log starts are replaced faster than they are read: %w", lastErr)
}

func decodeLogStarts(key string, body []byte) (logStarts, error) {
	n, err := parseNumbered(startsPrefix, key)
	if err != nil {
		return logStarts{}, err
	}
	var o startsObject
	if err := decode(key, body, &o); err != nil {
		return logStarts{}, err
	}
	if o.N != n {
		return logStarts{}, fmt.Errorf("%s: %w: it says number %d", key, ErrDamaged, o.N)
	}
	out := logStarts{n: n, atMs: o.AtMs, starts: map[ids.TopicPartition]int64{}}
	for topic, parts := range o.Starts {
		id, err := ids.ParseTopicID(topic)
		if err != nil {
			return logStarts{}, fmt.Errorf("%s: %w: %w", key, ErrDamaged, err)
		}
		for p, start := range parts {
			if p < 0 || start < 0 {
				return logStarts{}, fmt.Errorf("%s: %w: log start %d of partition %d", key, ErrDamaged, start, p)
			}
			out.starts[ids.TopicPartition{Topic: id, Partition: p}] = start
		}
	}
	return out, nil
}

// ReadLogStarts returns the log starts that are durable in the bucket: the
// proof by which bytes below them may be deleted. Partitions not in it start at 0.
func (s *Store) ReadLogStarts(ctx context.Context) (map[ids.TopicPartition]int64, error) {
	starts, _, err := s.DatedLogStarts(ctx)
	return starts, err
}

// DatedLogStarts is ReadLogStarts with the time of the object that has them, by its writer's clock: all of them are that old
// at least.
func (s *Store) DatedLogStarts(ctx context.Context) (map[ids.TopicPartition]int64, time.Time, error) {
	newest, err := s.newestLogStarts(ctx)
	if err != nil {
		return nil, time.Time{}, unavailable("read log starts", err)
	}
	if newest.starts == nil {
		newest.starts = map[ids.TopicPartition]int64{}
	}
	return newest.starts, time.UnixMilli(newest.atMs), nil
}

// PublishLogStarts makes all log starts set so far durable in the bucket, by
// one new object if there is anything new. docs/design/002-log-starts.md has the
// argument why a success means that every later reader sees them.
func (s *Store) PublishLogStarts(ctx context.Context) error {
	unlock, err := s.starts.lock(ctx, "")
	if err != nil {
		return unavailable("publish log starts", err)
	}
	defer unlock()
	return unavailable("publish log starts", s.publishLogStarts(ctx))
}

func (s *Store) publishLogStarts(ctx context.Context) error {
	if err := s.CheckOwner(ctx); err != nil {
		return err
	}
	wanted, err := s.wantedLogStarts(ctx)
	if err != nil {
		return err
	}
	for range 100 {
		newest, err := s.newestLogStarts(ctx)
		if err != nil {
			return err
		}
		if covers(newest.starts, wanted) {
			return nil
		}
		key := numbered(startsPrefix, newest.n+1)
		body, err := s.encodeLogStarts(newest, wanted)
		if err != nil {
			return err
		}
		if _, _, err := s.create(ctx, key, body); err != nil {
			return err
		}
		// Whoever won, the newest object decides, not this put: a slow writer
		// may have created a number that was deleted long ago. So look again.
		s.dropOldLogStarts(ctx, newest.n+1)
	}
	return fmt.Errorf("%w: other agents keep publishing log starts", ErrUnavailable)
}

// wantedLogStarts collects the log starts above 0 of topics not deleted.
func (s *Store) wantedLogStarts(ctx context.Context) (map[ids.TopicPartition]int64, error) {
	out := map[ids.TopicPartition]int64{}
	err := s.rows(ctx, partPrefix, func(it kv.Item) error {
		tp, err := parsePartition(strings.TrimPrefix(it.Key, partPrefix))
		if err != nil {
			return fmt.Errorf("%w: row %s: %w", ErrDamaged, it.Key, err)
		}
		var row partitionRow
		if err := decode("row "+it.Key, it.Value, &row); err != nil {
			return err
		}
		if row.LogStart > 0 && !s.isDeleted(tp.Topic) {
			out[tp] = row.LogStart
		}
		return nil
	})
	return out, err
}

// covers says that have is at least want everywhere.
func covers(have, want map[ids.TopicPartition]int64) bool {
	for tp, start := range want {
		if have[tp] < start {
			return false
		}
	}
	return true
}

// encodeLogStarts renders the object after newest: the greater of both for each
// partition, without topics that are known to be deleted. A topic that this
// agent merely does not know may be another agent's new one: it stays.
func (s *Store) encodeLogStarts(newest logStarts, wanted map[ids.TopicPartition]int64) ([]byte, error) {
	o := startsObject{
		Format: formatVersion, N: newest.n + 1, AtMs: s.nowMs(), By: s.opts.Incarnation,
		Nonce: string(ids.NewIncarnation()), Starts: map[string]map[int32]int64{},
	}
	put := func(tp ids.TopicPartition, start int64) {
		id := tp.Topic.String()
		if o.Starts[id] == nil {
			o.Starts[id] = map[int32]int64{}
		}
		o.Starts[id][tp.Partition] = max(o.Starts[id][tp.Partition], start)
	}
	for tp, start := range newest.starts {
		if !s.isDeleted(tp.Topic) {
			put(tp, start)
		}
	}
	for tp, start := range wanted {
		put(tp, start)
	}
	body, err := encode(o)
	if err == nil && len(body) > maxObject {
		return nil, fmt.Errorf("%w: log starts take %d bytes, at most %d", ErrPolicy, len(body), maxObject)
	}
	return body, err
}

// dropOldLogStarts deletes objects that newer ones have replaced. Failing to is
// no harm: the next time gets them.
func (s *Store) dropOldLogStarts(ctx context.Context, n int64) {
	var old []string
	end := numbered(startsPrefix, n-keptStarts+1)
	err := s.list(ctx, startsPrefix, "", func(o objstore.ObjectInfo) error {
		if o.Key < end && len(old) < 1000 {
			old = append(old, o.Key)
		}
		return nil
	})
	if err == nil && n >= keptStarts && len(old) > 0 {
		_, err = s.opts.Bucket.DeleteMany(ctx, old)
	}
	if err != nil {
		s.opts.Logger.Warn("could not delete old log starts", "err", err)
	}
}
