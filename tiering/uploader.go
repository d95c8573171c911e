package tiering

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering/objstore"
)

// ErrFenced is wrapped by Index.Add when the partition has passed to a leader
// with a higher epoch: the segment is no longer this agent's to index.
var ErrFenced = errors.New("tiering: fenced by a newer leader epoch")

// UploaderOptions are what an Uploader needs. Bucket, Index, Local and
// Incarnation are required; the zero value of the others is their default.
type UploaderOptions struct {
	Bucket      objstore.Bucket
	Index       Index
	Local       Local
	Incarnation ids.Incarnation
	Logger      *slog.Logger     // default: discard
	Now         func() time.Time // default: time.Now

	// Concurrency is how many uploads run at once, of different partitions.
	// Default 4.
	Concurrency int
	// Interval is how often local segments are compared with what is
	// uploaded, whether or not anyone called Kick. Default 5 s.
	Interval time.Duration
	// MinTime and MinRate (bytes per second) set the watchdog: an upload that
	// takes longer than MinTime + size/MinRate is cancelled and tried again.
	// Defaults 30 s and 1 MiB/s.
	MinTime time.Duration
	MinRate int64
	// Backoff and MaxBackoff bound the wait after a failure. Defaults 200 ms
	// and 30 s.
	Backoff, MaxBackoff time.Duration

	// OnDamaged is told of a segment whose local bytes are not those that
	// were appended. It is tried again after MaxBackoff, as it may be
	// repaired. It must not call the uploader.
	OnDamaged func(s LocalSegment, err error)
	// OnUpload is told of every attempt, for histograms. It must not block.
	OnUpload func(s LocalSegment, took time.Duration, err error)
}

func (o *UploaderOptions) setDefaults() error {
	if o.Bucket == nil || o.Index == nil || o.Local == nil || o.Incarnation == "" {
		return errors.New("create uploader: bucket, index, local and incarnation are required")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	o.Concurrency = orDefault(o.Concurrency, 4)
	o.Interval = orDefault(o.Interval, 5*time.Second)
	o.MinTime = orDefault(o.MinTime, 30*time.Second)
	o.MinRate = orDefault(o.MinRate, 1<<20)
	o.Backoff = orDefault(o.Backoff, 200*time.Millisecond)
	o.MaxBackoff = max(orDefault(o.MaxBackoff, 30*time.Second), o.Backoff)
	return nil
}

func orDefault[T int | int64 | time.Duration](v, def T) T {
	if v <= 0 {
		return def
	}
	return v
}

// Uploader moves closed local segments to the bucket. It compares what is
// local with what is tiered again and again, so a lost event delays and never
// forgets a segment. Its methods may be called concurrently.
type Uploader struct {
	o      UploaderOptions
	gate   *gate
	ctx    context.Context // ends on Close
	cancel context.CancelFunc
	kick   chan struct{}
	wg     sync.WaitGroup // the loop and the uploads

	mu       sync.Mutex
	busy     map[ids.TopicPartition]struct{} // has an upload in flight
	troubled map[ids.TopicPartition]*trouble
	progress chan struct{} // closed and replaced when an upload ends
	stats    UploadStats
}

// trouble is the backoff of one partition.
type trouble struct {
	strikes int
	until   time.Time
	err     error
	// placed is the object that is whole in the bucket and not yet indexed:
	// it need not be sent again.
	placed SegmentKey
}

// UploadStats are counters since the start, and the present lag.
type UploadStats struct {
	Uploads   int64 // segments in the bucket and indexed
	Bytes     int64 // of their objects
	Failures  int64 // attempts
	Throttled int64 // attempts that failed because the store is busy
	Damaged   int64 // attempts that found local bytes damaged
	InFlight  int

	LagSegments int           // closed, not tiered
	LagBytes    int64         // of them
	LagAge      time.Duration // since the oldest of them was closed
}

// NewUploader starts an uploader; Close ends it.
func NewUploader(o UploaderOptions) (*Uploader, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	u := &Uploader{
		o: o, ctx: ctx, cancel: cancel,
		gate:     newGate(o.Concurrency, backoff{o.Backoff, o.MaxBackoff}, o.Now),
		kick:     make(chan struct{}, 1),
		busy:     map[ids.TopicPartition]struct{}{},
		troubled: map[ids.TopicPartition]*trouble{},
		progress: make(chan struct{}),
	}
	u.wg.Add(1)
	go u.run()
	return u, nil
}

// Kick makes the uploader look for closed segments now. It never blocks.
func (u *Uploader) Kick() {
	select {
	case u.kick <- struct{}{}:
	default:
	}
}

// Close cancels what is in flight and returns when it has ended. What was not
// uploaded stays local and is uploaded after the next start.
func (u *Uploader) Close() error {
	u.cancel()
	u.wg.Wait()
	return nil
}

// Drain uploads every closed segment and returns when none is left, or when
// ctx ends, with an error that says how many remain and why.
func (u *Uploader) Drain(ctx context.Context) error {
	for {
		u.mu.Lock()
		progress := u.progress
		idle := len(u.busy) == 0
		u.mu.Unlock()
		if idle && len(u.o.Local.Closed(1)) == 0 {
			return nil
		}
		u.Kick()
		select {
		case <-progress:
		case <-time.After(u.o.Backoff):
		case <-u.ctx.Done():
			return fmt.Errorf("drain uploads: %w", context.Canceled)
		case <-ctx.Done():
			n := u.o.Local.Lag().Segments
			return fmt.Errorf("drain uploads: %d closed segments are not in the bucket: %w", n, errors.Join(ctx.Err(), u.anyError()))
		}
	}
}

func (u *Uploader) anyError() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, t := range u.troubled {
		return t.err
	}
	return nil
}

