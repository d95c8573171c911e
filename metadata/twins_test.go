package metadata

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/metadata/kv"
	"github.com/cirrolog/cirrolog/storage/ids"
)

// twin writes the row of another agent that has started on this cluster, with or without a lease.
func (w *world) twin(s *Store, row agentRow, lease time.Duration) {
	w.t.Helper()
	row.Format, row.Epoch = formatVersion, 1
	v, err := encode(row)
	mustNil(w.t, err)
	_, err = s.opts.KV.Commit(w.t.Context(), []kv.Op{{Key: agentKey(row.Node), Value: v}}, nil)
	mustNil(w.t, err)
	if lease > 0 {
		mustNil(w.t, s.opts.KV.Acquire(w.t.Context(), leaseKey(row.Incarnation), string(row.Incarnation), lease))
	}
}

// renewing keeps an agent's lease until stop is called.
func (w *world) renewing(s *Store, inc ids.Incarnation, ttl time.Duration) (stop func()) {
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if err := s.opts.KV.Acquire(ctx, leaseKey(inc), string(inc), ttl); err != nil && ctx.Err() == nil {
				w.t.Error(err)
			}
			time.Sleep(ttl / 3)
		}
	}()
	return func() { cancel(); <-done }
}

// TestTwins opens beside an agent with the same node id or address, whose process is known to run
// or to have ended, or of which only the lease tells.
func TestTwins(t *testing.T) {
	const lease = 2 * time.Second
	const addr = "10.0.0.1:9092"
	child := exec.Command("sleep", "60")
	mustNil(t, child.Start())
	running := processOf(child.Process.Pid)
	if running == "" {
		t.Fatal("a process that runs can't be told")
	}
	t.Cleanup(func() { _ = child.Process.Kill(); _ = child.Wait() })                                    // after the parallel tests
	gone := process(strings.TrimSuffix(string(running), " "+strings.Fields(string(running))[3]) + " 1") // its id was given again since
	elsewhere := process("another-boot " + strings.SplitN(string(running), " ", 2)[1])
	const held, renewed, none = 1, 2, 0
	for _, c := range []struct {
		name    string
		node    int32
		host    string
		process process
		lease   int
		taken   string // words of the error; "": none
		atOnce  bool
	}{
		{"same node, runs", 1, "10.0.0.2", running, none, "node 1 (10.0.0.2:9092) has the node id of this data directory: a copy can't run", true},
		{"same node, not registered yet", 1, "", running, none, "node 1 (not reachable yet) has the node id", true},
		{"same node, ended", 1, "10.0.0.2", gone, renewed, "", true},
		{"same node, this process", 1, "10.0.0.1", thisProcess(), held, "", true},
		{"same node, elsewhere, renewed", 1, "10.0.0.2", elsewhere, renewed, "node 1 (10.0.0.2:9092) has the node id", false},
		{"same node, elsewhere, silent", 1, "10.0.0.2", elsewhere, held, "", false},
		{"same node, elsewhere, without lease", 1, "10.0.0.2", elsewhere, none, "", true},
		{"same address, runs", 2, "10.0.0.1", running, none, "node 2 has the address 10.0.0.1:9092: give this agent another one with --advertised-addr", true},
		{"same address, ended", 2, "10.0.0.1", gone, held, "", true},
		{"same address, of an older program, renewed", 2, "10.0.0.1", "", renewed, "node 2 has the address", false},
		{"another", 2, "10.0.0.2", running, renewed, "", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			s := w.open(func(o *Options) { o.NodeID = 9 })
			row := agentRow{Node: c.node, Incarnation: ids.NewIncarnation(), Host: c.host, Port: 9092, Process: c.process}
			w.twin(s, row, map[int]time.Duration{held: lease, renewed: lease}[c.lease])
			if c.lease == renewed {
				defer w.renewing(s, row.Incarnation, lease)()
			}
			opts := func(o *Options) { o.NodeID, o.RememberedNodeID, o.Advertised, o.Lease = 0, 1, addr, lease }
			o := w.options()
			opts(&o)
			before := w.bucket.keys("")
			_, err := Inspect(ctxT(t), o)
			began := time.Now()
			_, err2 := w.tryOpen(opts)
			if c.atOnce && time.Since(began) > lease/3 || time.Since(began) > lease {
				t.Errorf("it took %v", time.Since(began))
			}
			for _, err := range []error{err, err2} {
				if c.taken == "" {
					mustNil(t, err)
					continue
				}
				wantErr(t, c.name, err, ErrTaken)
				if !strings.Contains(err.Error(), c.taken) {
					t.Errorf("the error is %q, want %q in it", err, c.taken)
				}
			}
			if after := w.bucket.keys(""); c.taken != "" && len(after) != len(before) {
				t.Errorf("the refused start left %v, there was %v", after, before)
			}
		})
	}
	t.Run("alone", func(t *testing.T) {
		w := newWorld(t)
		s := w.open(func(o *Options) { o.NodeID = 9 })
		w.twin(s, agentRow{Node: 1, Incarnation: ids.NewIncarnation(), Host: "h", Port: 1, Process: running}, 0)
		w.open() // no address: nobody is looked for
	})
}

