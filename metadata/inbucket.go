package metadata

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// TopicInBucket finds the live topic of a name in nothing but the bucket, for
// tools that run while every agent is stopped. ErrUnknownTopic: there is none.
func TopicInBucket(ctx context.Context, b objstore.Bucket, name string) (*Topic, error) {
	if err := ValidateTopicName(name); err != nil {
		return nil, err
	}
	s, err := bucketOnly(b)
	if err != nil {
		return nil, err
	}
	r, err := s.newest(ctx, name)
	if err != nil {
		return nil, unavailable("look up topic "+name, err)
	}
	if !r.live() {
		return nil, fmt.Errorf("%w: the bucket has no topic '%s'", ErrUnknownTopic, name)
	}
	return s.topic(r), nil
}

// LogStartsInBucket is ReadLogStarts without a Store.
func LogStartsInBucket(ctx context.Context, b objstore.Bucket) (map[ids.TopicPartition]int64, error) {
	s, err := bucketOnly(b)
	if err != nil {
		return nil, err
	}
	return s.ReadLogStarts(ctx)
}

// bucketOnly is a Store that can read the bucket and nothing else.
func bucketOnly(b objstore.Bucket) (*Store, error) {
	d, err := NewClusterDefaults(nil)
	if err != nil {
		return nil, err
	}
	return &Store{opts: Options{Bucket: b, Defaults: d, Logger: slog.New(slog.DiscardHandler), Tries: 8}}, nil
}
