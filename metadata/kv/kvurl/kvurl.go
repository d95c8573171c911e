// Package kvurl opens a metadata store that several agents share by its URL: redis://…, rediss:// or dynamodb://….
package kvurl

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"

	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/metadata/kv/dynamo"
	"github.com/cirrolog/cirrolog/metadata/kv/redis"
)

// ErrURL: the URL is none of such a store.
var ErrURL = errors.New("wrong URL")

// Open opens the store and says what kind it is: redis or dynamo. The caller closes it.
func Open(ctx context.Context, raw string, log *slog.Logger) (kv.Store, string, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, "", fmt.Errorf("%w: it can't be parsed", ErrURL) // it may hold a password
	}
	switch u.Scheme {
	case "redis", "rediss":
		s, err := redis.Open(ctx, raw, redis.Options{Logger: log})
		return s, "redis", err
	case "dynamodb":
		s, err := dynamo.Open(ctx, raw, dynamo.Options{Logger: log})
		return s, "dynamo", err
	}
	return nil, "", fmt.Errorf("%w: %s://…: want redis://, rediss:// or dynamodb://", ErrURL, u.Scheme)
}
