package wal

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/cirrolog/cirrolog/storage/batch"
	"github.com/cirrolog/cirrolog/storage/ids"
	contract "github.com/cirrolog/cirrolog/storage/wal"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// flush takes what is pending when its time has come and has it put.
func (s *Stream) flush() {
	defer s.wg.Done()
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		wait := s.dueLocked()
		switch {
		case s.err != nil, s.closed && s.open == nil:
			return
		case wait == 0:
			s.commitLocked()
		case wait < math.MaxInt64:
			t := time.AfterFunc(wait, s.wake)
			s.cond.Wait()
			t.Stop()
		default:
			s.cond.Wait()
		}
	}
}

// wake wakes all that wait for cond. With the lock: a timer may be over before the one
// that made it waits.
func (s *Stream) wake() {
	s.mu.Lock()
	s.cond.Broadcast()
	s.mu.Unlock()
}

// dueLocked returns how long what is pending has to wait; the greatest value
// means for something else than time.
func (s *Stream) dueLocked() time.Duration {
	if s.open == nil || s.flights >= s.o.MaxInFlight {
		return math.MaxInt64
	}
	if s.open.bytes >= s.o.FlushBytes || s.closed || len(s.open.waiting) > 0 {
		return 0 // nobody serves the partitions of a change meanwhile
	}
	return max(s.o.Linger-time.Since(s.last), 0)
}

// commitLocked makes what is pending the next object.
func (s *Stream) commitLocked() {
	c := s.open
	s.open = nil
	c.seq = s.next
	s.next++
	s.last = time.Now()
	c.made = s.last
	s.foldLocked(c)
	if c.seq-s.ckptAt >= s.o.CheckpointEvery {
		s.ckptAt = c.seq
		c.checkpoint = s.checkpointLocked()
	}
	c.ckptAt = s.ckptAt
	s.queue = append(s.queue, c)
	s.flights++
	s.spaceLocked()
	s.wg.Add(1)
	go s.put(c)
}

// foldLocked applies a commit to the state that checkpoints are made of.
func (s *Stream) foldLocked(c *commit) {
	for _, a := range c.change.Acceptances {
		s.held[a.TP] = &holding{Held: Held(a), own: a.End}
		delete(s.given, a.TP)
	}
	for _, e := range c.entries {
		h := s.held[e.TP]
		switch {
		case h == nil:
		case e.Kind == contract.KindBatch:
			h.End = max(h.End, e.Last+1)
		case e.Kind == contract.KindLogStart:
			h.LogStart = max(h.LogStart, e.Base)
		}
	}
	for _, l := range c.change.LogStarts {
		if h := s.held[l.TP]; h != nil {
			h.LogStart = max(h.LogStart, l.Offset)
		}
	}
	for i := range c.change.Releases {
		r := &c.change.Releases[i]
		s.completeLocked(r, c.seq)
		delete(s.held, r.TP)
		s.given[r.TP] = *r
	}
}

// completeLocked fills in what a receiver needs to know, for a release in the object seq.
func (s *Stream) completeLocked(r *Release, seq uint64) {
	h := s.held[r.TP]
	if h == nil {
		return
	}
	r.LogStart, r.Older = h.LogStart, slices.Clone(h.Older)
	if h.own >= r.End || seq == 0 {
		return
	}
	from := seq
	switch {
	case len(s.live) > 0:
		from = s.live[0].seq
	case len(s.queue) > 0:
		from = s.queue[0].seq
	}
	r.Older = append(r.Older, OlderRange{Stream: s.o.Incarnation, From: from, To: seq, Base: h.own, End: r.End})
}

func (s *Stream) checkpointLocked() *Checkpoint {
	c := &Checkpoint{}
	for _, h := range s.held {
		c.Held = append(c.Held, h.Held)
	}
	for _, r := range s.given {
		c.Released = append(c.Released, r)
	}
	slices.SortFunc(c.Held, func(a, b Held) int { return CompareTP(a.TP, b.TP) })
	slices.SortFunc(c.Released, func(a, b Release) int { return CompareTP(a.TP, b.TP) })
	return c
}

// CompareTP orders partitions by topic id and number.
func CompareTP(a, b ids.TopicPartition) int {
	if c := bytes.Compare(a.Topic[:], b.Topic[:]); c != 0 {
		return c
	}
	return int(a.Partition) - int(b.Partition)
}

// build returns the object of a commit and its checksum. The batches of a
// partition lie next to each other, in order.
func (s *Stream) build(c *commit) (*body, uint32, error) {
	f := &Footer{Cluster: s.o.Cluster, Stream: s.o.Incarnation, Seq: c.seq, Nonce: s.nonce, CreatedMs: time.Now().UnixMilli(),
		Pos: uint64(c.pos), End: uint64(c.end), CheckpointAt: c.ckptAt, Checkpoint: c.checkpoint,
		LogStarts: c.change.LogStarts, Acceptances: c.change.Acceptances, Releases: c.change.Releases}
	entries := slices.Clone(c.entries)
	slices.SortStableFunc(entries, func(a, b *contract.Entry) int { return CompareTP(a.TP, b.TP) })
	b := &body{}
	b.add(f.header())
	for _, e := range entries {
		switch e.Kind {
		case contract.KindBatch:
			h, err := batch.Parse(e.Data)
			if err != nil {
				return nil, 0, fmt.Errorf("append to %s: %w", e.TP, err)
			}
			f.Batches = append(f.Batches, batchOf(e.TP, &h))
			b.add(e.Data)
		case contract.KindLogStart:
			f.LogStarts = append(f.LogStarts, LogStart{TP: e.TP, Epoch: e.Epoch, Offset: e.Base})
		default:
			return nil, 0, fmt.Errorf("append to %s: a stream in the bucket takes no entry of kind %d", e.TP, e.Kind)
		}
	}
	b.add(f.encode())
	sum, err := objstore.ChecksumBody(b)
	return b, sum, err
}

