package lead

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cirrolog/cirrolog/storage/ids"
)

// What each of the agents gives, by loads.
func TestBalance(t *testing.T) {
	as := agents(4)
	for _, c := range []struct {
		name  string
		loads []int
		gives []int // by all
		most  int
	}{
		{"alone", []int{9}, []int{0}, 100},
		{"one joins two", []int{10, 10, 0}, []int{3, 3, 0}, 100}, // 7, 7, 6
		{"one joins three", []int{4, 4, 4, 0}, []int{1, 1, 1, 0}, 100},
		{"two join two", []int{8, 8, 0, 0}, []int{4, 4, 0, 0}, 100},
		{"bounded", []int{100, 0}, []int{7, 0}, 7},
		{"even", []int{5, 5, 5, 5}, []int{0, 0, 0, 0}, 100},
		{"within a quarter", []int{12, 9, 9, 10}, []int{0, 0, 0, 0}, 100},
		{"few partitions", []int{2, 1, 0}, []int{0, 0, 0}, 100},
		{"all on one", []int{3, 0, 0}, []int{2, 0, 0}, 100},
		{"one is far above", []int{16, 8, 8, 8}, []int{6, 0, 0, 0}, 100},
		{"nothing is led", []int{0, 0}, []int{0, 0}, 100},
	} {
		t.Run(c.name, func(t *testing.T) {
			candidates := slices.Clone(as[:len(c.loads)])
			for i, n := range c.loads {
				candidates[i].Load = n
			}
			for i, want := range c.gives {
				led := partitions(c.loads[i])
				got := Balance(candidates[i].Incarnation, led, candidates, c.most)
				if len(got) != want {
					t.Errorf("agent %d gives %d of %d, want %d", i, len(got), c.loads[i], want)
				}
				if again := Balance(candidates[i].Incarnation, led, candidates, c.most); !slices.Equal(got, again) {
					t.Error("the same question has two answers")
				}
			}
		})
	}
}

// All agents decide for themselves, in any order and by small steps; it ends, nobody gets back what
// it gave, and loads differ by a quarter at most.
func TestBalanceEnds(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	for range 200 {
		as := agents(2 + rng.IntN(8))
		led := map[ids.Incarnation][]ids.TopicPartition{}
		n := rng.IntN(400)
		crowd := 1 + rng.IntN(len(as))
		for _, tp := range partitions(n) {
			inc := as[rng.IntN(crowd)].Incarnation
			led[inc] = append(led[inc], tp)
		}
		gave, got := map[ids.Incarnation]bool{}, map[ids.Incarnation]bool{}
		for round := 0; ; round++ {
			for i := range as {
				as[i].Load = len(led[as[i].Incarnation])
			}
			var all []Move
			for _, a := range as {
				ms := Balance(a.Incarnation, led[a.Incarnation], as, 1+rng.IntN(50))
				if len(ms) > 0 {
					gave[a.Incarnation] = true
				}
				for _, m := range ms {
					at := slices.Index(led[a.Incarnation], m.TP)
					if at < 0 || m.To == a.Incarnation {
						t.Fatalf("%v is not its own to give, or stays", m)
					}
					led[a.Incarnation] = slices.Delete(led[a.Incarnation], at, at+1)
					got[m.To] = true
				}
				all = append(all, ms...)
			}
			for _, m := range all {
				led[m.To] = append(led[m.To], m.TP)
			}
			if len(all) == 0 {
				break
			}
			if round > 500 {
				t.Fatal("it does not end")
			}
		}
		for inc := range gave {
			if got[inc] {
				t.Fatal("an agent gave and took")
			}
		}
		low, high := n/len(as), (n+len(as)-1)/len(as)
		for _, a := range as {
			if l := len(led[a.Incarnation]); l > high+(high+3)/4 || l < low-(low+3)/4 {
				t.Fatalf("%d of %d partitions at one of %d agents", l, n, len(as))
			}
		}
	}
}
