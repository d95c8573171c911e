package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/internal/testenv"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if err := local.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

// options of a run, from the environment.
type options struct {
	length time.Duration // CHAOS_MINUTES
	store  string        // CHAOS_STORE: redis or dynamo
	seed   uint64        // CHAOS_SEED
	only   []string      // CHAOS_ONLY: kinds of faults; "none" for none
	rate   int           // CHAOS_RATE: records per second
	goOn   bool          // CHAOS_GO_ON=1: more faults after a promise was broken
}

func readOptions(t *testing.T) (o options) {
	t.Helper()
	text := func(name, otherwise string) string {
		if s := os.Getenv(name); s != "" {
			return s
		}
		return otherwise
	}
	minutes, err := strconv.ParseFloat(text("CHAOS_MINUTES", ""), 64)
	if err != nil {
		t.Skip("skipped: `make chaos` runs it")
	}
	rate, err2 := strconv.Atoi(text("CHAOS_RATE", "2600"))
	seed, err3 := strconv.ParseUint(text("CHAOS_SEED", strconv.FormatInt(time.Now().UnixNano()%1e9, 10)), 10, 64)
	if err := errors.Join(err2, err3); err != nil {
		t.Fatal(err)
	}
	o = options{length: time.Duration(minutes * float64(time.Minute)), store: text("CHAOS_STORE", "redis"), seed: seed, rate: rate, goOn: os.Getenv("CHAOS_GO_ON") == "1"}
	if s := os.Getenv("CHAOS_ONLY"); s != "" {
		o.only = strings.Split(s, ",")
	}
	return o
}

// report is what a run ends with.
type report struct {
	Store      string                `json:"store"`
	Seed       uint64                `json:"seed"`
	Minutes    float64               `json:"minutes"` // of load
	PerSecond  float64               `json:"records_per_second"`
	Partitions int                   `json:"partitions"`
	Faults     map[string]int        `json:"faults"`
	Together   int                   `json:"faults_two_at_once"`
	Skipped    map[string]string     `json:"skipped,omitempty"`
	Pauses     map[string]*worstTime `json:"worst_pause_of_acknowledgements"`
	Healed     float64               `json:"longest_healing_s"`
	Ended      map[string]int        `json:"agents_ended_by_themselves,omitempty"`
	Hung       int                   `json:"librdkafka_deadlocked"` // consumers that were replaced, see hungAfter
	Wrong      []string              `json:"wrong,omitempty"`       // errors that no client should see, clients that did not go on
	Planted    []string              `json:"planted_and_found"`
	*Verdict
}

// worstTime is the longest time without an acknowledgement, in seconds.
type worstTime struct {
	Partition float64 `json:"partition"` // of one partition
	All       float64 `json:"all"`       // of all
}

