package storage_test

import (
	"math/rand/v2"
	"testing"

	"github.com/cirrolog/cirrolog/storage"
	"github.com/cirrolog/cirrolog/storage/vfs/crashtest"
)

// Memory is given back all the time, while batches of all sizes come: what is read
// from files or spill files after that is there after a power loss, in order.
func TestCrashWithEviction(t *testing.T) {
	seed := crashtest.Seed(t)
	for name, from := range map[string]int64{"large batches at once": 200_000, "all through the ring": -1} {
		t.Run(name, func(t *testing.T) {
			mem := newCrashFS(t)
			o := crashOptions(mem)
			o.WALSize, o.DirectBytes = 8<<20, from
			w := &world{t: t, rng: rand.New(rand.NewPCG(seed, 1))}
			w.add(3)
			sampler := crashtest.Sample(mem, seed, 60, w.observe)
			var err error
			if w.store, err = storage.Open(o); err != nil {
				t.Fatal(err)
			}
			evicted := false
			for i := range 160 {
				m := w.parts[w.rng.IntN(3)]
				size := 100 + w.rng.IntN(3000)
				if w.rng.IntN(3) > 0 {
					size = w.rng.IntN(500_000)
				}
				w.appendAs(m, size, storage.LogConfig{SegmentBytes: 3 << 20})
				if w.rng.IntN(6) == 0 {
					w.settle()
				}
				if i > 100 {
					st := w.store.Stats()
					evicted = evicted || int(st.TailBatches) < i
				}
			}
			w.settle()
			if !evicted {
				t.Errorf("nothing was evicted: %+v", w.store.Stats())
			}
			if err := w.store.Close(); err != nil {
				t.Fatal(err)
			}
			points, _ := sampler.End()
			crashtest.Each(t, points, func(t *testing.T, p crashtest.Point[[]known]) {
				s := checkRecovered(t, p.FS, w.parts, p.Before, p.After)
				goOn(t, p.FS, s, w.parts, p.After)
			})
		})
	}
}
