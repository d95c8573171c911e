package chaos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/internal/testenv"
	"github.com/cirrolog/cirrolog/localstack/e2e/faultproxy"
)

// realm is what a fault acts upon: two faults of one realm but ofAgent are never there at once.
type realm int

const (
	ofAgent  realm = iota // one agent, which the fault takes
	ofBucket              // the bucket, for all
	ofStore               // the metadata store, for all
	ofAll                 // the whole cluster: nothing else happens meanwhile
)

// fault is a kind of fault. do makes it happen and ends it; it returns what went wrong beside what was meant to.
type fault struct {
	kind  string
	realm realm
	skip  string // why it can't happen here
	do    func(c *cluster, r *rand.Rand) error
}

// between draws a duration.
func between(r *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(r.Int64N(int64(most-least)))
}

// faults are all kinds of a run.
func (c *cluster) faults() []fault {
	disk := ""
	if c.members[0].disk == "" {
		disk = "there is no right to mount a small file system"
	}
	return append([]fault{
		{"kill", ofAgent, "", (*cluster).killAgent},
		{"pause", ofAgent, "", (*cluster).pauseAgent},
		{"cut-metadata", ofAgent, "", func(c *cluster, r *rand.Rand) error {
			return c.cut(r, func(m *member) []*tcpProxy { return []*tcpProxy{m.meta} }, nil)
		}},
		{"cut-bucket", ofAgent, "", func(c *cluster, r *rand.Rand) error {
			return c.cut(r, func(m *member) []*tcpProxy { return []*tcpProxy{m.bucket} }, nil)
		}},
		{"cut-peers", ofAgent, "", func(c *cluster, r *rand.Rand) error { return c.cut(r, c.somePeers(r), (*member).restart) }},
		{"bucket-busy", ofBucket, "", func(c *cluster, r *rand.Rand) error {
			return c.bucketIs(faultproxy.Rates{BusyEvery: time.Second, BusyFor: between(r, 500*time.Millisecond, 950*time.Millisecond)}, between(r, 2*time.Second, 4*time.Second))
		}},
		{"bucket-slow", ofBucket, "", func(c *cluster, r *rand.Rand) error {
			return c.bucketIs(faultproxy.Rates{Slow: .2 + .8*r.Float64(), Delay: 5 * time.Second}, between(r, time.Second, 4*time.Second))
		}},
		{"disk-full", ofAgent, disk, (*cluster).fillDisk},
		{"clock", ofAgent, "", (*cluster).jumpClock},
		{"rolling", ofAll, "", (*cluster).roll},
		{"scale", ofAll, "", (*cluster).scale},
	}, c.store.faults()...)
}

// killAgent is kill -9 with an empty disk at the next start.
func (c *cluster) killAgent(r *rand.Rand) error {
	m, free := c.take(r)
	defer free()
	c.rec.say("kill %s", m.name)
	if err := m.kill(); err != nil {
		return err
	}
	if err := m.wipe(); err != nil {
		return err
	}
	sleep(c.ctx, between(r, 100*time.Millisecond, 3*time.Second))
	return m.start()
}

// pauseAgent makes a zombie: the others take its partitions over while it stands still.
func (c *cluster) pauseAgent(r *rand.Rand) error {
	m, free := c.take(r)
	defer free()
	c.rec.say("stop %s", m.name)
	if err := m.signal(syscall.SIGSTOP); err != nil {
		c.rec.say("%v", err) // it has just ended by itself: there is nobody to be paused
		return nil
	}
	sleep(c.ctx, between(r, 2*lease, 4*lease))
	return m.signal(syscall.SIGCONT)
}

// cut takes links of an agent away, one way or the other; half of the time something is done meanwhile.
func (c *cluster) cut(r *rand.Rand, links func(*member) []*tcpProxy, meanwhile func(*member) error) error {
	m, free := c.take(r)
	defer free()
	how := []link{refused, stalled}[r.IntN(2)]
	all := links(m)
	c.rec.say("cut %d links of %s (%d)", len(all), m.name, how)
	for _, p := range all {
		p.be(how)
	}
	sleep(c.ctx, between(r, lease/2, 5*lease))
	var err error
	if meanwhile != nil && r.IntN(2) == 0 {
		err = meanwhile(m)
	}
	for _, p := range all {
		p.be(linked)
	}
	return err
}

// restart is SIGTERM, and a start: all partitions move away, and some back.
func (m *member) restart() error { return errors.Join(m.stop(), m.start(), m.awaitReady(readyWait)) }

// somePeers cuts an agent off from being called, or all from each other.
func (c *cluster) somePeers(r *rand.Rand) func(*member) []*tcpProxy {
	if r.IntN(2) == 0 {
		return func(m *member) []*tcpProxy { return []*tcpProxy{m.peers} }
	}
	return func(*member) (all []*tcpProxy) {
		for _, m := range c.members {
			all = append(all, m.peers)
		}
		return all
	}
}

func (c *cluster) bucketIs(rates faultproxy.Rates, d time.Duration) error {
	c.rec.say("bucket: %+v", rates)
	c.s3.Set(rates)
	sleep(c.ctx, d)
	c.s3.Set(faultproxy.Rates{})
	return nil
}

