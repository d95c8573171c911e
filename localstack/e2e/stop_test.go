package e2e

import (
	"bytes"
	"errors"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cirrolog/cirrolog/localstack/e2e/faultproxy"
	"github.com/cirrolog/cirrolog/localstack/minio"
)

const stopTopic = "stops"

// A SIGTERM uploads what is closed; with a bucket that hangs it ends within
// --shutdown-timeout and without an error all the same, and a second signal ends
// the process at once. Nothing acknowledged is lost either way.
func TestStop(t *testing.T) {
	t.Parallel()
	const limit = 2 * time.Second
	f := newFixture(t, minio.Start(t), "s3", 1, 1, "--shutdown-timeout", limit.String())
	createTopic(t, f.node, stopTopic, 1, map[string]string{"segment.bytes": "1048576"})
	var want []byte
	produce := func(what string) {
		t.Helper()
		lines := bytes.Repeat([]byte(what+strings.Repeat("x", 1000)+"\n"), 3000)
		// A producer id would have to be claimed in the bucket.
		cmd := command(t, nil, "produce", stopTopic, "--acks", "1", "--batch-max", "64KiB", "--brokers", f.node.Kafka)
		cmd.Stdin = bytes.NewReader(lines)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("produce: %v\n%s", err, out)
		}
		want = append(want, lines...)
	}
	produce("first")
	f.node.Stop()
	f.node.Start()
	if p := f.node.Storage(stopTopic)[0]; p.BucketSegments < 2 || p.ClosedNotTiered > 0 {
		t.Errorf("after a clean stop: %+v", p)
	}

	if err := f.proxy.Be(faultproxy.Hangs); err != nil {
		t.Fatal(err)
	}
	produce("second")
	began := time.Now()
	f.node.Stop()
	if took := time.Since(began); took < limit || took > limit+10*time.Second {
		t.Errorf("the stop without a bucket took %v, the limit is %v", took, limit)
	}
	if log := f.node.Log(); !strings.Contains(log, "not uploaded") {
		t.Error("the node does not say that segments were not uploaded")
	}

	if err := f.proxy.Be(faultproxy.Here); err != nil {
		t.Fatal(err)
	}
	f.node.o.Args = append(f.node.o.Args, "--shutdown-timeout", "10m")
	f.node.Start()
	if err := f.proxy.Be(faultproxy.Hangs); err != nil {
		t.Fatal(err)
	}
	produce("third")
	signal := func() {
		t.Helper()
		if err := f.node.proc.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	signal()
	eventually(t, 10*time.Second, "the node begins to stop", func() bool {
		log := f.node.Log()
		return strings.LastIndex(log, "shutting down") > strings.LastIndex(log, "serving")
	})
	signal()
	select {
	case <-f.node.proc.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the node goes on after a second signal")
	}
	exit, ok := errors.AsType[*exec.ExitError](f.node.proc.Err())
	if !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
		t.Errorf("the second signal ended the node with %v", f.node.proc.Err())
	}

	if err := f.proxy.Be(faultproxy.Here); err != nil {
		t.Fatal(err)
	}
	f.node.Start()
	var got bytes.Buffer
	if err := f.node.CLI(&got, "replay", stopTopic); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%d bytes came back, want %d", got.Len(), len(want))
	}
}
