package kafka

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/cirrolog/cirrolog/services/broker"
)

// Fetch 4-18: sessions (KIP-227), long poll without busy waiting, one byte
// budget shared by all partitions, the first batch of the first partition with
// data always whole (KIP-74), topic ids from 13 on, diverging epochs (KIP-595).
// Tiered partitions are read concurrently; a read that takes longer than the
// client waits goes on, and the next Fetch finds it in the cache. Preferred read
// replicas (KIP-392) serve what is tiered, see fetch_replica.go. The hints of
// KIP-951 are left out.
func (s *Server) apiFetch() api {
	return api{key: 1, min: 4, max: 18, name: "Fetch"}
}

const (
	maxFetchWait = 5 * time.Minute
	// coldReads is how many tiered partitions of one request are read at once.
	coldReads = 16
	// minColdShare is the least share of the byte budget of a tiered partition.
	minColdShare = 256 << 10
	// coldWait is how long tiered reads may take when the client waits less
	// (Kafka's remote.fetch.max.wait.ms), hotGrace when there is enough
	// without them.
	coldWait = 500 * time.Millisecond
	hotGrace = 50 * time.Millisecond
	// bufferGrace is how long a request that holds buffers waits for more of
	// them: others may wait for those that it holds.
	bufferGrace = 50 * time.Millisecond
)

// fetching is one Fetch request under way.
type fetching struct {
	c       *conn
	req     *kmsg.FetchRequest
	fc      *fetchContext
	results []fetchResult
	budget  int
	bytes   int
	failed  bool
	nodes   []broker.Node // once asked for
}

type fetchResult struct {
	part  *fetchPart
	topic *broker.Topic
	p     Source
	res   broker.ReadResult
	code  int16
	// preferred is the node that the client is to read from instead; 0: none.
	preferred int32
	follower  bool // another agent leads the partition
	// settled: there is nothing to read until the partition wakes.
	settled bool
}

// fetch answers one Fetch request.
func (c *conn) fetch(req *kmsg.FetchRequest, r *reply) error {
	a := &fetchAnswer{version: req.Version, corr: r.corr}
	fc, err := c.s.sessions.open(req)
	if err != nil {
		a.errorCode = errorCode(err)
		r.bufs, r.code = a.encode(), a.errorCode
		c.send(r)
		return nil
	}
	f := &fetching{c: c, req: req, fc: fc, budget: min(c.s.limits.MaxFetchBytes, int(max(req.MaxBytes, 0)))}
	f.run(a)
	for i := range f.results {
		if r.code = f.results[i].code; r.code != 0 {
			break
		}
	}
	r.bufs, r.release = a.encode(), f.release
	c.send(r)
	return nil
}

// run reads what is asked for and fills in the answer.
func (f *fetching) run(a *fetchAnswer) {
	defer f.fc.close()
	f.resolve()
	f.poll()
	if f.fc.session != nil {
		a.sessionID = f.fc.session.id
	}
	f.answer(a)
}

// resolve finds the partitions.
func (f *fetching) resolve() {
	f.results = make([]fetchResult, 0, len(f.fc.parts))
	for _, part := range f.fc.parts {
		f.add(part)
	}
}

// add begins the result of one partition. In a session it is watched from
// here on, before it is read, so that nothing is missed.
func (f *fetching) add(part *fetchPart) {
	f.results = append(f.results, fetchResult{part: part})
	part.result = len(f.results)
	r := &f.results[len(f.results)-1]
	missing := error(kerr.UnknownTopicOrPartition)
	if f.req.Version >= 13 {
		r.topic, missing = f.c.s.b.TopicByID(part.id), kerr.UnknownTopicID
	} else {
		r.topic = f.c.s.b.Topic(part.name)
	}
	err := missing
	if r.topic != nil {
		err = f.find(r)
	}
	if err != nil {
		r.p, r.code = nil, errorCode(err)
		r.res.HighWatermark, r.res.LastStable, r.res.LogStart = -1, -1, -1
		f.failed = true
	}
	if f.fc.session != nil {
		part.watch(r.p)
	}
}

// poll reads until there is enough, something failed, or the time is over.
func (f *fetching) poll() {
	wait := min(time.Duration(max(f.req.MaxWaitMillis, 0))*time.Millisecond, maxFetchWait)
	deadline := time.Now().Add(wait)
	f.read(deadline)
	if f.enough() || wait == 0 {
		return
	}
	if f.fc.session == nil {
		for i := range f.results {
			r := &f.results[i]
			if r.settled = false; r.p != nil {
				r.part.watch(r.p)
			}
		}
		f.reread(deadline)
	}
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	for !f.enough() {
		select {
		case <-f.fc.wakes.c:
			f.reread(deadline)
		case <-timer.C:
			return
		case <-f.c.ctx.Done():
			return
		}
	}
}

func (f *fetching) enough() bool {
	return f.failed || f.bytes >= max(int(f.req.MinBytes), 0) && (f.bytes > 0 || f.req.MinBytes <= 0)
}

// reread reads again what has woken, and what had something to read.
func (f *fetching) reread(deadline time.Time) {
	for _, part := range f.fc.woken() {
		if i := part.result - 1; i >= 0 && i < len(f.results) && f.results[i].part == part {
			f.results[i].settled = false
		} else {
			f.add(part)
		}
	}
	f.release()
	f.bytes = 0
	f.read(deadline)
}

