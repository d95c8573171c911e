package e2e

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"
)

// watcher is a consumer that follows the topic of the kill tests over all
// restarts and remembers what it saw: a record that a consumer has seen must
// never go away or change.
type watcher struct {
	cl   *kgo.Client
	fail func(error)
	wg   sync.WaitGroup
	once sync.Once

	mu   sync.Mutex
	sums [crashPartitions][]uint32 // of the values, by offset
}

// startWatcher starts it; fail may be called from its goroutine.
func startWatcher(addr string, fail func(error)) (*watcher, error) {
	from := map[int32]kgo.Offset{}
	for p := range int32(crashPartitions) {
		from[p] = kgo.NewOffset().At(0)
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(addr), kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{crashTopic: from}))
	if err != nil {
		return nil, err
	}
	w := &watcher{cl: cl, fail: fail}
	w.wg.Go(w.run)
	return w, nil
}

func (w *watcher) run() {
	for {
		f := w.cl.PollFetches(context.Background())
		if f.IsClientClosed() {
			return
		}
		var cut *kgo.ErrFirstReadEOF // the node was killed at a bad moment for the client
		if err := f.Err(); err != nil && !errors.As(err, &cut) {
			w.fail(fmt.Errorf("follow the topic: %w", err))
			return
		}
		f.EachRecord(func(r *kgo.Record) {
			if err := w.add(r); err != nil {
				w.fail(fmt.Errorf("follow partition %d: offset %d: %w", r.Partition, r.Offset, err))
			}
		})
	}
}

func (w *watcher) add(r *kgo.Record) error {
	_, sum, err := parseStamp(r.Value)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	sums := &w.sums[r.Partition]
	if want := int64(len(*sums)); r.Offset != want {
		return fmt.Errorf("want offset %d", want)
	}
	*sums = append(*sums, sum)
	return nil
}

// compare wants what was seen to be the beginning of what is there.
func (w *watcher) compare(partition int, there []uint32) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	seen := w.sums[partition]
	for i := range min(len(seen), len(there)) {
		if seen[i] != there[i] {
			return fmt.Errorf("partition %d, offset %d: a consumer saw another record there", partition, i)
		}
	}
	return nil
}

func (w *watcher) stop() {
	w.once.Do(w.cl.Close)
	w.wg.Wait()
}
