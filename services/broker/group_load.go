package broker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cirrolog/cirrolog/services/group"
	"github.com/cirrolog/cirrolog/storage/batch"
)

// groupLog is the partition of OffsetsTopic that keeps the groups.
type groupLog interface {
	// Bounds are the first offset and the end of what is durable.
	Bounds() (start, end int64)
	// MaxBytes is the largest batch that it takes now.
	MaxBytes() int
	// Produce appends a batch, see Partition.Produce.
	Produce(ctx context.Context, records []byte, room *Room, done func(Produced))
	// Read reads some of the log, see Partition.Read.
	Read(ctx context.Context, o ReadOptions) ReadResult
}

// partitionLog is a Partition as groups use it.
type partitionLog struct{ *Partition }

func (p partitionLog) Bounds() (start, end int64) {
	off := p.log.Offsets()
	return off.Start, off.HighWatermark
}

func (p partitionLog) MaxBytes() int {
	return min(int(p.config().MaxMessageBytes), p.log.MaxBatch())
}

// load reads the partition from its start into a new coordinator.
func (p *groupPartition) load() error {
	cfg := p.o.Config
	cfg.MaxRecordBytes = max(min(maxRecordBytes, p.log.MaxBytes()-recordRoom), 1<<10)
	c, err := group.New(cfg)
	if err != nil {
		return err
	}
	began, records := time.Now(), 0
	start, end := p.log.Bounds()
	for from := start; from < end; {
		next, n, err := p.loadFrom(c, from)
		if err != nil {
			return fmt.Errorf("load offset %d: %w", from, err)
		}
		if next == from { // no buffer in time
			p.pause()
		}
		if err := p.ctx.Err(); err != nil {
			return err
		}
		from, records = next, records+n
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.c = c
	p.effects(c.Loaded(p.o.now()))
	for _, topic := range p.orphans() {
		p.effects(c.DropTopic(topic))
	}
	close(p.loaded)
	p.logger.Debug("consumer groups loaded", "records", records, "dur_ms", time.Since(began).Milliseconds())
	return nil
}

// orphans names the topics that have offsets here and are no more: they were
// deleted while the partition was not loaded. p.mu is held.
func (p *groupPartition) orphans() (out []string) {
	seen := map[string]bool{}
	for _, l := range p.c.List(nil, nil) {
		for _, t := range p.c.FetchOffsets(group.FetchRequest{GroupID: l.GroupID}) {
			if !seen[t.Name] && !p.exists(t.Name) {
				out = append(out, t.Name)
			}
			seen[t.Name] = true
		}
	}
	return out
}

// loadFrom applies some of the log and returns the offset behind it.
func (p *groupPartition) loadFrom(c *group.Coordinator, from int64) (next int64, records int, err error) {
	res := p.log.Read(p.ctx, ReadOptions{Offset: from, MaxBytes: loadBytes, MinOneBatch: true, CurrentEpoch: -1, LastFetchedEpoch: -1})
	if res.Release != nil {
		defer res.Release()
	}
	if res.Err != nil {
		return from, 0, res.Err
	}
	next = from
	for _, b := range res.Data {
		for len(b) > 0 {
			h, err := batch.Parse(b)
			if errors.Is(err, batch.ErrTruncated) || err == nil && h.Size() > len(b) {
				break // the rest was not asked for
			}
			if err != nil {
				return next, records, err
			}
			if h.LastOffset() >= from {
				n, err := p.apply(c, &h, b[:h.Size()], from)
				if err != nil {
					return next, records, err
				}
				next, records = h.LastOffset()+1, records+n
			}
			b = b[h.Size():]
		}
	}
	return next, records, nil
}

func (p *groupPartition) apply(c *group.Coordinator, h *batch.Header, b []byte, from int64) (records int, err error) {
	if h.Control() {
		return 0, nil
	}
	for r, err := range batch.Records(b, batch.Limits{}) {
		if err != nil {
			return records, err
		}
		offset := h.BaseOffset + int64(r.OffsetDelta)
		if offset < from {
			continue
		}
		records++
		switch err := c.Apply(r.Key, r.Value); {
		case errors.Is(err, group.ErrUnknownRecord):
			p.logger.Debug("record of another kind of group", "offset", offset, "err", err)
		case err != nil:
			p.logger.Error("damaged record of a consumer group is left out", "offset", offset, "err", err)
		}
	}
	return records, nil
}
