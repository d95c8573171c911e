package sim

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/pprof"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func newRand(seed, n uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, n)) }

func env(t *testing.T, name string, def uint64) uint64 {
	v := os.Getenv(name)
	if v == "" {
		return def
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		t.Fatalf("%s=%q: want a number", name, v)
	}
	return n
}

// report adds up what seeds did.
type report struct {
	mu     sync.Mutex
	seeds  int
	failed []uint64
	ops    map[string]int64
	acked  int64
	stale  int64
	faults map[string]int
	counts counts
}

func (r *report) add(w *world, failed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seeds++
	if failed {
		r.failed = append(r.failed, w.seed)
	}
	for k, n := range w.done {
		r.ops[k] += n.Load()
	}
	r.acked += w.acked.Load()
	r.stale += w.stale.Load()
	for k, n := range w.faults {
		r.faults[k] += n
	}
	r.counts.add(w.vault.count())
}

func total[N int | int64](m map[string]N) (string, N) {
	var names []string
	var sum N
	for k, n := range m {
		names = append(names, fmt.Sprintf("%s %d", k, n))
		sum += n
	}
	sort.Strings(names)
	return strings.Join(names, ", "), sum
}

func (r *report) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	ops, n := total(r.ops)
	faults, m := total(r.faults)
	return fmt.Sprintf("%d seeds, %d with violations %v\noperations %d: %s\nacknowledged records %d, sequences refused by those who led before %d\nfaults %d: %s\n%s", r.seeds, len(r.failed), r.failed, n, ops, r.acked, r.stale, m, faults, r.counts)
}

// TestSim plays SIM_SEEDS seeds from SIM_SEED on, each with SIM_OPS operations and SIM_FAULTS
// faults. A seed that fails prints itself and leaves its trace in SIM_TRACE_DIR.
func TestSim(t *testing.T) {
	first, seeds := env(t, "SIM_SEED", 1), env(t, "SIM_SEEDS", 15)
	if os.Getenv("SIM_SEED") != "" && os.Getenv("SIM_SEEDS") == "" {
		seeds = 1
	}
	ops, faults := int(env(t, "SIM_OPS", 5000)), int(env(t, "SIM_FAULTS", 24))
	if testing.Short() {
		seeds = min(seeds, 3)
	}
	r := &report{ops: map[string]int64{}, faults: map[string]int{}}
	began := time.Now()
	t.Run("seeds", func(t *testing.T) {
		next := make(chan uint64, seeds)
		for i := range seeds {
			next <- first + i
		}
		close(next)
		for i := range runtime.GOMAXPROCS(0) {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				for seed := range next {
					t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { play(t, seed, newConfig(seed, ops, faults), r) })
				}
			})
		}
	})
	took := time.Since(began)
	t.Logf("%v\n%.2f seeds a second", r, float64(r.seeds)/took.Seconds())
}

// hangs is how long a seed may take, in real time.
const hangs = 2 * time.Minute

// play plays one seed in a bubble of its own.
func play(t *testing.T, seed uint64, cfg config, r *report) {
	dog := time.AfterFunc(hangs, func() {
		_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 2)
		panic(fmt.Sprintf("seed %d hangs: something waits, or tries again, for ever", seed))
	})
	defer dog.Stop()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(seed, cfg)
		w.run(t)
		vs := w.trace.failed()
		r.add(w, len(vs) > 0)
		if len(vs) > 0 || os.Getenv("SIM_TRACE") != "" {
			t.Logf("seed %d: the trace is %s", seed, w.trace.write(t, seed))
		}
		for _, v := range vs {
			t.Errorf("seed %d: %s", seed, v)
		}
	})
}