// smallDisk mounts a file system that can be filled; "" when there is no right to.
func smallDisk(t testing.TB, dir string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=256m", "cirrolog-chaos", dir).CombinedOutput(); err != nil {
		t.Logf("no small disk: %v: %s", err, out)
		return ""
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return dir
}

// fillDisk takes every byte of the first agent's disk that is free, also those that come free later.
func (c *cluster) fillDisk(r *rand.Rand) error {
	m := c.members[0]
	for !m.taken() {
		if sleep(c.ctx, 50*time.Millisecond); c.ctx.Err() != nil {
			return c.ctx.Err()
		}
	}
	defer m.free()
	c.rec.say("fill the disk of %s", m.name)
	path, block := filepath.Join(m.disk, "neighbour"), make([]byte, 256<<10)
	for end := time.Now().Add(between(r, 2*time.Second, 5*time.Second)); time.Now().Before(end) && c.ctx.Err() == nil; sleep(c.ctx, 5*time.Millisecond) {
		out, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			continue // no room even for its name
		}
		for size := len(block); size > 0; {
			if _, err := out.Write(block[:size]); err != nil {
				size /= 16
			}
		}
		if err := out.Close(); err != nil && !errors.Is(err, syscall.ENOSPC) {
			return err
		}
	}
	var left syscall.Statfs_t
	info, err := os.Stat(path)
	if err := errors.Join(err, syscall.Statfs(m.disk, &left)); err != nil {
		return err
	}
	c.rec.say("its neighbour has %d KiB there, %d blocks are free", info.Size()>>10, left.Bavail)
	return os.Remove(path)
}

// jumpClock sets the clock of an agent wrong for a while, and right again. Not further back than an hour: then
// what producers send is too far in the future (message.timestamp.after.max.ms), and refused.
func (c *cluster) jumpClock(r *rand.Rand) error {
	m, free := c.take(r)
	defer free()
	by := []time.Duration{between(r, time.Second, time.Minute), between(r, time.Minute, 240*time.Hour), -between(r, time.Second, 50*time.Minute)}[r.IntN(3)]
	c.rec.say("the clock of %s is %v ahead", m.name, by)
	if err := os.WriteFile(m.clockPath(), []byte(by.String()), 0o644); err != nil {
		return err
	}
	sleep(c.ctx, between(r, time.Second, 4*time.Second))
	return os.Remove(m.clockPath())
}

// roll restarts one agent after the other with SIGTERM.
func (c *cluster) roll(r *rand.Rand) error {
	for _, m := range c.wanted() {
		if err := m.restart(); err != nil {
			return err
		}
	}
	return nil
}

// scale goes from three agents to five, to two, and back to three.
func (c *cluster) scale(r *rand.Rand) error {
	now := c.wanted()
	var errs []error
	for _, m := range c.members {
		if !slices.Contains(now, m) {
			errs = append(errs, m.start())
		}
	}
	for _, m := range c.members {
		errs = append(errs, m.awaitReady(readyWait))
	}
	c.rec.say("%d agents", len(c.members))
	sleep(c.ctx, between(r, 500*time.Millisecond, 2*time.Second))
	order := r.Perm(len(c.members))
	var wg sync.WaitGroup
	ended := make([]error, 3)
	for i, n := range order[:3] {
		wg.Go(func() { ended[i] = c.members[n].stop() })
		sleep(c.ctx, between(r, 0, time.Second))
	}
	wg.Wait()
	c.rec.say("%d agents", len(c.wanted()))
	sleep(c.ctx, between(r, 500*time.Millisecond, 2*time.Second))
	back := c.members[order[0]]
	if order[0] != 0 && !c.members[0].isWanted() { // which has the small disk
		back = c.members[0]
	}
	return errors.Join(append(errs, errors.Join(ended...), back.start(), back.awaitReady(readyWait))...)
}

// hasVerb tells whether the program has a verb.
func hasVerb(t testing.TB, verb string) bool {
	out, err := exec.Command(testenv.Binary(t), "help", verb).CombinedOutput()
	return err == nil && strings.Contains(string(out), "cirrolog "+verb)
}

// recoverSkip says why faults that need the verb can't happen.
func recoverSkip(t testing.TB) string {
	if hasVerb(t, "recover") {
		return ""
	}
	return "the program has no verb `recover`"
}

// recoverMetadata rebuilds the metadata store, which was lost.
func (c *cluster) recoverMetadata() error {
	ctx, cancel := context.WithTimeout(c.ctx, 2*time.Minute)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, testenv.Binary(c.t), "recover", "--metadata", c.store.url(c.store.addr()), "--bucket", c.bucketURL(strings.TrimPrefix(c.s3.URL(), "http://")))
	cmd.Env = append(os.Environ(), c.env()...)
	cmd.Stdout, cmd.Stderr = &out, &out
	began := time.Now()
	err := cmd.Run()
	c.rec.say("recover took %.1f s: %s", time.Since(began).Seconds(), out.String())
	if err != nil {
		return fmt.Errorf("recover: %w: %s", err, out.String())
	}
	return nil
}
