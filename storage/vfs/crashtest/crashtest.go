// Package crashtest samples the moments of a run at which a power loss is then
// tried: clones of a file system in memory, taken at its operations.
package crashtest

import (
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"

	"github.com/cirrolog/cirrolog/storage/vfs"
)

// Point is one moment: what a power loss there may leave, and what the test
// knew just before (Before) and just after (After) the clone was taken. What
// was acknowledged in Before must be in FS; what is not yet begun in After
// must not.
type Point[T any] struct {
	FS            *vfs.Mem
	Event         vfs.Event
	Index         int // of the operation in the run
	Before, After T
}

// Sampler takes at most a number of points of a run, each moment equally likely.
type Sampler[T any] struct {
	mem     *vfs.Mem
	rng     *rand.Rand
	limit   int
	observe func() T

	mu     sync.Mutex
	ended  bool
	seen   int
	points []Point[T]
}

// Sample begins to take points of mem. observe is called from the goroutines
// of mem's operations and must not use mem.
func Sample[T any](mem *vfs.Mem, seed uint64, limit int, observe func() T) *Sampler[T] {
	s := &Sampler[T]{mem: mem, rng: rand.New(rand.NewPCG(seed, 2)), limit: limit, observe: observe}
	mem.OnOp(s.at)
	return s
}

func (s *Sampler[T]) at(e vfs.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	slot := s.seen
	s.seen++
	if slot >= s.limit {
		if slot = s.rng.IntN(s.seen); slot >= s.limit {
			return
		}
	}
	p := Point[T]{Event: e, Index: s.seen - 1, Before: s.observe()}
	p.FS = s.mem.CrashClone(s.rng)
	p.After = s.observe()
	if slot == len(s.points) {
		s.points = append(s.points, p)
	} else {
		s.points[slot] = p
	}
}

// End stops sampling and returns the points and how many operations were seen.
func (s *Sampler[T]) End() ([]Point[T], int) {
	s.mem.OnOp(nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true // an operation may be about to call at still
	return s.points, s.seen
}

// Seed returns the seed of a randomised test: CRASH_SEED, or a random one. It
// is printed when the test fails or is verbose.
func Seed(t testing.TB) uint64 {
	t.Helper()
	seed := rand.Uint64()
	if s := os.Getenv("CRASH_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("CRASH_SEED: %v", err)
		}
		seed = n
	}
	t.Logf("CRASH_SEED=%d", seed)
	return seed
}

// Each calls f for every point, a few at once, and returns when all are done.
func Each[T any](t *testing.T, points []Point[T], f func(t *testing.T, p Point[T])) {
	t.Helper()
	t.Run("points", func(t *testing.T) {
		for _, p := range points {
			t.Run(strconv.Itoa(p.Index), func(t *testing.T) {
				t.Parallel()
				f(t, p)
			})
		}
	})
}
