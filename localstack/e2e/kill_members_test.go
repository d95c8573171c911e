package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/services/broker"
)

// httpWriter is one client of the HTTP gateway. It sends one record after
// another and repeats each, with the same Idempotency-Key, until it is stored.
type httpWriter struct {
	id     uint32
	l      *ledger
	url    string
	client *http.Client
	rand   *rand.Rand
	fail   func(error)
	stored int // of records; read it after the end
	again  int // requests that were sent again

	ctx    context.Context
	cancel context.CancelFunc
	ending atomic.Bool
	done   chan struct{}
}

func (l *ledger) startHTTPWriter(addr, topic string, r *rand.Rand, fail func(error)) *httpWriter {
	w := &httpWriter{id: l.newProducer(), l: l, url: "http://" + addr + "/api/v1/topics/" + topic + "/messages", client: &http.Client{Timeout: 20 * time.Second}, rand: r, fail: fail, done: make(chan struct{})}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	go w.run()
	return w
}

func (w *httpWriter) run() {
	defer close(w.done)
	for n := 0; !w.ending.Load(); n++ {
		s := w.l.next(w.id, w.rand.IntN(w.l.partitions))
		value := s.value(w.rand, w.rand.IntN(4<<10))
		key := fmt.Sprintf(`"%d-%d"`, w.id, n)
		offset, err := w.post(s, key, value)
		for ; err != nil; offset, err = w.post(s, key, value) {
			if w.ctx.Err() != nil {
				return
			}
			w.again++
			time.Sleep(20 * time.Millisecond)
		}
		if err := w.l.ack(s, offset); err != nil {
			w.fail(fmt.Errorf("HTTP: %w", err))
			return
		}
		w.stored++
		if w.l.calm.Load() {
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// post sends a record once.
func (w *httpWriter) post(s stamp, key string, value []byte) (offset int64, err error) {
	req, err := http.NewRequestWithContext(w.ctx, http.MethodPost, fmt.Sprintf("%s?partition=%d", w.url, s.partition), bytes.NewReader(value))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	req.Header.Set("Idempotency-Key", key)
	resp, err := w.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	if resp.StatusCode != http.StatusOK {
		if resp.StatusCode/100 == 4 && resp.StatusCode != http.StatusConflict && resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusRequestTimeout {
			w.fail(fmt.Errorf("HTTP: record %d of producer %d: %s: %s", s.seq, s.producer, resp.Status, body))
			w.cancel()
		}
		return 0, fmt.Errorf("%s: %s", resp.Status, body)
	}
	var answer struct{ Offset int64 }
	if err := json.Unmarshal(body, &answer); err != nil {
		return 0, err
	}
	return answer.Offset, nil
}

// finish waits until the last record is stored.
func (w *httpWriter) finish(ctx context.Context) error {
	w.ending.Store(true)
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		w.abandon()
		return fmt.Errorf("finish HTTP client %d: %w", w.id, ctx.Err())
	}
}

func (w *httpWriter) abandon() {
	w.ending.Store(true)
	w.cancel()
	<-w.done
}

const crashGroup = "crash-group"

// members are the members of a consumer group that commit what they have read.
type members struct {
	addr string
	fail func(error)
	wg   sync.WaitGroup
	once sync.Once
	ctx  context.Context
	end  context.CancelFunc

	commits, again atomic.Int64 // commits that were answered; records read more than once

	mu        sync.Mutex
	committed [crashPartitions]int64 // the highest offsets whose commit was answered
	tried     [crashPartitions]int64 // the highest whose commit was sent
	read      [crashPartitions]int64 // all records below were read
}

func startMembers(addr string, fail func(error)) *members {
	m := &members{addr: addr, fail: fail}
	m.ctx, m.end = context.WithCancel(context.Background())
	for range crashMembers {
		m.wg.Go(func() {
			if err := m.run(); err != nil {
				fail(fmt.Errorf("member of a group: %w", err))
			}
		})
	}
	return m
}

func (m *members) run() error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(m.addr, ",")...), kgo.ConsumerGroup(crashGroup), kgo.ConsumeTopics(crashTopic), kgo.DisableAutoCommit(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.SessionTimeout(6*time.Second), kgo.HeartbeatInterval(500*time.Millisecond),
		kgo.RebalanceTimeout(6*time.Second), kgo.BlockRebalanceOnPoll(), kgo.RetryBackoffFn(func(int) time.Duration { return 50 * time.Millisecond }),
		kgo.MetadataMinAge(50*time.Millisecond))
	if err != nil {
		return err
	}
	defer cl.CloseAllowingRebalance()
	for {
		f := cl.PollRecords(m.ctx, 500)
		if m.ctx.Err() != nil || f.IsClientClosed() {
			return nil
		}
		for _, r := range f.Records() {
			if err := m.see(r); err != nil {
				return err
			}
		}
		if f.NumRecords() > 0 {
			if err := m.commit(cl, f); err != nil {
				return err
			}
		}
		cl.AllowRebalance()
	}
}

