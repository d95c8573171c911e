package sim

import (
	"context"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/cirrolog/cirrolog/services/lead"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// fault is one thing that goes wrong, drawn from the seed before anything runs.
type fault struct {
	at, dur time.Duration
	kind    string
	slot    int
	n       int
}

// faultKinds are the kinds with their weights.
var faultKinds = []struct {
	kind   string
	weight int
}{
	{"kill", 6}, {"kill-wipe", 2}, {"pause", 5}, {"no-kv", 4}, {"no-bucket", 4}, {"isolate", 4}, {"late-seal", 5}, {"zombie", 3},
	{"forget", 3}, {"kv-away", 2}, {"lost-answers", 3}, {"flaky-bucket", 3}, {"slow-bucket", 3}, {"drain", 4}, {"move", 4},
}

func drawFaults(w *world) []fault {
	rng := rand.New(rand.NewPCG(w.seed, 2))
	total := 0
	for _, k := range faultKinds {
		total += k.weight
	}
	out := make([]fault, w.cfg.faults)
	for i := range out {
		n := rng.IntN(total)
		f := fault{at: time.Duration(rng.Int64N(int64(w.cfg.span * 9 / 10))), slot: rng.IntN(agents), n: rng.IntN(1 << 20)}
		for _, k := range faultKinds {
			if n < k.weight {
				if f.kind = k.kind; slices.Contains(strings.Split(os.Getenv("SIM_WITHOUT"), ","), f.kind) {
					f.kind = "none"
				}
				break
			}
			n -= k.weight
		}
		f.dur = time.Duration(200+rng.IntN(4*int(ttl.Milliseconds()))) * time.Millisecond
		out[i] = f
	}
	slices.SortStableFunc(out, func(a, b fault) int { return int(a.at - b.at) })
	return out
}

// storm plays the plan, and returns when the last fault is over.
func (w *world) storm(plan []fault) {
	began := time.Now()
	for _, f := range plan {
		time.Sleep(f.at - time.Since(began))
		w.trace.add("fault: %s, agent %d, for %v, n %d", f.kind, f.slot, f.dur, f.n)
		w.faultMu.Lock()
		w.faults[f.kind]++
		w.faultMu.Unlock()
		w.strike(f)
	}
	time.Sleep(6 * time.Second)
}

// during keeps a weather bad for the time of a fault.
func (w *world) during(f fault, at *weather, change func(by int)) {
	at.change(func() { change(1) })
	w.late.Go(func() {
		time.Sleep(f.dur)
		at.change(func() { change(-1) })
		w.trace.add("fault over: %s, agent %d", f.kind, f.slot)
	})
}

func (w *world) strike(f fault) {
	s := w.slots[f.slot]
	here, all := &s.weather, &w.weather
	order := order{kind: f.kind, wait: f.dur}
	switch f.kind {
	case "kill", "kill-wipe":
		order.kind, order.wipe = "kill", f.kind == "kill-wipe"
		if f.n%3 == 0 {
			order.wait = 0
		}
		if l := s.link.Load(); l != nil {
			l.kill()
		}
		s.orders <- order
	case "zombie":
		order.kind, order.wait = "leave", 0
		s.orders <- order
	case "drain":
		s.orders <- order
	case "pause":
		w.during(f, here, func(by int) { here.paused += by })
	case "no-kv":
		w.during(f, here, func(by int) { here.noKV += by })
	case "no-bucket":
		w.during(f, here, func(by int) { here.noBucket += by })
	case "isolate":
		w.during(f, here, func(by int) { here.noKV += by; here.noBucket += by })
	case "late-seal": // the others take an agent for dead that goes on, and are late
		f.dur += 3 * ttl
		w.during(f, here, func(by int) { here.noKV += by })
		w.during(f, all, func(by int) { all.lateSeals += by })
	case "kv-away":
		w.during(f, all, func(by int) { all.noKV += by })
	case "lost-answers":
		w.during(f, all, func(by int) { all.lostKV += by })
	case "flaky-bucket":
		w.during(f, all, func(by int) { all.flaky += by })
	case "slow-bucket":
		w.during(f, all, func(by int) { all.slow += by })
	case "forget":
		w.trace.add("fault: %d writes are forgotten", w.kv.forget(1+f.n%40))
	case "move":
		w.late.Go(func() { w.move(f) })
	}
}

// move has an agent give some of its partitions to another one.
func (w *world) move(f fault) {
	a := w.slots[f.slot].agent.Load()
	b := w.slots[(f.slot+1+f.n%(agents-1))%agents].agent.Load()
	if a == nil || b == nil {
		return
	}
	var moves []lead.Move
	for p := range w.cfg.partitions {
		if f.n>>p&1 == 0 {
			moves = append(moves, lead.Move{TP: ids.TopicPartition{Topic: w.topic.ID, Partition: p}, To: b.link.inc})
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := a.manager.Load().Release(ctx, moves); err != nil {
		w.trace.add("agent %d: release: %v", f.slot, err)
	}
}
