package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/internal/testenv"
	"github.com/cirrolog/cirrolog/localstack/minio"
	"github.com/cirrolog/cirrolog/localstack/redis"
)

// clusterJob is the main job on three agents, each of whose disks is wiped on the way.
type clusterJob struct {
	cluster
	job
	whole []*Node // not wiped yet
}

// TestClusterMainJob takes the input of TestMainJob through three agents on MinIO and Redis. While it is produced,
// tiered and read, one agent after the other is killed with kill -9, loses its disk and starts again.
func TestClusterMainJob(t *testing.T) {
	kcat := testenv.Need(t, "kcat")
	j := &clusterJob{}
	j.t = t
	j.stream, j.count, j.delim = packageIndex(t)
	var env []string
	j.cluster.bucket, env = bucketOn(minio.Start(t), "s3")
	j.redis = redis.Start(t, "--appendonly", "yes")
	for range clusterAgents {
		j.nodes = append(j.nodes, NewNode(t, NodeOptions{Metadata: j.redis.URL("job"), Env: env,
			Args: []string{"--bucket", j.cluster.bucket, "--retention-interval", "500ms", "--lease", "1s", "--tier-max-delay", "2s"}}))
	}
	j.whole = slices.Clone(j.nodes)
	createTopic(t, j.nodes[0], jobTopic, 1, map[string]string{"segment.bytes": "1048576", "local.retention.bytes": "2097152"})
	t.Logf("%d records, %d bytes", j.count, len(j.stream))
	step := stopwatch(t)

	j.produce(kcat)
	step("kcat -P, one agent lost")
	j.wipe(true)
	j.tiered()
	step("tiered, one agent lost")
	j.readWhileLost(kcat)
	step("read, one agent lost")
	j.readEverywhere(kcat)
	step("read")

	eventually(t, time.Minute, "everything in the bucket", func() bool {
		n := j.leader()
		if n == nil || n.call(t.Context(), http.MethodPost, "/v1/topics/"+jobTopic+"/roll", nil) != nil {
			return false
		}
		s := n.Storage(jobTopic)[0]
		return s.HighWatermark == int64(j.count) && s.TieredEnd == s.HighWatermark
	})
	for _, n := range j.nodes {
		n.Stop()
		if err := os.RemoveAll(n.Dir); err != nil {
			t.Fatal(err)
		}
	}
	j.check(t, "replay --bucket", func(w io.Writer) error {
		return j.nodes[0].CLI(w, "replay", jobTopic, "--bucket", j.cluster.bucket, "-f", j.format())
	})
	step("replay --bucket")
	for _, n := range j.nodes {
		n.Start()
	}
	eventually(t, time.Minute, "there is a leader", func() bool { return j.leader() != nil })
	j.readEverywhere(kcat)
	step("read after restart of all, without disks")
	for _, n := range j.nodes {
		n.Stop()
	}
}

// check is the job's.
func (j *clusterJob) check(t *testing.T, what string, read func(io.Writer) error) {
	j.job.check(t, what, read)
}

// leader is the agent that leads the topic's partition and says so itself; nil: none yet.
func (j *clusterJob) leader() *Node {
	addr := j.leaders(jobTopic)[0]
	for _, n := range j.nodes {
		if n.Kafka != addr || !n.Running() {
			continue
		}
		var s struct{ Partitions []struct{} }
		if n.call(j.t.Context(), http.MethodGet, "/v1/topics/"+jobTopic+"/storage", &s) == nil && len(s.Partitions) == 1 {
			return n
		}
	}
	return nil
}

// wipe kills an agent that has its disk still, the leader if it is one of them, wipes the disk, and, if that is wanted,
// starts it again.
func (j *clusterJob) wipe(start bool) *Node {
	j.t.Helper()
	var n *Node
	eventually(j.t, time.Minute, "there is a leader", func() bool { n = j.leader(); return n != nil })
	if !slices.Contains(j.whole, n) {
		n = j.whole[0]
	}
	j.t.Logf("agent %d loses its disk; agent %d leads", 1+slices.Index(j.nodes, n), 1+slices.Index(j.nodes, j.leader()))
	j.whole = slices.DeleteFunc(j.whole, func(o *Node) bool { return o == n })
	n.Kill()
	if err := os.RemoveAll(n.Dir); err != nil {
		j.t.Fatal(err)
	}
	if start {
		j.restart(n)
	}
	return n
}