// Counters returns the counters since the start. Unlike Stats it leaves the lag
// out and looks at nothing else.
func (u *Uploader) Counters() UploadStats {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := u.stats
	s.InFlight = len(u.busy)
	return s
}

// Stats returns the counters and measures the lag.
func (u *Uploader) Stats() UploadStats {
	lag := u.o.Local.Lag()
	s := u.Counters()
	s.LagSegments, s.LagBytes = lag.Segments, lag.Bytes
	if lag.Segments > 0 {
		s.LagAge = max(u.o.Now().Sub(lag.Oldest), 0)
	}
	return s
}

func (u *Uploader) run() {
	defer u.wg.Done()
	tick := time.NewTicker(u.o.Interval)
	defer tick.Stop()
	retry := time.NewTimer(0)
	defer retry.Stop()
	for {
		select {
		case <-u.ctx.Done():
			return
		case <-tick.C:
		case <-u.kick:
		case <-retry.C:
		}
		if wait := u.dispatch(); wait > 0 {
			retry.Reset(wait)
		}
	}
}

// scanLimit is how many closed segments one look takes at first; it grows
// while all that were seen belong to partitions that must wait.
const scanLimit = 64

// maxScan bounds that growth.
const maxScan = 1 << 16

// dispatch starts uploads of the oldest segment of each partition that has
// one, up to the limit. It returns after what time to look again at the
// latest, 0 for no wish.
func (u *Uploader) dispatch() time.Duration {
	wait, limit := u.gate.state()
	if wait > 0 {
		return wait
	}
	soonest := time.Duration(0)
	for scan := scanLimit; ; scan *= 4 {
		before := u.inFlight()
		closed := u.o.Local.Closed(scan)
		started, full := 0, false
		started, full, soonest = u.startUploads(closed, before, limit)
		if len(closed) < scan {
			u.forget(closed)
		}
		if full || started > 0 || len(closed) < scan || scan > maxScan {
			return soonest
		}
	}
}

// inFlight returns the partitions that have an upload in flight.
func (u *Uploader) inFlight() map[ids.TopicPartition]struct{} {
	u.mu.Lock()
	defer u.mu.Unlock()
	return maps.Clone(u.busy)
}