// see notes a record: the group may read one again, and must not leave one out.
func (m *members) see(r *kgo.Record) error {
	if _, _, err := parseStamp(r.Value); err != nil {
		return fmt.Errorf("partition %d, offset %d: %w", r.Partition, r.Offset, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	read := &m.read[r.Partition]
	switch {
	case r.Offset > *read:
		return fmt.Errorf("partition %d: the group reads offset %d, and has read only those below %d", r.Partition, r.Offset, *read)
	case r.Offset < *read:
		m.again.Add(1)
	default:
		*read++
	}
	return nil
}

func (m *members) commit(cl *kgo.Client, f kgo.Fetches) error {
	offsets := map[int32]kgo.EpochOffset{}
	f.EachRecord(func(r *kgo.Record) {
		offsets[r.Partition] = kgo.EpochOffset{Epoch: r.LeaderEpoch, Offset: r.Offset + 1}
	})
	m.mu.Lock()
	for p, o := range offsets {
		m.tried[p] = max(m.tried[p], o.Offset)
	}
	m.mu.Unlock()
	ctx, cancel := context.WithTimeout(m.ctx, 10*time.Second)
	defer cancel()
	var refused error
	cl.CommitOffsetsSync(ctx, map[string]map[int32]kgo.EpochOffset{crashTopic: offsets}, func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) {
		if err != nil { // not answered, or the node is away
			return
		}
		m.commits.Add(1)
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				err := kerr.ErrorForCode(p.ErrorCode)
				switch {
				case err == nil:
					m.committed[p.Partition] = max(m.committed[p.Partition], offsets[p.Partition].Offset)
				case errors.Is(err, kerr.RebalanceInProgress), errors.Is(err, kerr.IllegalGeneration), errors.Is(err, kerr.UnknownMemberID):
				case !kerr.IsRetriable(err):
					refused = fmt.Errorf("commit of partition %d: %w", p.Partition, err)
				}
			}
		}
	})
	return refused
}

// check compares the group's offsets with what was committed and with what is
// in the log.
func (m *members) check() error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(m.addr, ",")...))
	if err != nil {
		return err
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), fetchLimit)
	defer cancel()
	m.mu.Lock()
	least := m.committed
	m.mu.Unlock()
	adm := kadm.NewClient(cl)
	got, err := adm.FetchOffsets(ctx, crashGroup)
	if err != nil {
		return fmt.Errorf("read the group's offsets: %w", err)
	}
	ends, err := adm.ListEndOffsets(ctx, crashTopic)
	if err = errors.Join(err, ends.Error()); err != nil {
		return fmt.Errorf("read the ends: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for p := range int32(crashPartitions) {
		at := int64(0)
		if o, ok := got.Lookup(crashTopic, p); ok {
			at = max(o.At, 0)
		}
		end, _ := ends.Lookup(crashTopic, p)
		if at < least[p] || at > m.tried[p] || at > end.Offset {
			return fmt.Errorf("partition %d: the group is at offset %d; committed was %d, sent at most %d, the log ends at %d", p, at, least[p], m.tried[p], end.Offset)
		}
	}
	return nil
}

// at tells whether the group has committed all that is there.
func (m *members) at(now []broker.PartitionStorage) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range now {
		if m.committed[s.Partition] < s.HighWatermark {
			return false
		}
	}
	return true
}

func (m *members) stop() {
	m.once.Do(func() {
		m.end()
		m.wg.Wait()
	})
}