// restart starts an agent without a disk, once another one leads: it may be given what its earlier start led.
func (j *clusterJob) restart(n *Node) {
	j.t.Helper()
	eventually(j.t, time.Minute, "another agent leads", func() bool { return j.leader() != nil })
	n.Start()
}

// produce sends the input with kcat. A third of the way the leader dies; it comes back at two thirds.
func (j *clusterJob) produce(kcat string) {
	t := j.t
	t.Helper()
	cmd := exec.Command(kcat, "-P", "-b", j.addr(), "-t", jobTopic, "-p", "0", "-D", fmt.Sprintf(`\x%02x`, j.delim),
		"-X", "enable.idempotence=true", "-X", "queue.buffering.max.ms=5", "-X", "topic.metadata.refresh.interval.ms=500")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	third := len(j.stream) / 3
	var lost *Node
	for i, part := range [][]byte{j.stream[:third], j.stream[third : 2*third], j.stream[2*third:]} {
		switch i {
		case 1:
			lost = j.wipe(false)
		case 2:
			j.restart(lost)
		}
		if _, err := in.Write(part); err != nil {
			t.Fatalf("kcat -P: %v\n%s", err, out.Bytes())
		}
	}
	_ = in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatalf("kcat -P: %v\n%s", err, out.Bytes())
	}
}

// tiered waits until the leader has all of it, and little of it on its disk.
func (j *clusterJob) tiered() {
	j.t.Helper()
	eventually(j.t, time.Minute, "more than 90 % only in the bucket", func() bool {
		n := j.leader()
		if n == nil {
			return false
		}
		s := n.Storage(jobTopic)[0]
		return s.HighWatermark == int64(j.count) && s.LogStart == 0 && s.TieredEnd > int64(j.count)*9/10 &&
			s.LocalBytes < int64(len(j.stream))/10 && s.BucketBytes >= int64(len(j.stream))*9/10
	})
}

// readWhileLost reads with kcat and replay while the last agent with a whole disk dies.
func (j *clusterJob) readWhileLost(kcat string) {
	var g group
	for what, read := range map[string]func(io.Writer) error{"kcat -C": func(w io.Writer) error { return j.kcat(w, kcat) },
		"cirrolog replay": func(w io.Writer) error { return j.consume(w, "replay") }} {
		g.Go(func() error {
			j.check(j.t, what+" while an agent dies", read)
			return nil
		})
	}
	time.Sleep(300 * time.Millisecond)
	j.wipe(true)
	if err := g.Wait(); err != nil {
		j.t.Error(err)
	}
}

func (j *clusterJob) kcat(w io.Writer, kcat string) error {
	cmd := exec.Command(kcat, "-C", "-q", "-e", "-b", j.addr(), "-t", jobTopic, "-p", "0", "-o", "beginning", "-D", fmt.Sprintf(`\x%02x`, j.delim))
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = w, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w: %s", err, stderr.Bytes())
	}
	return nil
}

// consume runs `cirrolog VERB` with all agents to begin from.
func (j *clusterJob) consume(w io.Writer, verb string, more ...string) error {
	cmd := command(j.t, nil, append([]string{verb, jobTopic, "-f", j.format(), "--brokers", j.addr()}, more...)...)
	var stderr strings.Builder
	cmd.Stdout, cmd.Stderr = w, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("cirrolog %s: %w: %s", verb, err, stderr.String())
	}
	return nil
}

// readEverywhere reads the topic with four clients.
func (j *clusterJob) readEverywhere(kcat string) {
	t := j.t
	j.check(t, "kcat -C", func(w io.Writer) error { return j.kcat(w, kcat) })
	j.check(t, "franz-go", func(w io.Writer) error {
		recs, err := fetchAll(j.addr(), jobTopic, 0, j.count)
		for _, r := range recs {
			_, _ = w.Write(append(r.Value, j.delim)) // a match never fails
		}
		return err
	})
	j.check(t, "cirrolog consume", func(w io.Writer) error { return j.consume(w, "consume", "-e") })
	j.check(t, "cirrolog replay", func(w io.Writer) error { return j.consume(w, "replay") })
}