// startUploads starts what of closed may start. It leaves out the partitions
// of before, which had an upload in flight when closed was listed: if that has
// ended since, closed still names its segment. The end of an upload kicks.
func (u *Uploader) startUploads(closed []LocalSegment, before map[ids.TopicPartition]struct{}, limit int) (started int, full bool, soonest time.Duration) {
	now := u.o.Now()
	seen := before
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, s := range closed {
		if len(u.busy) >= limit {
			return started, true, 0 // the end of an upload kicks
		}
		if _, ok := seen[s.TP]; ok {
			continue
		}
		seen[s.TP] = struct{}{}
		if _, ok := u.busy[s.TP]; ok {
			continue
		}
		if t := u.troubled[s.TP]; t != nil && now.Before(t.until) {
			if d := t.until.Sub(now); soonest == 0 || d < soonest {
				soonest = d
			}
			continue
		}
		u.busy[s.TP] = struct{}{}
		started++
		u.wg.Add(1)
		go u.work(s)
	}
	return started, false, soonest
}

// forget drops the backoff of partitions that have nothing closed any more.
func (u *Uploader) forget(closed []LocalSegment) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.troubled) == 0 {
		return
	}
	have := make(map[ids.TopicPartition]struct{}, len(u.troubled))
	for _, s := range closed {
		have[s.TP] = struct{}{}
	}
	for tp := range u.troubled {
		_, listed := have[tp]
		_, busy := u.busy[tp]
		if !listed && !busy {
			delete(u.troubled, tp)
		}
	}
}

func (u *Uploader) work(s LocalSegment) {
	defer u.wg.Done()
	start := u.o.Now()
	row, err := u.upload(s)
	took := u.o.Now().Sub(start)
	if err == nil {
		u.gate.ok()
		u.o.Local.Tiered(row)
	}
	if u.o.OnUpload != nil {
		u.o.OnUpload(s, took, err)
	}
	if errors.Is(err, errDamaged) && u.o.OnDamaged != nil {
		u.o.OnDamaged(s, err)
	}
	u.finish(s, row, err)
	u.Kick()
}

// finish notes the outcome of an upload and frees the partition.
func (u *Uploader) finish(s LocalSegment, row Segment, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.busy, s.TP)
	close(u.progress)
	u.progress = make(chan struct{})
	if err == nil {
		delete(u.troubled, s.TP)
		u.stats.Uploads++
		u.stats.Bytes += row.Size
		u.o.Logger.Debug("uploaded segment", "key", row.Key(), "bytes", row.Size)
		return
	}
	if u.ctx.Err() != nil {
		return
	}
	t := u.troubled[s.TP]
	if t == nil {
		t = &trouble{}
		u.troubled[s.TP] = t
	}
	t.strikes++
	t.err = err
	wait := backoff{u.o.Backoff, u.o.MaxBackoff}.wait(t.strikes)
	u.stats.Failures++
	switch {
	case errors.Is(err, errDamaged):
		u.stats.Damaged++
		wait = u.o.MaxBackoff
	case errors.Is(err, ErrFenced), errors.Is(err, errConflict):
		wait = u.o.MaxBackoff
	case errors.Is(err, objstore.ErrThrottled):
		u.stats.Throttled++
		u.gate.throttled()
	}
	t.until = u.o.Now().Add(wait)
	u.o.Logger.Warn("upload failed", "topic_id", s.TP.Topic.String(), "partition", s.TP.Partition, "offset", s.Base, "last", s.Last,
		"attempt", t.strikes, "retry_in_ms", wait.Milliseconds(), "err", err)
}

// placed reports whether the object of key is known to be whole in the bucket.
func (u *Uploader) placed(key SegmentKey) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	t := u.troubled[key.TP]
	return t != nil && t.placed == key
}

// setPlaced remembers that the object of key is whole in the bucket, until the
// partition's next success.
func (u *Uploader) setPlaced(key SegmentKey) {
	u.mu.Lock()
	defer u.mu.Unlock()
	t := u.troubled[key.TP]
	if t == nil {
		t = &trouble{}
		u.troubled[key.TP] = t
	}
	t.placed = key
}