// read reads all partitions that may have something: what is hot in order, then
// what is tiered concurrently, within the one budget.
func (f *fetching) read(deadline time.Time) {
	var cold []*fetchResult
	empty := &lazyTimeout{Context: f.c.ctx, after: max(time.Until(deadline), coldWait)}
	defer empty.stop()
	holding := &lazyTimeout{Context: f.c.ctx, after: bufferGrace}
	defer holding.stop()
	for i := range f.results {
		r := &f.results[i]
		if r.p == nil || r.settled {
			continue
		}
		left, ctx := f.budget-f.bytes, empty
		if f.bytes > 0 {
			ctx = holding
		}
		r.res = r.p.Read(ctx, f.options(r, min(left, int(r.part.maxBytes)), f.bytes == 0, true))
		f.took(r)
		if r.res.Tiered && !f.sendAway(r) {
			cold = append(cold, r)
		}
	}
	if len(cold) == 0 || f.bytes >= f.budget && f.bytes > 0 {
		return
	}
	until := time.Now().Add(coldWait)
	if f.bytes > 0 && f.enough() {
		until = time.Now().Add(hotGrace)
	} else if deadline.After(until) {
		until = deadline
	}
	f.readCold(cold, until)
}

func (f *fetching) options(r *fetchResult, maxBytes int, minOne, cacheOnly bool) broker.ReadOptions {
	return broker.ReadOptions{Offset: r.part.offset, MaxBytes: maxBytes, MinOneBatch: minOne, ReadCommitted: f.req.IsolationLevel == 1,
		CurrentEpoch: r.part.epoch, LastFetchedEpoch: r.part.lastEpoch, CacheOnly: cacheOnly}
}

// fetchCode is Kafka's code of a read that failed. Whatever was wrong with what is stored, or with the way to it, is a
// storage error: Java's consumer ends with an exception at those codes that Kafka never gives to a Fetch.
func fetchCode(err error, version int16) int16 {
	switch {
	case !errors.Is(err, broker.ErrStorage):
		return errorCode(err)
	case version <= 5:
		return kerr.NotLeaderForPartition.Code // those clients do not know the other
	}
	return kerr.KafkaStorageError.Code
}

func (f *fetching) took(r *fetchResult) {
	if r.res.Err != nil {
		r.code = fetchCode(r.res.Err, f.req.Version)
		f.failed = true
		f.sendBack(r)
	}
	for _, d := range r.res.Data {
		f.bytes += len(d)
	}
	f.failed = f.failed || r.res.Diverging != nil
	r.settled = r.code == 0 && len(r.res.Data) == 0 && r.res.Diverging == nil && r.part.offset == r.res.HighWatermark
}

func (f *fetching) readCold(cold []*fetchResult, until time.Time) {
	ctx, cancel := context.WithDeadline(f.c.ctx, until)
	defer cancel()
	first := f.bytes == 0
	n := min(len(cold), max(1, (f.budget-f.bytes)/minColdShare), coldReads)
	share := (f.budget - f.bytes) / n
	var wg sync.WaitGroup
	for i, r := range cold[:n] {
		wg.Add(1)
		go func() {
			defer wg.Done()
			r.res = r.p.Read(ctx, f.options(r, min(share, int(r.part.maxBytes)), first && i == 0, false))
		}()
	}
	wg.Wait()
	for _, r := range cold[:n] {
		f.took(r)
	}
}

// release gives back the memory of what was read.
func (f *fetching) release() {
	for i := range f.results {
		r := &f.results[i]
		if r.res.Release != nil {
			r.res.Release()
			r.res.Release = nil
		}
		r.res.Data = nil
	}
}

// answer groups the results by topic. Within a session only partitions with
// news are told.
func (f *fetching) answer(a *fetchAnswer) {
	for i := range f.results {
		r := &f.results[i]
		size := 0
		for _, d := range r.res.Data {
			size += len(d)
		}
		if r.topic != nil && size > 0 {
			f.c.s.observer.Fetched(r.topic.Name, size)
		}
		if s := f.fc.session; s != nil {
			switch {
			case r.settled:
				s.settle(r.part)
			case size > 0:
				s.turn(r.part)
			}
		}
		if f.fc.incremental && !r.news(size) {
			continue
		}
		r.part.told, r.part.toldHW, r.part.toldStart = r.code == 0, r.res.HighWatermark, r.res.LogStart
		n := len(a.topics)
		if n == 0 || a.topics[n-1].name != r.part.name || a.topics[n-1].id != r.part.id {
			a.topics = append(a.topics, fetchAnswerTopic{name: r.part.name, id: r.part.id})
			n++
		}
		t := &a.topics[n-1]
		t.partitions = append(t.partitions, fetchAnswerPartition{partition: r.part.partition, errorCode: r.code, preferred: r.preferred, res: r.res})
	}
}

func (r *fetchResult) news(size int) bool {
	return size > 0 || r.code != 0 || r.preferred != 0 || r.res.Diverging != nil || !r.part.told ||
		r.part.toldHW != r.res.HighWatermark || r.part.toldStart != r.res.LogStart
}
