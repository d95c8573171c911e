package wal

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cirrolog/cirrolog/storage/ids"
	contract "github.com/cirrolog/cirrolog/storage/wal"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// Sealed is a stream that has ended.
type Sealed struct {
	*State
	Seal *Seal
	At   uint64 // number of the seal
	// Swept: the objects that had the state are gone, as all heirs have accepted; State is empty.
	Swept bool
}

// Key is the key of the seal.
func (s *Sealed) Key() string { return Key(s.Stream, s.At) }

// sealTries bounds how often a walk begins anew because the owner goes on.
const sealTries = 1000

// A walk that begins anew waits, longer each time: what it reads is changed by somebody else's requests.
const (
	sealPause    = time.Millisecond
	sealPauseMax = 50 * time.Millisecond
)

// errMoved: what a walk has seen is no longer there, or the seal it made is void.
var errMoved = errors.New("the stream has moved on")

// SealStream ends the stream of dead for ever, on behalf of by, or helps whoever
// is at it, and returns what the stream has and what its seal says. heirs decides
// from the stream alone what becomes of its partitions; it may be called several times.
// cluster is that of the bucket.
func SealStream(ctx context.Context, b objstore.Bucket, cluster [16]byte, dead, by ids.Incarnation, heirs func(*State) []Heir) (*Sealed, error) {
	s := sealer{b: b, cluster: cluster, dead: dead, by: by, heirs: heirs}
	for n := range sealTries {
		out, err := s.try(ctx)
		if err == nil {
			return out, nil
		}
		if !errors.Is(err, errMoved) && !errors.Is(err, objstore.ErrNotFound) {
			return nil, fmt.Errorf("seal stream %s: %w", dead, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("seal stream %s: %w", dead, context.Cause(ctx))
		case <-time.After(min(sealPause<<min(n, 10), sealPauseMax)):
		}
	}
	return nil, fmt.Errorf("seal stream %s: it went on through %d tries: its owner lives", dead, sealTries)
}

type sealer struct {
	b        objstore.Bucket
	cluster  [16]byte
	dead, by ids.Incarnation
	heirs    func(*State) []Heir
	known    map[info]*Footer // read by an earlier try
}

// try walks the stream once, and on while its owner goes on.
func (s *sealer) try(ctx context.Context) (*Sealed, error) {
	objects, sealed, err := list(ctx, s.b, s.dead)
	if err != nil {
		return nil, err
	}
	if sealed {
		return s.read(ctx, objects)
	}
	fs, at, err := s.walk(ctx, objects, 0, false)
	if err != nil {
		return nil, err
	}
	for {
		st, err := fold(s.dead, fs)
		if err != nil {
			return nil, err
		}
		seal, data, err := s.seal(ctx, at, st)
		if err != nil {
			return nil, err
		}
		if data != nil { // the owner was faster
			fs, at = append(fs, data), at+1
			continue
		}
		if err := s.validate(ctx, at, len(fs) > 0); err != nil {
			return nil, err
		}
		n, err := s.markSealed(ctx, at)
		if err != nil {
			return nil, err
		}
		if n != at {
			return nil, errMoved // somebody's other seal counts
		}
		return &Sealed{State: st, Seal: seal, At: at}, nil
	}
}

// read reads a stream that is marked as sealed.
func (s *sealer) read(ctx context.Context, objects []info) (*Sealed, error) {
	f, err := readSeal(ctx, s.b, s.dead)
	if err != nil {
		return nil, err
	}
	fs, _, err := s.walk(ctx, objects, f.Seq, true)
	if err != nil {
		return nil, err
	}
	swept := len(fs) == 0 || fs[len(fs)-1].CheckpointAt < fs[0].Seq
	if swept { // an owner never trims its last object, nor the newest checkpoint
		fs = nil
	}
	st, err := fold(s.dead, fs)
	if err != nil {
		return nil, err
	}
	return &Sealed{State: st, Seal: f.Seal, At: f.Seq, Swept: swept}, nil
}

// walk reads the footers of the prefix: from the lowest data object to the first
// missing number, or to the seal. next is that number.
func (s *sealer) walk(ctx context.Context, objects []info, at uint64, done bool) (out []*Footer, next uint64, err error) {
	if err := s.readFooters(ctx, objects); err != nil {
		return nil, 0, err
	}
	for _, o := range objects {
		f := s.known[o]
		switch {
		case done && o.seq >= at:
			return out, at, nil
		case f.Seal != nil && len(out) == 0:
			// A void seal: the number had been used and trimmed when it was made.
			next = o.seq + 1
			continue
		case len(out) > 0 && o.seq != next, f.Seal != nil:
			return out, next, nil
		}
		out = append(out, f)
		next = o.seq + 1
	}
	if len(out) == 0 && next > 0 {
		next-- // nothing but seals: help the last one
	}
	return out, next, nil
}

// readFooters reads those footers that no earlier try has read.
func (s *sealer) readFooters(ctx context.Context, objects []info) error {
	if s.known == nil {
		s.known = map[info]*Footer{}
	}
	var unread []info
	for _, o := range objects {
		if s.known[o] == nil {
			unread = append(unread, o)
		}
	}
	read, err := footers(ctx, s.b, s.dead, unread)
	if err != nil {
		return err
	}
	for i, f := range read {
		if f.Cluster != s.cluster {
			return fmt.Errorf("%w: %s is of another cluster", contract.ErrForeign, Key(s.dead, f.Seq))
		}
		s.known[unread[i]] = f
	}
	return nil
}

// seal creates the seal of number at, or reads what is there: a seal, or data of the owner.
func (s *sealer) seal(ctx context.Context, at uint64, st *State) (seal *Seal, data *Footer, err error) {
	seal = &Seal{By: s.by, Heirs: s.heirs(st)}
	if err := seal.complete(st); err != nil {
		return nil, nil, err
	}
	f := &Footer{Cluster: s.cluster, Stream: s.dead, Seq: at, CreatedMs: time.Now().UnixMilli(), Seal: seal}
	rand.Read(f.Nonce[:])
	b := &body{}
	b.add(f.header())
	b.add(f.encode())
	_, err = objstore.PutCreateOnly(ctx, s.b, Key(s.dead, at), b, objstore.PutOptions{})
	if err == nil {
		return seal, nil, nil
	}
	if !errors.Is(err, objstore.ErrPrecondition) {
		return nil, nil, err
	}
	f, err = ReadFooter(ctx, s.b, s.dead, at, -1)
	switch {
	case err != nil:
		return nil, nil, err
	case f.Seal == nil:
		return nil, f, nil
	}
	return f.Seal, nil, nil
}

// ErrNoHeir: a seal would leave a partition of the stream without an heir, for ever.
var ErrNoHeir = errors.New("wal: no heir for a partition of the stream")

// complete makes sure that the seal lists all that the incarnation has accepted: who finds a
// partition not listed takes it for one that was never accepted.
func (s *Seal) complete(st *State) error {
	listed := make(map[ids.TopicPartition]bool, len(s.Heirs))
	for _, h := range s.Heirs {
		listed[h.TP] = true
	}
	for tp := range st.Tails {
		if !listed[tp] {
			return fmt.Errorf("%w: %s", ErrNoHeir, tp)
		}
	}
	for tp := range st.Released {
		if !listed[tp] {
			return fmt.Errorf("%w: %s, which was released", ErrNoHeir, tp)
		}
	}
	return nil
}

// validate makes sure that the number at was never used: then the object before
// it is there, as a trim never takes the last one.
func (s *sealer) validate(ctx context.Context, at uint64, data bool) error {
	if at == 0 {
		if objects, _, err := list(ctx, s.b, s.dead); err != nil || len(objects) == 1 {
			return err
		}
		return errMoved
	}
	if !data {
		return errMoved
	}
	f, err := ReadFooter(ctx, s.b, s.dead, at-1, -1)
	if err == nil && f.Seal != nil {
		return errMoved // a void seal in the place of an object that was trimmed
	}
	return err
}

// sealedObject is wal/<incarnation>/sealed.
type sealedObject struct {
	Format int    `json:"format"`
	Seal   uint64 `json:"seal"`
}

// markSealed makes the seal of number at the one that counts, and returns the
// number of the one that does.
func (s *sealer) markSealed(ctx context.Context, at uint64) (uint64, error) {
	v, err := json.Marshal(sealedObject{Format: formatVersion, Seal: at})
	if err != nil {
		return 0, err
	}
	b := &body{}
	b.add(append(v, '\n'))
	_, err = objstore.PutCreateOnly(ctx, s.b, sealedKey(s.dead), b, objstore.PutOptions{})
	if errors.Is(err, objstore.ErrPrecondition) {
		return readSealed(ctx, s.b, s.dead)
	}
	return at, err
}

func readSealed(ctx context.Context, b objstore.Reader, inc ids.Incarnation) (uint64, error) {
	key := sealedKey(inc)
	v, err := readSmall(ctx, b, key)
	if err != nil {
		return 0, err
	}
	var o sealedObject
	if err := json.Unmarshal(v, &o); err != nil {
		return 0, fmt.Errorf("%w: %s: %w", contract.ErrDamaged, key, err)
	}
	if o.Format != formatVersion {
		return 0, fmt.Errorf("%s: %w %d, this program knows %d", key, contract.ErrVersion, o.Format, formatVersion)
	}
	return o.Seal, nil
}

// readSeal reads the seal that counts of a stream that is marked as sealed. ErrNotFound: it is not.
func readSeal(ctx context.Context, b objstore.Reader, inc ids.Incarnation) (*Footer, error) {
	at, err := readSealed(ctx, b, inc)
	if err != nil {
		return nil, err
	}
	f, err := ReadFooter(ctx, b, inc, at, -1)
	if errors.Is(err, objstore.ErrNotFound) {
		return nil, fmt.Errorf("%w: %s, the seal, is not there", contract.ErrDamaged, Key(inc, at))
	}
	if err == nil && f.Seal == nil {
		err = fmt.Errorf("%w: %s is said to be the seal and is none", contract.ErrDamaged, Key(inc, at))
	}
	return f, err
}

// SealAt is the seal of a stream, which has its At-th number.
type SealAt struct {
	*Seal
	Stream ids.Incarnation
	At     uint64
}

// Key is the key of the seal.
func (s *SealAt) Key() string { return Key(s.Stream, s.At) }

// ReadSeal returns the seal of a stream alone, whatever the stream has: two small objects; nil: it is not sealed.
func ReadSeal(ctx context.Context, b objstore.Reader, cluster [16]byte, inc ids.Incarnation) (*SealAt, error) {
	f, err := readSeal(ctx, b, inc)
	switch {
	case errors.Is(err, objstore.ErrNotFound):
		return nil, nil
	case err != nil:
		return nil, err
	case f.Cluster != cluster:
		return nil, fmt.Errorf("%w: %s is of another cluster", contract.ErrForeign, Key(inc, f.Seq))
	}
	return &SealAt{f.Seal, inc, f.Seq}, nil
}

// ReadSealed returns what a sealed stream has, and its seal; nil: the stream is not sealed.
func ReadSealed(ctx context.Context, b objstore.Bucket, cluster [16]byte, inc ids.Incarnation) (*Sealed, error) {
	_, err := readSealed(ctx, b, inc)
	if errors.Is(err, objstore.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return SealStream(ctx, b, cluster, inc, "", nil) // it is sealed: nothing is made
}