// putWarnings is how often a put that does not succeed is logged.
const putWarnings = 10 * time.Second

// put puts a commit's object, however long that takes.
func (s *Stream) put(c *commit) {
	defer s.wg.Done()
	c.filling.Wait()
	b, sum, err := s.build(c)
	c.began = s.o.Now()
	began, warned := time.Now(), time.Time{}
	for attempt := 0; err == nil; attempt++ {
		_, err = objstore.PutCreateOnly(s.ctx, s.o.Bucket, Key(s.o.Incarnation, c.seq), b, objstore.PutOptions{CRC32C: &sum})
		if err == nil {
			break
		}
		if errors.Is(err, objstore.ErrPrecondition) {
			err = s.fenced(c.seq)
			break
		}
		if !passes(err) && s.ctx.Err() == nil {
			break // not the store's being away: nobody knows what becomes of it
		}
		if time.Since(warned) >= putWarnings && s.ctx.Err() == nil {
			warned = time.Now()
			s.o.Logger.Warn("acknowledgements wait for the bucket: an object of the stream can't be put yet", "key", Key(s.o.Incarnation, c.seq), "for", time.Since(began).Round(time.Millisecond), "err", err)
		}
		if serr := objstore.Sleep(s.ctx, objstore.Backoff(min(attempt, 6))); serr != nil {
			err = fmt.Errorf("put %s: %w: %w", Key(s.o.Incarnation, c.seq), serr, err)
			break
		}
		err = nil
	}
	if err == nil && s.o.OnPut != nil {
		s.o.OnPut(b.Size(), time.Since(began))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flights--
	c.done = err == nil
	if err != nil {
		s.failLocked(err)
	}
	s.cond.Broadcast()
}

// passes tells whether a put may succeed later, when the store, the network or the
// credentials are back.
func passes(err error) bool {
	return objstore.Retriable(err) || errors.Is(err, objstore.ErrDenied) || errors.Is(err, objstore.ErrNoBucket)
}

// fenced says who has taken the number.
func (s *Stream) fenced(seq uint64) error {
	f, err := ReadFooter(s.ctx, s.o.Bucket, s.o.Incarnation, seq, -1)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %s is there and can't be read: %w", ErrFenced, Key(s.o.Incarnation, seq), err)
	case f.Seal != nil:
		return fmt.Errorf("%w: %s is a seal by %s", ErrFenced, Key(s.o.Incarnation, seq), f.Seal.By)
	}
	return fmt.Errorf("%w: %s was written by another process", ErrFenced, Key(s.o.Incarnation, seq))
}

// announce tells what became of the commits, in order.
func (s *Stream) announce() {
	defer s.wg.Done()
	for {
		s.mu.Lock()
		for s.err == nil && (len(s.queue) == 0 || !s.queue[0].done) && !(s.closed && s.open == nil && len(s.queue) == 0) {
			s.cond.Wait()
		}
		if s.err != nil {
			s.mu.Unlock()
			s.announceFailure()
			return
		}
		if len(s.queue) == 0 {
			s.mu.Unlock()
			return
		}
		c := s.queue[0]
		s.mu.Unlock()
		offs := offsetsOf(c.entries)
		s.o.Announce(c.entries, nil)
		if s.o.OnDurable != nil {
			s.o.OnDurable(c.began)
		}
		s.mu.Lock()
		s.queue = s.queue[1:]
		s.durable, s.newest = c.end, c.seq
		s.live = append(s.live, object{c.seq, c.end, offs})
		if c.checkpoint != nil {
			s.ckptOK = c.seq
		}
		s.cond.Broadcast()
		s.mu.Unlock()
		if c.checkpoint != nil && s.o.OnCheckpoint != nil {
			s.o.OnCheckpoint()
		}
		c.finish(nil)
	}
}

// finish gives up the commit's memory and tells those who wait for a change.
func (c *commit) finish(err error) {
	for _, k := range c.chunks {
		k.Release()
	}
	for _, w := range c.waiting {
		w <- changed{c.seq, err}
	}
}

// announceFailure fails all that was not announced, when no put is under way any more.
func (s *Stream) announceFailure() {
	s.mu.Lock()
	for s.flights > 0 {
		s.cond.Wait()
	}
	rest := s.queue
	if s.open != nil {
		rest = append(rest, s.open)
	}
	s.queue, s.open = nil, nil
	err := s.err
	s.mu.Unlock()
	for _, c := range rest {
		c.filling.Wait()
		s.o.Announce(c.entries, err)
		c.finish(err)
	}
}

// Held returns the partitions that the stream's incarnation owns, as of what was
// given to the bucket.
func (s *Stream) Held() []Held {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.checkpointLocked().Held
}
