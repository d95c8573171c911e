package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cirrolog/cirrolog/metadata"
	"github.com/cirrolog/cirrolog/storage/ids"
	"github.com/cirrolog/cirrolog/tiering"
)

// defaultGrace is that of tiering.SweepOptions.
const defaultGrace = time.Hour

// Expired is what Expire did, or, dry, would do.
type Expired struct {
	Partitions int `json:"partitions"` // whose log starts have moved
	Segments   int `json:"segments"`   // tiered ones that lie below now, for a sweep when grace is over
	Owned      int `json:"owned"`      // partitions that were left to their agents
	// Early: log starts were published within grace. Another object of them would begin its age anew for a sweep that
	// remembers nothing, and what lies below would never be old enough to go.
	Early bool `json:"early"`
}

// Expire applies retention to what is in the bucket of partitions that nobody serves: those whose owner holds no lease.
// What is not tiered does not count and does not go. It does what the leader does with the same rules: the log start
// moves in the metadata store on the condition of the owner's epoch, and in the bucket, before anything below it is
// deleted. An agent that takes the partition meanwhile, and began with the older log start, moves it itself with its next
// retention, which comes before grace is over. Meta must have been opened with the defaults of topic configs that the
// agents have: by others it would delete what they keep.
func (s *Sweeper) Expire(ctx context.Context, grace time.Duration, dryRun bool) (Expired, error) {
	var r Expired
	if err := s.o.Meta.CheckOwner(ctx); err != nil {
		return r, err
	}
	_, at, err := s.o.Meta.DatedLogStarts(ctx)
	if err != nil {
		return r, err
	}
	if s.o.Now().Sub(at) < cmp.Or(grace, defaultGrace) {
		r.Early = true
		return r, nil
	}
	held := map[ids.Incarnation]bool{}
	for _, t := range s.o.Meta.Snapshot().Topics() {
		if t.Config.RetentionMs < 0 && t.Config.RetentionBytes < 0 {
			continue
		}
		for p := range t.Partitions {
			if err := s.expirePartition(ctx, t, p, held, dryRun, &r); err != nil {
				return r, fmt.Errorf("expire %s-%d: %w", t.Name, p, err)
			}
		}
	}
	if dryRun {
		return r, nil
	}
	return r, s.o.Meta.PublishLogStarts(ctx)
}

func (s *Sweeper) expirePartition(ctx context.Context, t *metadata.Topic, p int32, held map[ids.Incarnation]bool, dryRun bool, r *Expired) error {
	owner := s.o.Meta.Owner(t, p)
	alive, known := held[owner.Incarnation]
	if !known && owner.Incarnation != "" {
		var err error
		if _, alive, err = s.o.Meta.LeaseCounter(ctx, owner.Incarnation); err != nil {
			return err
		}
		held[owner.Incarnation] = alive
	}
	if alive || owner.Incarnation == "" { // not known: nobody to fence
		r.Owned++
		return nil
	}
	tp := ids.TopicPartition{Topic: t.ID, Partition: p}
	start, c := s.o.Meta.LogStart(tp), t.Config
	rows, err := tieredRows(ctx, s.index, tp, start)
	if err != nil {
		return err
	}
	plan := tiering.Retain(tiering.RetentionConfig{RetentionMs: c.RetentionMs, RetentionBytes: c.RetentionBytes, LocalRetentionMs: tiering.Unlimited,
		LocalRetentionBytes: tiering.Unlimited, Remote: c.RemoteStorage}, tiering.RetentionState{Now: s.o.Now().UnixMilli(), LogStart: start, Tiered: rows})
	if plan.LogStart <= start {
		return nil
	}
	if !dryRun {
		err := s.o.Meta.SetLogStart(ctx, tp, owner.Epoch, plan.LogStart)
		if errors.Is(err, metadata.ErrFenced) { // an agent has it now
			r.Owned++
			return nil
		}
		if err != nil {
			return err
		}
	}
	r.Partitions++
	for _, row := range rows {
		if row.Last < plan.LogStart {
			r.Segments++
		}
	}
	return nil
}
