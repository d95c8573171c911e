package wal

import (
	"context"
	"time"

	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// Listed is a stream as a list of the bucket has it.
type Listed struct {
	Incarnation ids.Incarnation
	Sealed      bool
	Objects     int
	Newest      time.Time // when its last object was put, by the store's clock
}

// ListStreams lists all streams, oldest incarnation first.
func ListStreams(ctx context.Context, b objstore.Reader) (out []Listed, err error) {
	err = eachStream(ctx, b, func(s *listedStream) {
		out = append(out, Listed{Incarnation: s.inc, Sealed: s.sealed, Objects: len(s.objects), Newest: s.newest})
	})
	return out, err
}
