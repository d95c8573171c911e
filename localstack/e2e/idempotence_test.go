package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/cirrolog/cirrolog/storage/batch"
)

const (
	retryTopic = "retries"
	perBatch   = 3 // records of a batch
	remembered = 5 // batches of a producer that are known again
)

// retries is one idempotent producer whose every batch was written by hand.
type retries struct {
	t     *testing.T
	w     wire
	id    int64
	epoch int16
	began int64 // ms since 1970
	base  []int64
}

// batch is the i-th batch of the producer's epoch.
func (r *retries) batch(epoch int16, i int) []byte {
	return encode(r.t, batch.CodecNone, false, perBatch, r.began, &batch.Producer{ID: r.id, Epoch: epoch, BaseSequence: int32(i * perBatch)})
}

// next appends the next batch.
func (r *retries) next() {
	r.t.Helper()
	offset, _, err := r.w.produce(retryTopic, r.batch(r.epoch, len(r.base)))
	if err != nil {
		r.t.Fatalf("batch %d: %v", len(r.base), err)
	}
	r.base = append(r.base, offset)
}

// check sends again what is remembered, what is forgotten, and what can't be.
func (r *retries) check(when string) {
	r.t.Helper()
	end := r.w.n.Storage(retryTopic)[0].HighWatermark
	for i, want := range r.base {
		offset, _, err := r.w.produce(retryTopic, r.batch(r.epoch, i))
		if i < len(r.base)-remembered {
			if !errors.Is(err, kerr.DuplicateSequenceNumber) {
				r.t.Errorf("%s: batch %d again: offset %d, %v; want %v", when, i, offset, err, kerr.DuplicateSequenceNumber)
			}
		} else if err != nil || offset != want {
			r.t.Errorf("%s: batch %d again: offset %d, %v; want offset %d", when, i, offset, err, want)
		}
	}
	if offset, _, err := r.w.produce(retryTopic, r.batch(r.epoch, len(r.base)+1)); !errors.Is(err, kerr.OutOfOrderSequenceNumber) {
		r.t.Errorf("%s: a gap: offset %d, %v", when, offset, err)
	}
	if offset, _, err := r.w.produce(retryTopic, r.batch(r.epoch-1, len(r.base))); !errors.Is(err, kerr.InvalidProducerEpoch) {
		r.t.Errorf("%s: an old epoch: offset %d, %v", when, offset, err)
	}
	if offset, _, err := r.w.produce(retryTopic, r.batch(r.epoch+1, len(r.base))); !errors.Is(err, kerr.OutOfOrderSequenceNumber) {
		r.t.Errorf("%s: a new epoch that does not begin with sequence 0: offset %d, %v", when, offset, err)
	}
	if s := r.w.n.Storage(retryTopic)[0]; s.HighWatermark != end {
		r.t.Errorf("%s: the log ends at offset %d, before at %d", when, s.HighWatermark, end)
	}
}

// TestRetries sends batches of an idempotent producer twice, with gaps and with
// old epochs: at once, after a stop, after a kill, and when everything that the
// producer wrote is only in the bucket.
func TestRetries(t *testing.T) {
	n := NewNode(t, NodeOptions{Args: []string{"--bucket", "dir://" + filepath.Join(t.TempDir(), "bucket"), "--retention-interval", "100ms"}})
	createTopic(t, n, retryTopic, 1, map[string]string{"local.retention.bytes": "0"})
	r := &retries{t: t, w: wire{t, n}, epoch: 1, began: time.Now().UnixMilli()}
	r.id, _ = r.w.producerID()
	if offset, _, err := r.w.produce(retryTopic, r.batch(0, 0)); err != nil || offset != 0 {
		t.Fatalf("first epoch: offset %d, %v", offset, err)
	}
	for range remembered + 2 {
		r.next()
	}
	r.check("at once")
	n.Stop()
	n.Start()
	r.check("after a stop")
	r.next()
	n.Kill()
	n.Start()
	r.check("after a kill")
	tier(t, n, retryTopic)
	r.check("in the bucket")
	for _, path := range localLogs(t, n) {
		if st, err := os.Stat(path); err != nil || st.Size() > 0 {
			t.Errorf("%s is still there (%v)", path, err)
		}
	}
	n.Stop()
	n.Start()
	r.check("in the bucket, after a stop")
	n.Kill()
	n.Start()
	r.check("in the bucket, after a kill")
	r.next()
	r.check("and on")
	end := n.Storage(retryTopic)[0].HighWatermark
	got := r.w.fetch(retryTopic, end)
	if want := 1 + len(r.base); len(got) != want || end != int64(want*perBatch) {
		t.Fatalf("%d batches to offset %d, want %d", len(got), end, want)
	}
	for i, b := range got[1:] {
		if h := header(t, b); h.BaseOffset != r.base[i] || h.BaseSequence != int32(i*perBatch) || h.ProducerEpoch != r.epoch {
			t.Errorf("batch %d is %+v", i, h)
		}
	}
	n.Stop()
}
