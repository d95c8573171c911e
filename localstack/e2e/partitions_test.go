package e2e

import (
	"fmt"
	"net/http"
	"testing"
	"time"
)

// TestManyPartitions shows that 10,000 partitions cost memory and nothing else:
// no files, no goroutines, and no work for those where nothing happens. `make
// scale` measures more of them.
func TestManyPartitions(t *testing.T) {
	const (
		large    = 5_000 // partitions of one topic
		topics   = 50
		each     = 100     // partitions of each of these
		rssLimit = 150     // MiB; the target is 100
		files    = 512 + 8 // segment files kept open, and what comes and goes
		threads  = 64
		total    = large + topics*each
	)
	n := NewNode(t, NodeOptions{Args: []string{"--retention-interval", "1s"}})
	k := n.raw()
	fds0, routines0 := fds(n.Pid()), n.goroutines()
	check := func(when string, moreFiles int) {
		t.Helper()
		rss := (procStatus(n.Pid(), "RssAnon") + procStatus(n.Pid(), "RssFile")) >> 10
		f, r, th := fds(n.Pid()), n.goroutines(), procStatus(n.Pid(), "Threads")
		t.Logf("%-28s RSS %d MiB, %d files, %d goroutines, %d threads", when, rss, f, r, th)
		if rss > rssLimit || f > fds0+moreFiles || r > routines0+20 || th > threads {
			t.Errorf("%s: want at most %d MiB, %d files, %d goroutines, %d threads", when, rssLimit, fds0+moreFiles, routines0+20, threads)
		}
	}
	check("empty", 8)
	step := stopwatch(t)
	names := []string{"large"}
	if err := k.newTopic("large", large); err != nil {
		t.Fatal(err)
	}
	for i := range topics {
		names = append(names, fmt.Sprintf("small-%02d", i))
		if err := k.newTopic(names[i+1], each); err != nil {
			t.Fatal(err)
		}
	}
	step("topics made")
	check("10,000 partitions", 8)
	var all []place
	for i, count := 0, []int32{large, each}; i < 2; i++ {
		got, err := k.places([][]string{names[:1], names[1:]}[i], count[i])
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, got...)
	}
	for at := 0; at < total; at += 1000 {
		if err := k.produce(all[at:at+1000], oneRecord(t)); err != nil {
			t.Fatal(err)
		}
	}
	step("one record to each")
	check("with one record each", files)
	n.session(k, all)
	step("fetch session")
	k.close()
	n.Kill()
	n.Start()
	step("killed and started")
	check("started again", 8)
	k = n.raw()
	_, r, _, err := k.open(all, 0)
	if got, with := rows(r); err != nil || got != total || with != total {
		t.Fatalf("after kill -9 %d partitions are told of, %d with records, want all %d: %v", got, with, total, err)
	}
	for _, name := range names[1:4] {
		n.API(http.MethodPost, "/v1/topics/"+name+"/roll", nil)
	}
	for _, name := range names[1:4] {
		eventually(t, 2*time.Minute, name+" in the bucket", func() bool {
			left := 0
			for _, s := range n.Storage(name) {
				left += btoi(s.TieredEnd < s.HighWatermark)
			}
			return left == 0
		})
	}
	step("300 segments uploaded")
	check("300 segments uploaded", files)
	n.Stop()
}

// raw dials the node.
func (n *Node) raw() *rawKafka {
	n.t.Helper()
	k, err := dialKafka(n.Kafka)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(k.close)
	return k
}

// session reads one record of each place in a fetch session, and then checks
// that an idle session tells nothing, and one with a new record only that one.
func (n *Node) session(k *rawKafka, all []place) {
	n.t.Helper()
	s, r, _, err := k.open(all, 0)
	if got, with := rows(r); err != nil || got != len(all) || with != len(all) {
		n.t.Fatalf("a full fetch tells of %d partitions, %d with records, want %d: %v", got, with, len(all), err)
	}
	poll := func(what string, wantRows int, wait time.Duration, places []place, offset int64) {
		n.t.Helper()
		r, size, err := s.poll(places, offset, wait)
		got, with := rows(r)
		if err != nil || got != wantRows || with != wantRows || size > 100+200*wantRows {
			n.t.Fatalf("%s: %d partitions, %d with records, in %d bytes, want %d: %v", what, got, with, size, wantRows, err)
		}
	}
	poll("the client moves on", 0, 0, all, 1)
	for range 20 {
		poll("idle", 0, 0, nil, 0)
	}
	at := all[len(all)/2]
	sent := make(chan error, 1)
	other := n.raw()
	go func() {
		time.Sleep(100 * time.Millisecond)
		sent <- other.produce([]place{at}, oneRecord(n.t))
	}()
	poll("a record while it waits", 1, time.Minute, nil, 0)
	if err := <-sent; err != nil {
		n.t.Fatal(err)
	}
	poll("it was read", 0, 0, []place{at}, 2)
}