// TestChaos is a run; see CONTRIBUTING.md.
func TestChaos(t *testing.T) {
	o := readOptions(t)
	if o.store == "dynamo" {
		lease = dynamoLease
	}
	rep := &report{Store: o.store, Seed: o.seed, Partitions: partitions, Faults: map[string]int{}, Skipped: map[string]string{}, Pauses: map[string]*worstTime{}, Ended: map[string]int{}}
	var err error
	if rep.Planted, err = checkPlanted(); err != nil {
		t.Fatal(err)
	}
	for _, line := range rep.Planted {
		fmt.Println("planted and found:", line)
	}
	dir := filepath.Join(testenv.Root(), ".cache", "chaos", fmt.Sprintf("%s-%d-%d", o.store, o.seed, os.Getpid()))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	fmt.Printf("seed %d, store %s, directory %s\n", o.seed, o.store, dir)
	t.Cleanup(func() {
		if t.Failed() {
			fmt.Printf("FAILED: CHAOS_SEED=%d CHAOS_STORE=%s; all logs and the history are in %s\n", o.seed, o.store, dir)
		} else if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	open, err := storeOf(o.store, dir)
	if err != nil {
		t.Fatal(err)
	}
	c := newCluster(t, dir, o.seed, open)
	c.load(o.rate)
	began := time.Now()
	if err := c.healed("the start"); err != nil {
		t.Fatal(err)
	}
	if err := c.play(o, rep, began); err != nil {
		t.Error(err)
	}
	rep.Minutes = time.Since(began).Minutes()
	rep.PerSecond = float64(c.rec.far().total) / time.Since(began).Seconds()
	if err := c.finish(); err != nil {
		c.rec.wrong("the end: %v", err)
	}
	c.report(rep, dir)
}

// play makes faults happen until the time is over, and lets the cluster heal after each.
func (c *cluster) play(o options, rep *report, began time.Time) error {
	r := rand.New(rand.NewPCG(o.seed, 1))
	kinds := c.chosen(o, rep)
	ctx, cancel := context.WithCancel(c.ctx)
	var churn sync.WaitGroup
	churn.Go(func() { c.churn(ctx) })
	defer churn.Wait()
	defer cancel()
	for over := false; !over; {
		round := slices.Clone(kinds)
		r.Shuffle(len(round), func(i, j int) { round[i], round[j] = round[j], round[i] })
		if len(round) == 0 {
			sleep(c.ctx, time.Second)
		}
		for len(round) > 0 && !over {
			now := round[:1]
			if len(round) > 1 && together(round[0], round[1]) && r.IntN(4) == 0 {
				now = round[:2]
			}
			round = round[len(now):]
			if err := c.strike(now, r, rep); err != nil {
				return err
			}
			over = c.over(o, began)
		}
		over = over || c.over(o, began)
	}
	return nil
}

// over tells whether a run is to end.
func (c *cluster) over(o options, began time.Time) bool {
	return time.Since(began) > o.length || c.rec.broken() > 0 && !o.goOn
}

// chosen are the kinds that happen in this run.
func (c *cluster) chosen(o options, rep *report) (kinds []fault) {
	all, known := c.faults(), []string{"none"}
	for _, f := range all {
		known = append(known, f.kind)
		switch {
		case o.only != nil && !slices.Contains(o.only, f.kind):
		case f.skip != "":
			rep.Skipped[f.kind] = f.skip
			fmt.Printf("skipped: %s: %s\n", f.kind, f.skip)
		default:
			kinds = append(kinds, f)
		}
	}
	for _, k := range o.only {
		if !slices.Contains(known, k) {
			c.t.Fatalf("CHAOS_ONLY=%s: there are %v", k, known)
		}
	}
	return kinds
}

// together tells whether two faults may happen at once.
func together(a, b fault) bool {
	return a.realm != ofAll && b.realm != ofAll && (a.realm != b.realm || a.realm == ofAgent)
}

// strike makes one fault happen, or two at once, and waits until all goes on.
func (c *cluster) strike(now []fault, r *rand.Rand, rep *report) error {
	var names []string
	for _, f := range now {
		names = append(names, f.kind)
	}
	what := strings.Join(names, " and ")
	c.rec.say("fault: %s", what)
	w := c.rec.open(names...)
	defer c.rec.close(w)
	var wg sync.WaitGroup
	errs := make([]error, len(now))
	for i, f := range now {
		own := rand.New(rand.NewPCG(r.Uint64(), 2))
		wg.Go(func() { errs[i] = f.do(c, own) })
	}
	wg.Wait()
	for i, err := range errs {
		rep.Faults[names[i]]++
		if err != nil {
			c.rec.wrong("%s: %v", names[i], err)
		}
	}
	if len(now) > 1 {
		rep.Together++
	}
	over := time.Now()
	err := c.healed(what)
	rep.Healed = max(rep.Healed, time.Since(over).Seconds())
	for _, k := range names {
		p := rep.Pauses[k]
		if p == nil {
			p = &worstTime{}
			rep.Pauses[k] = p
		}
		if len(now) == 1 { // of two it is not known whose pause it was
			p.Partition, p.All = max(p.Partition, w.worst.Seconds()), max(p.All, w.any.Seconds())
		}
	}
	defer sleep(c.ctx, between(r, 500*time.Millisecond, 3*time.Second)) // who came back is given partitions
	fmt.Printf("%s healed after %.1f s, worst pause %.1f s of a partition, %.1f s of all\n", what, time.Since(over).Seconds(), w.worst.Seconds(), w.any.Seconds())
	return err
}

// report prints what was found and fails the test if a promise was broken.
func (c *cluster) report(rep *report, dir string) {
	t := c.t
	v, wrongs, err := c.rec.end()
	if err != nil {
		t.Error(err)
	}
	rep.Verdict, rep.Wrong, rep.Hung = v, wrongs, c.hung
	for _, m := range c.members {
		if m.ended > 0 {
			rep.Ended[m.name] = m.ended
		}
	}
	b, err := json.MarshalIndent(rep, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(testenv.Root(), ".cache", "chaos", "report-"+rep.Store+".json")
	if err := errors.Join(os.WriteFile(path, b, 0o644), os.WriteFile(filepath.Join(dir, "report.json"), b, 0o644)); err != nil {
		t.Error(err)
	}
	fmt.Printf("%s\nreport: %s\n", b, path)
	if !v.OK() || len(wrongs) > 0 {
		t.Errorf("promises were broken, CHAOS_SEED=%d:\n%s", rep.Seed, strings.Join(append(wrongs, v.Examples...), "\n"))
	}
	if rep.PerSecond < 2000 {
		t.Errorf("%.0f records/s: want 2,000 at least", rep.PerSecond)
	}
}

// TestRecheck judges a history that a run has left: CHAOS_CHECK is its directory.
func TestRecheck(t *testing.T) {
	dir := os.Getenv("CHAOS_CHECK")
	if dir == "" {
		t.Skip("skipped: CHAOS_CHECK names no directory of a run")
	}
	f, err := os.Open(filepath.Join(dir, "history"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c := NewChecker(partitions)
	if err := EachEvent(f, func(e Event) error { c.Add(e); return nil }); err != nil {
		t.Fatal(err)
	}
	v := c.Verdict()
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println(string(b))
	if !v.OK() {
		t.Error("promises were broken")
	}
}
