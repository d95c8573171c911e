package wal

import (
	"context"
	"errors"
	"fmt"

	"github.com/cirrolog/cirrolog/storage/ids"
	contract "github.com/cirrolog/cirrolog/storage/wal"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// ReadReleases returns what the object seq of a stream gives away. The owner of the
// stream, which may live, has said that it is durable. When the object is trimmed already it
// returns all that the stream has given away and not accepted again.
func ReadReleases(ctx context.Context, b objstore.Bucket, cluster [16]byte, inc ids.Incarnation, seq uint64) ([]Release, error) {
	f, err := ReadFooter(ctx, b, inc, seq, -1)
	switch {
	case errors.Is(err, objstore.ErrNotFound):
	case err != nil:
		return nil, fmt.Errorf("read releases: %w", err)
	case f.Cluster != cluster:
		return nil, fmt.Errorf("read releases: %w: %s is of another cluster", contract.ErrForeign, Key(inc, seq))
	case f.Seal == nil:
		return f.Releases, nil
	}
	st, err := FoldLiving(ctx, b, cluster, inc)
	if err != nil {
		return nil, err
	}
	out := make([]Release, 0, len(st.Released))
	for _, r := range st.Released {
		out = append(out, r)
	}
	return out, nil
}

// InPrefix tells whether the object seq of a stream is durable: it is there, and all are from the
// lowest present number on. Of one that is trimmed, or behind a void seal, it does not know, and says no.
func InPrefix(ctx context.Context, b objstore.Reader, inc ids.Incarnation, seq uint64) (bool, error) {
	objects, _, err := list(ctx, b, inc)
	if err != nil {
		return false, fmt.Errorf("list stream %s: %w", inc, err)
	}
	for i, o := range objects {
		if o.seq != objects[0].seq+uint64(i) {
			return false, nil
		}
		if o.seq == seq {
			return true, nil
		}
	}
	return false, nil
}

// FoldLiving returns the state of a stream that may go on: of the objects that are there without
// a gap. Only what its owner has told of them, or a seal, makes them count.
func FoldLiving(ctx context.Context, b objstore.Bucket, cluster [16]byte, inc ids.Incarnation) (*State, error) {
	s := sealer{b: b, cluster: cluster, dead: inc}
	for range sealTries {
		st, err := s.foldOnce(ctx)
		if err == nil {
			return st, nil
		}
		if ctx.Err() != nil || !errors.Is(err, errMoved) && !errors.Is(err, objstore.ErrNotFound) {
			return nil, fmt.Errorf("read stream %s: %w", inc, err)
		}
	}
	return nil, fmt.Errorf("read stream %s: it was trimmed faster than it could be read, %d times", inc, sealTries)
}

func (s *sealer) foldOnce(ctx context.Context) (*State, error) {
	objects, _, err := list(ctx, s.b, s.dead)
	if err != nil {
		return nil, err
	}
	fs, _, err := s.walk(ctx, objects, 0, false)
	if err != nil {
		return nil, err
	}
	if len(fs) == 0 {
		return nil, errors.New("it has no objects")
	}
	return fold(s.dead, fs)
}
