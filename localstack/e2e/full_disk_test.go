package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/localstack/minio"
)

const (
	otherTopic     = "other"
	fullPartitions = 4
	fullSpeed      = 10 << 20 // bytes per second
	fullSize       = "160m"   // of the file system: the ring of 16 MiB, the block cache of 16 MiB and segments
)

// filler is a neighbour on the node's disk who takes every byte that is free,
// also those that come free later.
type filler struct {
	path   string
	cancel context.CancelFunc
	done   chan struct{}
}

func fill(path string) *filler {
	ctx, cancel := context.WithCancel(context.Background())
	f := &filler{path: path, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(f.done)
		for ctx.Err() == nil {
			if out, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err == nil {
				block := make([]byte, 64<<10)
				for size := len(block); size > 0 && ctx.Err() == nil; {
					if _, err := out.Write(block[:size]); err != nil {
						size /= 16
					}
				}
				_ = out.Close()
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	return f
}

// end gives the space back.
func (f *filler) end() error {
	f.cancel()
	<-f.done
	return os.Remove(f.path)
}

// A disk that a neighbour fills under load, twice, and that has space again:
// producers wait, what is there can be read, the node says what is wrong and
// goes on by itself when there is space; nothing acknowledged is lost.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	disk, _ := smallDisk(t, fullSize)
	f := newFixtureOn(t, disk, minio.Start(t), "s3", fullPartitions, 2, "--wal-size", "16MiB")
	idle := f.routines(context.Background())
	createTopic(t, f.node, otherTopic, 1, nil)
	f.start(fullSpeed)
	eventually(t, time.Minute, "segments in the bucket and read back", func() bool { return f.passes.Load() > 0 && f.metric("cirrolog_tier_upload_seconds_count") > 4 })
	before := f.speed(2 * time.Second)
	for round := range 2 {
		other := fill(filepath.Join(disk, "neighbour"))
		f.full(round)
		if err := other.end(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		eventually(t, catchUp, "ready", func() bool {
			status, _, err := f.page(context.Background(), "/readyz")
			return err == nil && status == http.StatusOK
		})
		eventually(t, catchUp, "producers at speed", func() bool { return f.speed(time.Second) > before/2 })
		t.Logf("producers at speed %.1f s after the disk has space", time.Since(began).Seconds())
	}
	f.stop()
	f.caughtUp(catchUp)
	f.finish(idle)
}

// full waits until the full disk stops the producers and looks at the node.
func (f *fixture) full(round int) {
	t := f.t
	t.Helper()
	began := time.Now()
	for end := began.Add(time.Minute); f.speed(time.Second) > 0; {
		f.node.MustRun()
		if time.Now().After(end) {
			t.Fatal("the full disk never stopped the producers")
		}
	}
	t.Logf("round %d: producers wait %.1f s after the disk began to fill", round, time.Since(began).Seconds())
	f.hotReads()
	status, page, err := f.page(context.Background(), "/readyz?verbose")
	if err != nil || status != http.StatusServiceUnavailable || !strings.Contains(page, "[-] disk: ") {
		t.Errorf("readyz: %d, %v\n%s", status, err, page)
	}
	if status, _, err := f.page(context.Background(), "/livez"); status != http.StatusOK || err != nil {
		t.Errorf("livez: %d, %v", status, err)
	}
	if !strings.Contains(f.node.Log(), "no space left") {
		t.Error("the node's log does not say that there is no space left")
	}
	// What a client is told whose batch does not fit: a retriable error, in its time.
	w := wire{t, f.node}
	for try := 1; ; try++ { // what is uploaded makes room for a small batch now and then
		_, _, err := w.produceWithin(otherTopic, encode(t, 0, false, 1, 1, nil), time.Second)
		if errors.Is(err, kerr.RequestTimedOut) {
			break
		}
		if err != nil || try == 5 {
			t.Errorf("a produce with a timeout of a second, try %d: %v", try, err)
			break
		}
	}
	create := kmsg.NewPtrCreateTopicsRequest()
	create.TimeoutMillis = 5000
	topic := kmsg.NewCreateTopicsRequestTopic()
	topic.Topic, topic.NumPartitions, topic.ReplicationFactor = fmt.Sprintf("full-%d", round), 1, 1
	create.Topics = append(create.Topics, topic)
	created := w.request(create).(*kmsg.CreateTopicsResponse).Topics[0]
	t.Logf("create a topic on the full disk: %v", kerr.ErrorForCode(created.ErrorCode))
	f.node.MustRun()
}
