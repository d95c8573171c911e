package kvtest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/cirrolog/cirrolog/metadata/kv"
)

// testLostResponses: answers get lost after the commit was carried out, or the
// request before it; reading tells which, and no increment is lost or doubled.
func testLostResponses(t *testing.T, s kv.Store) {
	var n atomic.Int64
	faulty := kv.WithHooks(s, kv.Hooks{
		Before: func(c kv.Call) error {
			if c.Method == "Commit" && n.Add(1)%5 == 0 {
				return kv.ErrUnknown // never reached the store
			}
			return nil
		},
		After: func(c kv.Call) error {
			if c.Method == "Commit" && n.Add(1)%3 == 0 {
				return kv.ErrUnknown // done, the answer was lost
			}
			return nil
		},
	})
	ctx := testCtx(t)
	const clients, each = 4, 15
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			for i := range each {
				if err := increment(ctx, faulty, fmt.Sprint(c, ".", i)); err != nil {
					t.Errorf("increment: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	wantValue(t, s, "counter", strconv.Itoa(clients*each))
}

// increment adds one to the counter, exactly once: each attempt leaves a marker
// in the same commit, which tells after a lost answer whether it was carried out.
func increment(ctx context.Context, s kv.Store, marker string) error {
	for {
		if _, err := s.Get(ctx, "marker/"+marker); err == nil {
			return nil
		} else if !errors.Is(err, kv.ErrNotFound) {
			return err
		}
		count := 0
		it, err := s.Get(ctx, "counter")
		if err == nil {
			if count, err = strconv.Atoi(string(it.Value)); err != nil {
				return err
			}
		} else if !errors.Is(err, kv.ErrNotFound) {
			return err
		}
		_, err = s.Commit(ctx, []kv.Op{set("counter", strconv.Itoa(count+1)), set("marker/"+marker, "")},
			[]kv.Precondition{{Key: "counter", Revision: it.Revision}, {Key: "marker/" + marker}})
		if err == nil {
			return nil
		}
		if !errors.Is(err, kv.ErrUnknown) && !errors.Is(err, kv.ErrConflict) {
			return err
		}
	}
}

// testCounters: under contention compare-and-set loses no update.
func testCounters(t *testing.T, s kv.Store) {
	ctx := testCtx(t)
	const clients, each = 8, 25
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			for i := range each {
				if err := increment(ctx, s, fmt.Sprint(c, ".", i)); err != nil {
					t.Errorf("increment: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	wantValue(t, s, "counter", strconv.Itoa(clients*each))
}

// The model of testLinearizable: linKeys registers with revisions.
const linKeys = 3

type linReg struct {
	value string // "" when absent
	rev   kv.Revision
	last  kv.Revision // greatest one the key ever had
}

type linState [linKeys]linReg

type linOp struct {
	key    int
	value  string
	delete bool
}

type linInput struct {
	read bool // of all registers, by one Range
	ops  []linOp
	pre  map[int]kv.Revision
}

type linOutput struct {
	conflict bool
	revs     []kv.Revision // of ops
	state    linState      // of a read; last is not known
}

func linKey(i int) string { return fmt.Sprint("lin/", i) }

func linModel() porcupine.Model {
	return porcupine.Model{
		Init:  func() any { return linState{} },
		Equal: func(a, b any) bool { return a.(linState) == b.(linState) },
		Step:  func(st, in, out any) (bool, any) { return linStep(st.(linState), in.(linInput), out.(linOutput)) },
	}
}

func linStep(st linState, in linInput, out linOutput) (bool, any) {
	if in.read {
		for i, r := range st {
			if r.value != out.state[i].value || r.rev != out.state[i].rev {
				return false, st
			}
		}
		return true, st
	}
	holds := true
	for k, rev := range in.pre {
		holds = holds && st[k].rev == rev
	}
	if out.conflict {
		return !holds, st
	}
	if !holds {
		return false, st
	}
	for i, op := range in.ops {
		r := &st[op.key]
		if op.delete {
			r.value, r.rev = "", 0
			continue
		}
		if out.revs[i] <= r.last {
			return false, st
		}
		*r = linReg{value: op.value, rev: out.revs[i], last: out.revs[i]}
	}
	return true, st
}

// testLinearizable records what concurrent clients do to three keys in multi-key
// commits, and asks porcupine for an order that explains all answers.
func testLinearizable(t *testing.T, s kv.Store) {
	const clients, each = 5, 30
	ctx := testCtx(t)
	start := time.Now()
	var mu sync.Mutex
	var history []porcupine.Operation
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(c), 1))
			var known linState
			for i := range each {
				in := linNext(rnd, known, fmt.Sprint(c, ".", i))
				call := time.Since(start).Nanoseconds()
				out, err := linDo(ctx, s, in)
				if err != nil {
					t.Errorf("%+v: %v", in, err)
					return
				}
				if in.read {
					known = out.state
				}
				op := porcupine.Operation{ClientId: c, Input: in, Call: call, Output: out, Return: time.Since(start).Nanoseconds()}
				mu.Lock()
				history = append(history, op)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if res := porcupine.CheckOperationsTimeout(linModel(), history, patience); res != porcupine.Ok {
		t.Fatalf("history of %d operations is not linearizable: %v", len(history), res)
	}
}

func linNext(rnd *rand.Rand, known linState, value string) linInput {
	if rnd.IntN(2) == 0 {
		return linInput{read: true}
	}
	in := linInput{pre: map[int]kv.Revision{}}
	for k := range linKeys {
		switch rnd.IntN(4) {
		case 0:
			in.ops = append(in.ops, linOp{key: k, value: value})
		case 1:
			in.ops = append(in.ops, linOp{key: k, delete: true})
		}
		if rnd.IntN(2) == 0 {
			in.pre[k] = known[k].rev
		}
	}
	return in
}

func linDo(ctx context.Context, s kv.Store, in linInput) (linOutput, error) {
	var out linOutput
	if in.read {
		items, err := s.Range(ctx, "lin/", "", linKeys, false)
		for _, it := range items {
			for k := range linKeys {
				if it.Key == linKey(k) {
					out.state[k] = linReg{value: string(it.Value), rev: it.Revision}
				}
			}
		}
		return out, err
	}
	var ops []kv.Op
	var pre []kv.Precondition
	for _, op := range in.ops {
		ops = append(ops, kv.Op{Key: linKey(op.key), Value: []byte(op.value), Delete: op.delete})
	}
	for k, rev := range in.pre {
		pre = append(pre, kv.Precondition{Key: linKey(k), Revision: rev})
	}
	revs, err := s.Commit(ctx, ops, pre)
	if errors.Is(err, kv.ErrConflict) {
		return linOutput{conflict: true}, nil
	}
	return linOutput{revs: revs}, err
}