func TestProcess(t *testing.T) {
	self := thisProcess()
	if runs, known := self.runs(self); !runs || !known {
		t.Errorf("this process: runs %t, known %t", runs, known)
	}
	child := exec.Command("sleep", "60")
	mustNil(t, child.Start())
	p := processOf(child.Process.Pid)
	if runs, known := p.runs(self); !runs || !known {
		t.Errorf("a child: runs %t, known %t", runs, known)
	}
	mustNil(t, child.Process.Kill())
	eventually := time.Now().Add(10 * time.Second)
	for runs := true; runs; { // it is not waited for yet
		if runs, _ = p.runs(self); runs && time.Now().After(eventually) {
			t.Fatal("a child that was killed still runs")
		}
	}
	_ = child.Wait()
	if runs, known := p.runs(self); runs || !known {
		t.Errorf("a child that has ended: runs %t, known %t", runs, known)
	}
	for _, other := range []process{"", "x", "a b c d"} {
		if _, known := other.runs(self); known {
			t.Errorf("process %q is known", other)
		}
	}
}

// TestInspect wants the errors of Open, and nothing written.
func TestInspect(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		id, err := Inspect(ctxT(t), w.options())
		mustNil(t, err)
		if keys := w.bucket.keys(""); id != "" || len(keys) > 0 {
			t.Errorf("a new cluster: %q, bucket has %v", id, keys)
		}
		if items, err := w.kv.Range(ctxT(t), "", "", 10, false); err != nil || len(items) > 0 {
			t.Errorf("a new cluster: rows %v, %v", items, err)
		}
		s := w.open()
		create(t, s, "t", 1)
		id, err = Inspect(ctxT(t), w.options())
		if err != nil || id != s.ClusterID() {
			t.Errorf("%q, %v", id, err)
		}
		o := w.options()
		o.ClusterID = "another"
		_, err = Inspect(ctxT(t), o)
		wantErr(t, "data directory of another cluster", err, ErrForeignBucket)
		o = w.options()
		o.Bucket = newBucket()
		_, err = Inspect(ctxT(t), o)
		wantErr(t, "empty bucket", err, ErrForeignBucket)
		fresh := newWorld(t)
		o = w.options()
		o.KV = fresh.kv
		_, err = Inspect(ctxT(t), o)
		wantErr(t, "new metadata store", err, ErrForeignBucket)
		o = w.options()
		o.NodeID, o.RememberedNodeID = 1, 2
		_, err = Inspect(ctxT(t), o)
		wantErr(t, "two node ids", err, ErrNodeID)
	})
}
